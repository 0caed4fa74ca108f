"""Uncased, cased, Chinese and multilingual vocabularies: what Hugging Face's tokenizer gives, offsets and words too."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax import BertTokenizer
from tests.bert_jax import make_golden_tokenizers as golden

KINDS = list(golden.KINDS)


def facts(encodings):
    return [[e.ids, e.type_ids, [list(pair) for pair in e.offsets], e.word_ids, e.sequence_ids] for e in encodings]


def our_facts(tokenizer, texts, words, windows):
    found = {
        "texts": tokenizer.encode(texts),
        "words": tokenizer.encode_words(words),
        "windows": tokenizer.encode_windows(*windows),
    }
    return {name: facts(encodings) for name, encodings in found.items()}


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """(kind, our tokenizer from a vocab.txt alone)"""
    folder = tmp_path_factory.mktemp(request.param)
    golden.write_folder(request.param, folder)
    return request.param, BertTokenizer.from_pretrained(folder)


def test_vocabulary_alone(pair, tmp_path):
    kind, tokenizer = pair
    assert tokenizer.backend.normalizer.lowercase is golden.KINDS[kind][0]
    windows = golden.QUESTION, golden.CONTEXT, golden.MAX_LENGTH, golden.STRIDE
    recorded = json.loads(golden.PATH.read_text())[kind]
    assert our_facts(tokenizer, golden.TEXTS, golden.WORDS, windows) == recorded
    assert len(recorded["windows"]) > 2
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    whole = BertTokenizer.from_pretrained(tmp_path)
    assert our_facts(whole, golden.TEXTS, golden.WORDS, windows) == recorded


def test_offsets_are_places_in_the_context(pair):
    _, tokenizer = pair
    first, *more = tokenizer.encode_windows(golden.QUESTION, golden.CONTEXT, golden.MAX_LENGTH, golden.STRIDE)
    (whole,) = tokenizer.encode([golden.CONTEXT])
    places = []
    for encoding in (first, *more):
        assert len(encoding) <= golden.MAX_LENGTH
        inside = [o for o, of in zip(encoding.offsets, encoding.sequence_ids, strict=True) if of == 1]
        assert not places or inside[: golden.STRIDE] == places[-golden.STRIDE :]
        places += inside[golden.STRIDE :] if places else inside
    assert places == whole.offsets[1:-1]


letters = "aAéÉbB 我京東タПМदُ\u0301\u200b\x00\t'.,-#İß😀[]"
texts = st.one_of(
    st.text(alphabet=letters, max_size=30),
    st.lists(st.sampled_from([*" ".join(words for *_, words in golden.KINDS.values()).split(), "[MASK]", "[SEP]"])).map(
        " ".join
    ),
    st.text(max_size=12),
)


@pytest.fixture(scope="module")
def peer(pair, peers, tmp_path_factory):
    return golden.theirs(pair[0], tmp_path_factory.mktemp("peer"))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(texts, min_size=1, max_size=3), st.lists(st.lists(texts, min_size=1, max_size=4), min_size=1), st.data()
)
def test_any_text(pair, peer, some, words, data):
    _, tokenizer = pair
    question, context = some[0][:8], some[-1]
    room = data.draw(st.integers(2, 12))
    length = len(tokenizer.encode([question])[0]) + 1 + room
    windows = question, context, length, data.draw(st.integers(0, room - 1))
    assert our_facts(tokenizer, some, words, windows) == golden.their_facts(peer, some, words, windows)


# --- which case a vocabulary has ---------------------------------------------------------------------------------


def folder_of(folder, words, settings=None):
    (folder / "vocab.txt").write_text("\n".join([*golden.SPECIAL, *words]), encoding="utf-8")
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("words", "settings", "lowercase"),
    [
        (["cat", "Cat"], None, False),
        (["cat", "##T"], {}, False),
        (["Été", "cat"], {"strip_accents": None}, False),
        (["cat", "ß", "ℝ", "我", "ǆ"], None, True),  # lower-casing leaves ℝ as it is
        (["cat", "[unused7]", "[ENT]"], None, True),
        (["cat"], {"do_lower_case": False}, False),
        (["cat"], {"do_lower_case": True}, True),
    ],
)
def test_case(tmp_path, words, settings, lowercase):
    tokenizer = BertTokenizer.from_pretrained(folder_of(tmp_path, words, settings))
    assert tokenizer.backend.normalizer.lowercase is lowercase


def test_a_cased_vocabulary_that_is_lower_cased_is_said(tmp_path):
    words = r"lower-cases all text, but 2 entries of its vocabulary have capital .* such as 'Cat'; .* tokenizer_config"
    folder_of(tmp_path, ["cat", "Cat", "Dog"], {"do_lower_case": True})
    with pytest.warns(UserWarning, match=rf"^{re.escape(str(tmp_path))}: .*{words}") as caught:
        tokenizer = BertTokenizer.from_pretrained(tmp_path)
    assert caught[0].filename == __file__
    tokenizer.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=words):
        BertTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')  # as Hugging Face, it has the last word
    cased = BertTokenizer.from_pretrained(tmp_path)
    assert cased.encode(["Cat"])[0].tokens == ["[CLS]", "Cat", "[SEP]"]


def test_settings_are_those_that_hugging_face_follows(tmp_path, peers):
    folder_of(tmp_path, ["cat", "é", "e", "京", "##京", "東"], {"do_lower_case": True})
    BertTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    chosen = {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(chosen))
    text = ["É é cat 東京"]
    ours = BertTokenizer.from_pretrained(tmp_path).encode(text)[0].ids
    assert ours == peers[1].BertTokenizerFast.from_pretrained(tmp_path)(text)["input_ids"][0]


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uncased")
    golden.write_folder("uncased", folder)
    return BertTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("sentences", "words"),
    [
        ("the fox", "sentences must be a list of lists of words, not 'the fox'"),
        (None, "sentences must be a list of lists of words"),
        ([], "sentences is empty"),
        (["the fox"], r"sentences\[0\] must be a list of texts, not one str"),
        ([["the"], ["fox", 3]], r"sentences\[1\]\[1\] must be a str, not 3"),
        ([["\udc00"]], r"sentences\[0\]\[0\], character 0"),
    ],
)
def test_sentences_are_refused(tokenizer, sentences, words):
    with pytest.raises(ValueError, match=words):
        tokenizer.encode_words(sentences)


def test_words_are_cut(tokenizer):
    whole, empty = tokenizer.encode_words([["the", "quick", "fox"], []])
    assert (empty.tokens, empty.word_ids) == (["[CLS]", "[SEP]"], [None, None])
    (cut,) = tokenizer.encode_words([["the", "quick", "fox"]], max_length=4)
    assert cut.tokens == ["[CLS]", "the", "quick", "[SEP]"] and cut.overflowing and not whole.overflowing
    with pytest.raises(ValueError, match="max_length 2 leaves no room"):
        tokenizer.encode_words([["the"]], max_length=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("the fox", "cafe", 8, 3), "max_length 8 leaves 3 tokens for the context beside the question's 2, but more"),
        (("the " * 9, "cafe", 8, 0), "leaves 0 tokens for the context beside the question's 9"),
        (("the", "cafe", 8, -1), "stride must be an integer from 0"),
        (("the", "cafe", None, 0), "max_length must be an integer from 1 to .* not None"),
        (("the", "cafe", 8, True), "stride must be an integer"),
        ((["the"], "cafe", 8, 0), r"question\[0\] must be a str"),
        (("the", 3, 8, 0), r"context\[0\] must be a str"),
    ],
)
def test_windows_are_refused(tokenizer, arguments, words):
    with pytest.raises(ValueError, match=words):
        tokenizer.encode_windows(*arguments)


def test_empty_texts_are_two_tokens_everywhere(tokenizer):
    assert tokenizer.encode([""])[0].tokens == tokenizer.encode_words([[""]])[0].tokens == ["[CLS]", "[SEP]"]
    assert tokenizer.encode([""], [""])[0].tokens == ["[CLS]", "[SEP]", "[SEP]"]
    for question, context in (("", ""), ("the", ""), ("", "the")):
        (only,) = tokenizer.encode_windows(question, context, 10, 2)
        assert only.tokens == ["[CLS]", *question.split(), "[SEP]", *context.split(), "[SEP]"]


def test_tokens_of_a_pair_know_whose_they_are(tokenizer):
    for (only,) in (tokenizer.encode(["the"], ["fox"]), tokenizer.encode_windows("the", "fox", 10, 2)):
        assert only.sequence_ids == [None, 0, None, 1, None] and only.type_ids == [0, 0, 0, 1, 1]


# --- shapes ------------------------------------------------------------------------------------------------------


def test_buckets(tokenizer):
    encodings = tokenizer.encode(["the", "fox " * 30, ""])
    batch = tokenizer.pad_to_bucket(encodings, 512)
    plain = tokenizer.pad(encodings)
    for name, array in batch.items():
        assert array.shape == (4, 32) and (array[:3, :32] == plain[name]).all()
    assert batch["attention_mask"][3].sum() == 1
    assert tokenizer.pad_to_bucket(encodings, 32)["input_ids"].shape == (4, 32)
    lengths = [1, 16, 17, 32, 33, 48, 49, 64, 65, 96, 97, 128, 129, 300]
    found = [tokenizer.pad_to_bucket(tokenizer.encode(["the " * n], max_length=n), 300) for n in lengths[1:]]
    assert [len(batch["input_ids"][0]) for batch in found] == [16, 32, 32, 48, 48, 64, 64, 96, 96, 128, 128, 192, 300]

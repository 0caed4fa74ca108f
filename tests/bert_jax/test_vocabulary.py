"""Vocabularies: what is learned from texts of any kind, and which files are read."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax import BertTokenizer, vocabulary

SPECIAL = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"
TEXTS = ["the unbelievable cat sat on the unbreakable mat", "a cat is unable to break the mat"] * 5


# --- learning ----------------------------------------------------------------------------------------------------


class Unchanged:
    """Stands for the step that leaves out long words, and does nothing."""

    @staticmethod
    def sub(_, text):
        return text


pieces = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["cat", "unbelievable", "a-b/c_d" * 30, "=" * 150, "東京" * 80, "x" * 100, "é" * 100, "가"]),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(pieces, max_size=8).map(" ".join), min_size=1, max_size=4), st.booleans(), st.integers(16, 90))
def test_texts_without_long_words_give_the_vocabulary_that_they_gave(texts, lowercase, vocab_size):
    texts = ["some words", *texts]
    found = vocabulary.learn_vocabulary(texts, vocab_size, lowercase)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "_ONE_WORD", Unchanged)
        patch.setattr(vocabulary, "MAX_WORD", 50_000)
        assert found == vocabulary.learn_vocabulary(texts, vocab_size, lowercase)


@pytest.mark.parametrize("unit", ["ab", "a\u0301", "a\x0b", "가", "\U0001f600", "a\U0001e95e"], ids=ascii)
def test_long_words_are_not_learned_from(unit):
    expected = vocabulary.learn_vocabulary([*TEXTS, "mat mat"], 60, True)
    began = time.perf_counter()
    for long in (unit * 200_000, unit * 102):
        assert vocabulary.learn_vocabulary([*TEXTS, f"mat {long} mat"], 60, True) == expected
    # 200,000 characters take more than a minute where a word's length counts squared.
    assert time.perf_counter() - began < 10


def test_a_word_of_50_megabytes_takes_seconds():
    began = time.perf_counter()
    assert vocabulary.learn_vocabulary([*TEXTS, "ab" * 25_000_000], 60, True) == vocabulary.learn_vocabulary(
        TEXTS, 60, True
    )
    assert time.perf_counter() - began < 10


def test_a_word_of_as_many_characters_as_are_encoded_is_learned():
    longest, longer = "xy" * 50, "zw" * 50 + "z"
    found = vocabulary.learn_vocabulary([f"{longest} {longer}"] * 3, 200, True)
    assert longest in found and "z" not in found and "##z" not in found
    tokens = BertTokenizer.train([longest] * 3, 200).encode([f"{longest} {longest}x"])[0].tokens
    assert tokens == ["[CLS]", longest, "[UNK]", "[SEP]"]


def test_chinese_without_spaces_is_learned_from():
    text = "".join(chr(0x4E00 + i % 300) for i in range(5000))
    found = vocabulary.learn_vocabulary([text], 700, True)
    assert {chr(0x4E00 + i) for i in range(300)} <= found.keys()


def test_alphabets_of_all_characters():
    every = "".join(chr(i) for i in range(0x20000) if not 0xD800 <= i < 0xE000)
    found = vocabulary.learn_vocabulary([" ".join(every), "cat " * 5000], 100, True)
    assert len(found) <= 100 and {"c", "a", "t"} <= {token.removeprefix("##") for token in found}


@pytest.mark.parametrize("vocab_size", [0, -1, 15, 99_999_999_999, True, 20.5, "20", None, float("nan")])
def test_vocabulary_sizes_are_refused(vocab_size):
    with pytest.raises(ValueError, match=r"vocab_size must be an integer from 16 to 10000000, not"):
        BertTokenizer.train(TEXTS, vocab_size)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([], "none of 0 texts holds a word"),
        (["", " \n"], "none of 2 texts holds a word"),
        (["x" * 101], "none of 1 texts holds a word of 1 to 100 characters"),
        ("cat", "texts must be a list of texts, not one str"),
        (b"cat", "texts must be a list of texts, not b'cat'"),
        (3, "texts must be a list of texts, not 3"),
        (None, "texts must be a list of texts, not None"),
        (["a", 3], r"texts\[1\] must be a str, not 3"),
        (["a", b"b"], r"texts\[1\] must be a str, not b'b'"),
        (["a", "b", "c\udc80d"], r"texts\[2\], character 1: '\\udc80' is half of a surrogate pair"),
    ],
)
def test_texts_are_refused(texts, words):
    with pytest.raises(ValueError, match=words):
        BertTokenizer.train(texts, 60)


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        (SPECIAL + "Élan\ncat").encode(),
        (SPECIAL + "Élan\ncat\n").encode("utf-8-sig"),
        (SPECIAL + "Élan\ncat\n").replace("\n", "\r\n").encode(),
        (SPECIAL + "Élan\ncat\n").replace("\n", " \t\n").encode(),
        (SPECIAL + "Élan\ncat\n\n \n").encode(),
    ],
    ids=["plain", "byte order mark", "carriage returns", "trailing spaces", "empty lines at the end"],
)
def test_vocabulary_files_of_any_ending(tmp_path, content):
    (tmp_path / "vocab.txt").write_bytes(content)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}', encoding="utf-8-sig")
    tokenizer = BertTokenizer.from_pretrained(tmp_path)
    assert tokenizer.vocab_size == 7
    assert tokenizer(["Élan cat [MASK]"])["input_ids"][0].tolist() == [2, 5, 6, 4, 3]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ((SPECIAL + "Élan\n").encode("utf-16"), "it is UTF-16: save it as UTF-8"),
        ((SPECIAL + "elan\n").encode("utf-16-be"), "lacks the special tokens"),
        ((SPECIAL + "Élan\n").encode("latin-1"), r"line 6 \(byte 31\) is not UTF-8"),
        (b"", "line 1 holds no token"),
        (b"\n \n", "line 1 holds no token"),
        ((SPECIAL + "cat\n\nmat\n").encode(), "line 7 holds no token"),
        ((SPECIAL + "cat\nmat\ncat\n").encode(), "line 8 repeats the token of line 6, 'cat'"),
        (SPECIAL.replace("\n", "\r").encode(), "lacks the special tokens"),
        (b"\x00\xff" * 50, "line 1"),
    ],
)
def test_vocabulary_files_are_refused(tmp_path, content, words):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{tmp_path}/vocab.txt cannot be read: .*{words}"):
        BertTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ('{"do_lower_case": "yes"}', "do_lower_case must be True or False, not 'yes'"),
        ('{"do_lower_case": null}', "do_lower_case must be True or False, not None"),
        ('{"strip_accents": 1}', "strip_accents must be True or False or None, not 1"),
        ('{"tokenize_chinese_chars": []}', "tokenize_chinese_chars must be True or False"),
        ("[]", "holds list, not a JSON object"),
        ("null", "holds NoneType, not a JSON object"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("\xff", "cannot be read"),
    ],
)
def test_settings_are_refused(tmp_path, settings, words):
    (tmp_path / "vocab.txt").write_text(SPECIAL)
    (tmp_path / "tokenizer_config.json").write_bytes(settings.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{tmp_path}/tokenizer_config.json cannot be read: .*{words}|{words}"):
        BertTokenizer.from_pretrained(tmp_path)


def test_folders_in_the_place_of_files(tmp_path):
    (tmp_path / "vocab.txt").write_text(SPECIAL)
    for name in ("tokenizer_config.json", "tokenizer.json"):
        (tmp_path / name).mkdir()
        with pytest.raises(ValueError, match=f"{tmp_path}/{name} cannot be read: "):
            BertTokenizer.from_pretrained(tmp_path)
        (tmp_path / name).rmdir()

"""WordPiece: training, files, truncation, and equality with the libraries it stands for."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from bert_jax import BertTokenizer

TEXTS = [
    "the unbelievable cat sat on the unbreakable mat",
    "a cat is unable to break the mat, believe it!",
    "breaking mats and sitting cats: 12 believable things",
    "Élan vital is not the same as élan",
] * 5


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizer.train(TEXTS, 90)


def test_training_is_deterministic_across_processes(tokenizer):
    # The library numbers pieces in the order of a hash table that is seeded anew in each process.
    train = f"BertTokenizer.train({TEXTS!r}, 90).backend.get_vocab()"
    code = f"import json; from bert_jax import BertTokenizer; print(json.dumps({train}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == tokenizer.backend.get_vocab()
    assert done.stderr == ""


def test_special_tokens_and_sizes(tokenizer):
    names = ("pad_id", "unk_id", "cls_id", "sep_id", "mask_id")
    assert [getattr(tokenizer, name) for name in names] == [0, 1, 2, 3, 4]
    assert tokenizer.special_ids == (0, 1, 2, 3, 4)
    assert tokenizer.vocab_size == 90 == len(tokenizer.backend.get_vocab())
    pieces = {token for token, i in tokenizer.backend.get_vocab().items() if tokenizer.continuation_mask()[i]}
    assert pieces and all(piece.startswith("##") for piece in pieces)
    assert len(pieces) == sum(token.startswith("##") for token in tokenizer.backend.get_vocab())


def test_more_characters_than_room_keeps_the_frequent_ones():
    rare = ["".join(chr(0x4E00 + i) for i in range(80)), "common words " * 50]
    small = BertTokenizer.train(rare, 40)
    assert small.vocab_size <= 40
    assert small.unk_id not in small(["common words"])["input_ids"]
    assert BertTokenizer.train(rare, 40).backend.get_vocab() == small.backend.get_vocab()


def test_case(tokenizer):
    assert tokenizer.decode(tokenizer(["ÉLAN"])["input_ids"][0]) == "elan"
    cased = BertTokenizer.train(TEXTS, 150, lowercase=False)
    assert cased.decode(cased(["Élan élan"])["input_ids"][0]) == "Élan élan"


def test_rows(tokenizer):
    batch = tokenizer(["cat", "the cat sat"], ["a mat", "mat"])
    assert all(array.dtype == np.int32 for array in batch.values())
    used = batch["attention_mask"].sum(1)
    assert used.max() == batch["input_ids"].shape[1]
    first = batch["input_ids"][0]
    assert first[0] == tokenizer.cls_id and first[used[0] - 1] == tokenizer.sep_id
    assert tokenizer.decode(first) == "cat a mat"
    boundary = int(np.argmax(first == tokenizer.sep_id))
    assert batch["token_type_ids"][0].tolist() == [int(boundary < column < used[0]) for column in range(len(first))]
    assert (batch["input_ids"][batch["attention_mask"] == 0] == tokenizer.pad_id).all()
    assert tokenizer(["cat"], max_length=9, padding="max_length")["input_ids"].shape == (1, 9)
    assert tokenizer(["[MASK] cat"])["input_ids"][0, 1] == tokenizer.mask_id


words = st.lists(st.sampled_from(["cat", "mat", "unbelievable", "zzz", ",", "12"]), max_size=12).map(" ".join)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=3), st.integers(5, 20), st.booleans())
def test_truncation_is_that_of_the_library(tokenizer, pairs, max_length, paired):
    library = Tokenizer.from_str(tokenizer.backend.to_str())
    library.enable_truncation(max_length, strategy="longest_first")
    texts, seconds = [a for a, _ in pairs], [b for _, b in pairs]
    expected = library.encode_batch(list(zip(texts, seconds, strict=True)) if paired else texts)
    batch = tokenizer(texts, seconds if paired else None, max_length=max_length)
    for row, encoding in enumerate(expected):
        used = batch["attention_mask"][row].sum()
        assert batch["input_ids"][row, :used].tolist() == encoding.ids
        assert batch["token_type_ids"][row, :used].tolist() == encoding.type_ids


def test_bad_input(tokenizer):
    with pytest.raises(ValueError, match="list of texts"):
        tokenizer("one text")
    with pytest.raises(ValueError, match="empty"):
        tokenizer([])
    with pytest.raises(ValueError, match="2 texts, but 1 pairs"):
        tokenizer(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="max_length 3 leaves no room"):
        tokenizer(["a"], ["b"], max_length=3)
    with pytest.raises(ValueError, match="max_length"):
        tokenizer(["a"], padding="max_length")
    with pytest.raises(ValueError, match="vocab_size must be an integer from 16 to 10000000, not 3"):
        BertTokenizer.train(["a"], 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"texts": ["a", 3]}, r"texts\[1\] must be a str, not 3"),
        ({"texts": [b"a"]}, r"texts\[0\] must be a str, not b'a'"),
        ({"texts": [("a", "b")]}, r"texts\[0\] must be a str, not \('a', 'b'\)"),
        ({"texts": ["a", None]}, r"texts\[1\] must be a str, not None"),
        ({"texts": ["a", "b\ud800"]}, r"texts\[1\], character 1: '\\ud800' is half"),
        ({"texts": None}, "texts must be a list of texts"),
        ({"texts": {"a": 1}}, "texts must be a list of texts"),
        ({"texts": ["a"], "pairs": "b"}, "pairs must be a list of texts"),
        ({"texts": ["a"], "pairs": [1]}, r"pairs\[0\] must be a str"),
        ({"texts": ["a"], "max_length": 0}, "max_length must be an integer from 1 to .* not 0"),
        ({"texts": ["a"], "max_length": -3}, "max_length must be an integer"),
        ({"texts": ["a"], "max_length": 8.0}, "max_length must be an integer"),
        ({"texts": ["a"], "max_length": True}, "max_length must be an integer"),
        ({"texts": ["a"], "max_length": "8"}, "max_length must be an integer"),
        ({"texts": ["a"], "max_length": 2}, "max_length 2 leaves no room"),
        ({"texts": ["a"], "padding": True}, "padding must be 'longest' or 'max_length', not True"),
    ],
)
def test_refuses_by_name_and_place(tokenizer, arguments, words):
    with pytest.raises(ValueError, match=words):
        tokenizer(**arguments)


def test_decoding_refuses_what_is_no_token(tokenizer):
    for ids in ([5, 90], [-1], [2**40], np.array([5, -1])):
        with pytest.raises(ValueError, match="ids must lie between 0 and 89"):
            tokenizer.decode(ids)
    for ids in ([5.7], [[5, 6]], ["a"], [True]):
        with pytest.raises(ValueError, match="ids must be"):
            tokenizer.decode(ids)
    assert tokenizer.decode([]) == tokenizer.decode(iter([])) == ""
    assert tokenizer.decode(np.array([2, 5, 3], np.int64)) == tokenizer.decode(iter([5]))


def test_files_round_trip(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    texts = ["Unbelievable, Élan [MASK]!", "zebra 東京"]
    whole = BertTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    plain = BertTokenizer.from_pretrained(tmp_path)
    for other in (whole, plain):
        assert other.backend.get_vocab() == tokenizer.backend.get_vocab()
        np.testing.assert_equal(other(texts, texts), tokenizer(texts, texts))
    assert not list(tmp_path.glob("*.tmp"))


def test_unreadable_folders(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"neither tokenizer.json nor vocab.txt"):
        BertTokenizer.from_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\ncat\n")
    with pytest.raises(ValueError, match=r"lacks the special tokens \[UNK\], \[CLS\]"):
        BertTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer.json cannot be read"):
        BertTokenizer.from_pretrained(tmp_path)

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ValueError, match=r"some/name is not a folder.*no network"):
        BertTokenizer.from_pretrained("some/name")


def edited(tokenizer, change):
    content = json.loads(tokenizer.backend.to_str())
    change(content)
    return json.dumps(content)


def drop_mask(content):
    content["model"]["vocab"].pop("[MASK]")
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "[MASK]"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["model"]["vocab"].update({"far": 2**32 - 1}), "id 4294967295 is too high"),
        (lambda c: c["model"]["vocab"].update({"far": -1}), "-1"),
        (lambda c: c["model"].update({"unk_token": "<unk>"}), "unknown words become '<unk>'"),
        (lambda c: c.update({"post_processor": None}), r"must become \[CLS\] \[MASK\] \[SEP\] \[MASK\] \[SEP\]"),
        (lambda c: c.update({"added_tokens": []}), r"must become \[CLS\] \[MASK\] \[SEP\]"),
        (lambda c: c.update({"model": {"type": "BPE", "vocab": {"[PAD]": 0}, "merges": []}}), "BPE, not WordPiece"),
        (drop_mask, r"lacks the special tokens \[MASK\]"),
    ],
)
def test_tokenizers_of_another_kind_are_refused(tokenizer, tmp_path, change, words):
    (tmp_path / "tokenizer.json").write_text(edited(tokenizer, change))
    with pytest.raises(ValueError, match=rf"{tmp_path}/tokenizer.json cannot be read: .*{words}"):
        BertTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b'{"model": 1}', b"7"])
def test_junk_is_refused(tokenizer, tmp_path, content):
    tokenizer.save_pretrained(tmp_path)  # a good vocab.txt lies beside it
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/tokenizer.json cannot be read: .+$"):
        BertTokenizer.from_pretrained(tmp_path)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_damaged_files_give_a_tokenizer_or_an_error(tokenizer, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    content = bytearray(tokenizer.backend.to_str().encode())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at : at + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=8))
    (folder / "tokenizer.json").write_bytes(content)
    try:
        BertTokenizer.from_pretrained(folder)(["a cat"])
    except ValueError as error:
        assert str(folder) in str(error) and "\n" not in str(error)


def test_ids_without_a_token(tokenizer, tmp_path):
    holes = edited(tokenizer, lambda c: c["model"]["vocab"].update({"far": 95}))
    other = BertTokenizer(Tokenizer.from_str(holes))
    assert other.vocab_size == 96 and other.decode([95]) == "far"
    with pytest.raises(ValueError, match="ids must be tokens of the vocabulary, but 92, 93 are none"):
        other.decode([95, 92, 93])
    other.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    assert BertTokenizer.from_pretrained(tmp_path).backend.token_to_id("far") == 95


def test_tokens_that_are_no_line_are_not_saved(tokenizer, tmp_path):
    broken = edited(tokenizer, lambda c: c["model"]["vocab"].update({"two\nlines": 90}))
    with pytest.raises(ValueError, match=r"vocab.txt cannot hold the token 'two\\nlines'"):
        BertTokenizer(Tokenizer.from_str(broken)).save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_hugging_face_reads_what_we_write(tokenizer, tmp_path, peers):
    tokenizer.save_pretrained(tmp_path)
    texts, pairs = ["Unbelievable, Élan!", "the zebra"], ["12 mats", "cat [MASK]"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peers[1].BertTokenizerFast.from_pretrained(tmp_path)
        batch = theirs(texts, pairs, padding=True, truncation=True, max_length=9, return_tensors="np")
    ours = tokenizer(texts, pairs, max_length=9)
    for name, array in ours.items():
        np.testing.assert_array_equal(array, batch[name])
    assert theirs.mask_token_id == tokenizer.mask_id

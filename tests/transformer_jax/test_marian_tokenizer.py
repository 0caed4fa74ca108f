"""Marian's tokenizer: the ids of Hugging Face's MarianTokenizer, and files that it reads."""

import json

import pytest
import sentencepiece

from tests.transformer_jax.make_golden_marian import TEXTS
from tests.transformer_jax.marian_folders import golden_tokenizers, processor, tokenizer_folder
from transformer_jax.tokenizer import MarianTokenizer, file_name, load_tokenizer, save_tokenizer, serialized

CASES = {"one": 38, "two": 30}  # vocabularies, and words of the source


@pytest.mark.parametrize("case", CASES)
def test_ids_are_those_of_hugging_face(case, tmp_path):
    tokenizer_folder(case, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    rows = golden_tokenizers()[case]["texts"]
    assert [row[0] for row in rows] == TEXTS
    for text, source, target, back in rows:
        assert tokenizer.encode(text) == source
        assert tokenizer.encode_target(text) == target
        assert tokenizer.decode(target) == back
    assert tokenizer.encode(TEXTS) == [row[1] for row in rows]
    assert (tokenizer.vocab_size(), tokenizer.eos_id()) == (CASES[case], 0)
    assert tokenizer.target_vocab_size() == {"one": 38, "two": 24}[case]
    assert tokenizer.pad_id() == {"one": 37, "two": 20}[case]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_files_are_those_of_hugging_face(case, tmp_path, peers):
    _, transformers = peers
    tokenizer_folder(case, tmp_path)
    ours = load_tokenizer(tmp_path)
    (tmp_path / "ours").mkdir()
    save_tokenizer(tmp_path / "ours", ours)
    theirs = transformers.MarianTokenizer.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_tokenizer(tmp_path / "theirs")
    for text in TEXTS:
        ids = ours.encode(text)
        assert [*ids, 0] == theirs(text)["input_ids"] and again.encode(text) == ids
        target = theirs(text_target=text)["input_ids"]
        assert [*ours.encode_target(text), 0] == target and again.encode_target(text) == target[:-1]
        assert ours.decode(target) == theirs.decode(target, skip_special_tokens=True, use_source_tokenizer=False)


def test_what_is_saved_is_the_same(tmp_path):
    tokenizer_folder("two", tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    (tmp_path / "again").mkdir()
    save_tokenizer(tmp_path / "again", tokenizer)
    names = {"vocab.json", "target_vocab.json", "tokenizer_config.json", "source.spm", "target.spm"}
    assert {path.name for path in (tmp_path / "again").iterdir()} == names
    assert serialized(load_tokenizer(tmp_path / "again")) == serialized(tokenizer)
    assert file_name(tokenizer) == "vocab.json"
    for name in ("source.spm", "target.spm"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_marians_files_go_before_others(tmp_path):
    """Such folders hold what other programs made of them, too."""
    tokenizer_folder("one", tmp_path)
    save_tokenizer(tmp_path, processor())
    (tmp_path / "tokenizer.json").write_text("{}")
    assert isinstance(load_tokenizer(tmp_path), MarianTokenizer)


def test_two_models_with_a_vocabulary_each(tmp_path):
    tokenizer_folder("two", tmp_path)
    target = sentencepiece.SentencePieceProcessor(model_proto=processor().serialized_model_proto())
    tokenizer = MarianTokenizer.of_sentencepiece(processor(), target)
    assert tokenizer.settings["separate_vocabs"]
    for text in ("the quick fox", "日本"):
        assert tokenizer.encode(text) == tokenizer.encode_target(text) == processor().encode(text)
    assert (tokenizer.pad_id(), tokenizer.eos_id(), tokenizer.target_vocab_size()) == (0, 1, 32)
    other = load_tokenizer(tmp_path).source  # of other ids, and without padding
    with pytest.raises(ValueError, match="the source's SentencePiece model has no token for pad"):
        MarianTokenizer.of_sentencepiece(other, target)
    with pytest.raises(ValueError, match="target_vocab lacks <pad>"):
        MarianTokenizer.of_sentencepiece(processor(), other)


def test_ids_of_no_piece_are_refused(tmp_path):
    tokenizer_folder("one", tmp_path)
    with pytest.raises(IndexError, match="no piece has the id 38"):
        load_tokenizer(tmp_path).decode([4, 38])


# --- files that are wrong ----------------------------------------------------------------------------------------


def edit(name, **changes):
    def change(folder):
        value = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({k: v for k, v in value.items() if v is not None}))

    return change


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "target.spm").unlink(), "target.spm cannot be read as a SentencePiece model"),
        (lambda folder: (folder / "vocab.json").unlink(), "vocab.json is not JSON: .*No such file"),
        (lambda folder: (folder / "target_vocab.json").unlink(), "target_vocab.json is not JSON: .*No such file"),
        (write("source.spm", b""), "source.spm cannot be read as a SentencePiece model"),
        (write("source.spm", b"\x80nonsense"), "source.spm cannot be read as a SentencePiece model"),
        (write("vocab.json", b"[]"), "vocab.json holds list, not a JSON object"),
        (write("vocab.json", b'{"a": 1, "a": 2}'), "the key 'a' is there more than once"),
        (write("vocab.json", b"{}"), "vocab lacks </s>, <unk>, <pad>"),
        (edit("vocab.json", **{"</s>": None}), "vocab lacks </s>"),
        (edit("vocab.json", **{"<unk>": None}), "vocab lacks <unk>"),
        (edit("target_vocab.json", **{"<pad>": None}), "target_vocab lacks <pad>"),
        (edit("vocab.json", x=1), "vocab: 30 pieces have 29 ids"),
        (edit("vocab.json", x=-1), "vocab: ids are integers from 0, but x -1 are not"),
        (edit("vocab.json", x="1"), "vocab: ids are integers from 0, but x '1' are not"),
        (edit("vocab.json", x=True), "vocab: ids are integers from 0, but x True are not"),
        (edit("vocab.json", **{"</s>": 77}), "</s> is 77 in vocab, but 0 in target_vocab"),
        (edit("tokenizer_config.json", separate_vocabs=1), "separate_vocabs must be true or false, not 1"),
        (edit("tokenizer_config.json", eos_token=7), "eos_token must be a token, not 7"),
        (edit("tokenizer_config.json", unk_token="<what>"), "vocab lacks <what>"),
        (edit("tokenizer_config.json", pad_token={"a": 1}), "pad_token must be a token, not {'a': 1}"),
        (
            edit("tokenizer_config.json", added_tokens_decoder={"40": {"content": "<new>"}}),
            "added_tokens_decoder: tokens that are added to the vocabulary are not read: <new>",
        ),
        (edit("tokenizer_config.json", extra_special_tokens=["<a>"]), "extra_special_tokens: .* are not read: <a>"),
        (edit("tokenizer_config.json", additional_special_tokens="<a>"), "additional_special_tokens must be a list"),
    ],
)
def test_what_is_no_tokenizer(tmp_path, change, message):
    tokenizer_folder("two", tmp_path)
    change(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 800


def test_tokens_that_are_named_as_objects(tmp_path):
    """As the library wrote them before version 5."""
    tokenizer_folder("one", tmp_path)
    ids = load_tokenizer(tmp_path).encode("the</s> dog")
    names = {"0": {"content": "</s>", "special": True}, "1": {"content": "<unk>"}, "37": {"content": "<pad>"}}
    edit("tokenizer_config.json", eos_token={"content": "</s>", "lstrip": False}, added_tokens_decoder=names)(tmp_path)
    assert load_tokenizer(tmp_path).encode("the</s> dog") == ids

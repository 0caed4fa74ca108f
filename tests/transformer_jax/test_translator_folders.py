"""Translators out of folders: which files they hold, and what is refused."""

import io
import random

import numpy as np
import pytest
import sentencepiece
import tokenizers

from transformer_jax import Translator
from transformer_jax.texts import TextsCut
from transformer_jax.tokenizer import JsonTokenizer, load_sentencepiece, save_tokenizer


@pytest.fixture(scope="module")
def vocabulary():
    """A SentencePiece model of 11 pieces."""
    model, draw = io.BytesIO(), random.Random(0)
    sentences = ["".join(draw.choices("abcdefg", k=6)) for _ in range(40)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=11,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=3,
    )
    return model.getvalue()


@pytest.fixture
def export(tiny, vocabulary, tmp_path):
    model, params = tiny
    model.save_pretrained(tmp_path, params)
    (tmp_path / "spm.model").write_bytes(vocabulary)
    return tmp_path


def test_a_folder_with_its_vocabulary_translates(export):
    assert Translator.from_pretrained(export, num_beams=1, batch_size=2).tokenizer.vocab_size() == 11


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "nor tokenizer.json"),
        (b"", ""),
        (b"junk" * 50, ""),
        ("folder", "directory"),
        ("cut", "vocab_size in config.json"),
    ],
)
def test_a_vocabulary_that_cannot_be_read_is_named(export, vocabulary, content, message):
    path = export / "spm.model"
    path.unlink()
    if content == "folder":
        path.mkdir()
    elif content == "cut":  # in front of its last piece: a smaller vocabulary
        whole = sentencepiece.SentencePieceProcessor(model_proto=vocabulary)
        last = whole.id_to_piece(10).encode()
        path.write_bytes(vocabulary[: vocabulary.index(b"\n" + bytes([len(last)]) + last + b"\x15") - 2])
        assert load_sentencepiece(path).vocab_size() == 10
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"spm.model .*{message}"):
        Translator.from_pretrained(export)


def test_options_and_vocabularies_of_a_folder_are_refused_with_its_path(export, make_transformer):
    with pytest.raises(ValueError, match=f"{export}: max_length must be"):
        Translator.from_pretrained(export, max_length=0)
    smaller, params = make_transformer(vocab_size=10)
    smaller.save_pretrained(export, params)
    with pytest.raises(ValueError, match=f"{export}/spm.model has 11 words, but vocab_size in config.json is 10"):
        Translator.from_pretrained(export)


# --- a folder with a tokenizer of the `tokenizers` library -------------------------------------------------------

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "ab", "##c", "cab", "d", "##d"]


@pytest.fixture(scope="module")
def starting(make_transformer):
    """A model whose sources begin with [CLS]; its table has more rows than there are pieces."""
    ids = {"eos_id": 3, "encoder_start_id": 2, "decoder_start_id": 2}
    return make_transformer(**ids, embeddings="normalised", positions="learned", max_length=60)


@pytest.fixture
def wordpiece():
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]")
    )
    backend.normalizer = tokenizers.normalizers.Lowercase()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.decoder = tokenizers.decoders.WordPiece(prefix="##")
    backend.add_special_tokens(PIECES[:4])
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    return JsonTokenizer(backend)


def test_a_json_tokenizer_gives_text_alone(wordpiece):
    assert wordpiece.encode("ABC cab dd") == [4, 5, 6, 7, 8]
    assert wordpiece.encode(["abc", "", "d x"]) == [[4, 5], [], [7, 1]]
    assert wordpiece.decode([2, 4, 5, 10, 7, 8, 3]) == "abc dd"  # 10 is no token
    assert (wordpiece.vocab_size(), wordpiece.pad_id(), wordpiece.eos_id()) == (9, 0, 3)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    assert (JsonTokenizer(words).pad_id(), JsonTokenizer(words).eos_id()) == (-1, -1)


def test_sources_begin_as_the_model_says(starting, wordpiece, calls):
    Translator(*starting, wordpiece, batch_size=2, max_length=5)(["abc", ""])
    np.testing.assert_array_equal(calls[0][0][:, :5], [[2, 4, 5, 3, 0]])
    with pytest.warns(TextsCut, match="the first 5 tokens"):
        Translator(*starting, wordpiece, batch_size=1, max_length=5)(["abc abc d"])
    np.testing.assert_array_equal(calls[1][0][:, :8], [[2, 4, 5, 4, 3, 0, 0, 0]])


def test_neither_side_is_longer_than_a_learned_table(starting, wordpiece, calls, monkeypatch):
    with pytest.warns(TextsCut, match="the first 60 tokens"):
        Translator(*starting, wordpiece, batch_size=1, max_length=100)(["cab " * 70])
    Translator(*starting, wordpiece, batch_size=1, max_length=50)(["cab " * 40])
    assert [(ids.shape, options.max_length) for ids, options in calls] == [((1, 60), 60), ((1, 60), 60)]
    monkeypatch.undo()
    model, params = starting
    short = Translator(model, params, wordpiece, num_beams=1, batch_size=1)
    assert isinstance(short(["cab " * 58])[0], str)  # all of the table


def test_a_folder_says_by_its_files_which_tokenizer_it_has(starting, wordpiece, tmp_path):
    model, params = starting
    model.save_pretrained(tmp_path, params)
    save_tokenizer(tmp_path, wordpiece)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    read = Translator.from_pretrained(tmp_path, num_beams=1, batch_size=2)
    assert read.tokenizer.encode("abc") == [4, 5]
    sentences = ["abc", "d cab"]
    assert read(sentences) == Translator(model, params, wordpiece, num_beams=1, batch_size=2)(sentences)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"junk", b"\xff\xfe", b'{"model": {"type": "WordPiece", "vocab": {}}}']
)
def test_a_json_tokenizer_that_cannot_be_read_is_named(starting, tmp_path, content):
    starting[0].save_pretrained(tmp_path, starting[1])
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"{tmp_path}/tokenizer.json cannot be read: ") as caught:
        Translator.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_json_tokenizer_of_another_model_is_refused(starting, tiny, wordpiece, make_transformer, tmp_path):
    save_tokenizer(tmp_path, wordpiece)
    small, params = make_transformer(vocab_size=8, eos_id=3)
    small.save_pretrained(tmp_path, params)
    with pytest.raises(ValueError, match=f"{tmp_path}/tokenizer.json has 9 words, but vocab_size in config.json is 8"):
        Translator.from_pretrained(tmp_path)
    tiny[0].save_pretrained(tmp_path, tiny[1])
    with pytest.raises(ValueError, match=f"{tmp_path}: eos_id of the tokenizer is 3, but that of the model 1"):
        Translator.from_pretrained(tmp_path)

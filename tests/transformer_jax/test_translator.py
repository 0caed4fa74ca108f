import io
import random

import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
import tokenizers

from transformer_jax import Translator, generate, translator
from transformer_jax.tokenizer import JsonTokenizer, load_sentencepiece, save_tokenizer

LETTERS = "abcdefgh"


class Letters:
    """A letter is a token; 0 is padding and 1 the end."""

    def encode(self, text):
        return [LETTERS.index(letter) + 2 for letter in text]

    def decode(self, ids):
        return "".join(LETTERS[i - 2] if i > 1 else "?" for i in ids)


@pytest.fixture
def calls(monkeypatch):
    """Stands a model in that copies its source, and keeps what it was asked."""
    calls = []

    def copy(model, params, input_ids, **options):
        calls.append((np.asarray(input_ids), options))
        out = np.zeros((len(input_ids), options["max_length"]), np.int32)
        copied = input_ids[:, : options["max_length"] - 1]
        out[:, 1 : copied.shape[1] + 1] = copied
        return out

    monkeypatch.setattr(translator, "generate", copy)
    return calls


def test_sentences_come_back_in_their_order(tiny, calls):
    sentences = ["abc", "", "h" * 20, "a", "gfe", "ba" * 5, "c"]
    assert Translator(*tiny, Letters(), batch_size=2)(sentences) == sentences
    assert [ids.shape for ids, _ in calls] == [(2, 8), (2, 8), (2, 24)]


def test_batches_are_full_and_the_rows_that_fill_them_are_ends(tiny, calls):
    Translator(*tiny, Letters(), batch_size=4)(["ab", "c"])
    ((ids, options),) = calls
    expected = np.zeros((4, 8), np.int32)
    expected[:, 0] = 1
    expected[0, :2], expected[1, :3] = (4, 1), (2, 3, 1)
    np.testing.assert_array_equal(ids, expected)
    assert options == {"num_beams": 4, "length_penalty": 0.6, "max_length": 58, "preset": "paper"}


def test_options_reach_the_search(tiny, calls):
    Translator(*tiny, Letters(), num_beams=2, length_penalty=1.5, preset="hf")(["a"])
    assert calls[0][1] == {"num_beams": 2, "length_penalty": 1.5, "max_length": 58, "preset": "hf"}


def test_long_sources_are_cut_with_a_warning_and_keep_their_end(tiny, calls):
    translate = Translator(*tiny, Letters(), max_length=5, batch_size=1)
    with pytest.warns(UserWarning, match=r"1 of 2 sentences were cut to max_length 5 .* sentence 0 has 9;"):
        assert translate(["abcdefgh", "abcd"]) == ["abcd", "abcd"]
    np.testing.assert_array_equal(calls[0][0][0], [2, 3, 4, 5, 1, 0, 0, 0])


def test_an_output_without_an_end_is_whole(tiny, monkeypatch):
    monkeypatch.setattr(translator, "generate", lambda *_, **__: np.array([[0, 2, 3, 4]]))
    assert Translator(*tiny, Letters(), batch_size=1)(["a"]) == ["abc"]


def test_nothing_to_translate(tiny, calls):
    assert Translator(*tiny, Letters())([]) == []
    assert not calls


def test_widths_are_few_and_hold_their_sources():
    widths = [translator._bucket(n) for n in range(1, 513)]
    assert sorted(set(widths)) == [8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
    assert all(width >= n for n, width in enumerate(widths, 1))
    assert all(width <= 1.5 * n for n, width in enumerate(widths, 1) if n > 16)


def test_a_translation_is_what_generate_gives(make_transformer):
    model, params = make_transformer(vocab_size=10, max_length=128)
    sentences = ["abcabc", "h", "de"]
    translated = Translator(model, params, Letters(), num_beams=2, batch_size=2)(sentences)
    for sentence, text in zip(sentences, translated, strict=True):
        source = np.zeros((2, 8), np.int32)
        source[:, : len(sentence) + 1] = [*Letters().encode(sentence), 1]
        ids = generate(model, params, source, num_beams=2, length_penalty=0.6, max_length=58, preset="paper")
        words = np.asarray(ids)[0, 1:].tolist()
        assert text == Letters().decode(words[: words.index(1)] if 1 in words else words)


# --- what cannot be translated -----------------------------------------------------------------------------------


def test_a_sentence_without_a_word_is_empty(tiny, calls):
    assert Translator(*tiny, Letters())(["", " ", "\t\n\u3000", "ab", ""]) == ["", "", "", "ab", ""]
    assert len(calls) == 1
    assert Translator(*tiny, Letters())(["", " "]) == ["", ""]
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        ("abc", "give a list of sentences, not 'abc'"),
        (b"abc", "give a list of sentences, not b'abc'"),
        (None, "give a list of sentences, not None"),
        (7, "give a list of sentences, not 7"),
        ({"a": "b"}, "give a list of sentences, not {'a': 'b'}"),
        (["a", None], "sentence 1 must be a string, not None"),
        (["a", "b", b"c"], "sentence 2 must be a string, not b'c'"),
        ([["a", "b"]], r"sentence 0 must be a string, not \['a', 'b'\]"),
        (["a", "b\ud800"], "sentence 1 is not Unicode: .*surrogates"),
    ],
)
def test_what_is_no_list_of_sentences_is_refused(tiny, calls, sentences, message):
    with pytest.raises(ValueError, match=message):
        Translator(*tiny, Letters())(sentences)
    assert not calls


def test_sentences_that_are_cut_are_counted_and_named(tiny, calls):
    sentences = ["abc", *["a" * n for n in range(10, 18)], "a" * 10_000]
    with pytest.warns(UserWarning) as caught:
        Translator(*tiny, Letters(), max_length=8)(sentences)
    (warning,) = caught
    assert str(warning.message).startswith("9 of 10 sentences were cut to max_length 8 tokens, end included: ")
    assert "sentence 1 has 11, sentence 2 has 12" in str(warning.message) and "and 4 more" in str(warning.message)
    assert warning.filename == __file__


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *[({"max_length": n}, "max_length must be an integer from 2 to") for n in (0, 1, -3, 2.5, 2**40, None)],
        *[({"batch_size": n}, "batch_size must be an integer from 1 to") for n in (0, -1, "8", True)],
        *[({"num_beams": n}, "num_beams must be an integer from 1 to") for n in (0, -1, 4.0, 10**9)],
        *[({"length_penalty": x}, "length_penalty must be a number from -5 to 5") for x in (np.nan, np.inf, 99, "1")],
        ({"preset": "marian"}, "preset must be 'hf' or 'paper', not 'marian'"),
    ],
)
def test_options_are_checked_when_a_translator_is_made(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        Translator(*tiny, Letters(), **options)


class Sized(Letters):
    def __init__(self, words=11, eos=1, pad=0):
        self.vocab_size, self.eos_id, self.pad_id = lambda: words, lambda: eos, lambda: pad


def test_a_tokenizer_that_is_not_the_models_is_refused(tiny):
    for tokenizer in (Sized(), Sized(words=10), Sized(eos=-1, pad=-1), Letters()):
        Translator(*tiny, tokenizer)
    for tokenizer, message in (
        (Sized(words=12), "the tokenizer has 12 words, but the model's vocab_size is 11"),
        (Sized(eos=2), "eos_id of the tokenizer is 2, but that of the model 1"),
        (Sized(pad=3), "pad_id of the tokenizer is 3, but that of the model 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Translator(*tiny, tokenizer)


def test_parameters_that_are_nan_translate_nothing(tiny):
    model, params = tiny
    broken = {**params, "embedding": {"embedding": params["embedding"]["embedding"] * jnp.nan}}
    with pytest.raises(ValueError, match="scores that are not finite"):
        Translator(model, broken, Letters(), num_beams=1, batch_size=2)(["ab"])


# --- a folder ----------------------------------------------------------------------------------------------------


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
    np.testing.assert_array_equal(calls[0][0], [[2, 4, 5, 3, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0, 0, 0]])
    with pytest.warns(UserWarning, match="sentence 0 has 7"):
        Translator(*starting, wordpiece, batch_size=1, max_length=5)(["abc abc d"])
    np.testing.assert_array_equal(calls[1][0], [[2, 4, 5, 4, 3, 0, 0, 0]])


def test_neither_side_is_longer_than_a_learned_table(starting, wordpiece, calls, monkeypatch):
    with pytest.warns(UserWarning, match="cut to max_length 60 tokens, end included: sentence 0 has 72; split them$"):
        Translator(*starting, wordpiece, batch_size=1, max_length=100)(["cab " * 70])
    Translator(*starting, wordpiece, batch_size=1, max_length=50)(["cab " * 40])
    assert [(ids.shape, options["max_length"]) for ids, options in calls] == [((1, 60), 60), ((1, 48), 60)]
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

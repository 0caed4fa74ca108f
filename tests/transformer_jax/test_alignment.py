"""Which word came from which, by what the decoder attends to."""

import io
import warnings

import jax
import numpy as np
import pytest
import sentencepiece
import tokenizers

from tests.transformer_jax.marian_folders import golden_tokenizers, own_model, tokenizer_folder
from tests.transformer_jax.test_translator import LETTERS, Letters
from transformer_jax import Translator
from transformer_jax.alignment import align_words, decoder_layer, words_of_tokens
from transformer_jax.spans import token_spans
from transformer_jax.texts import TextsCut
from transformer_jax.tokenizer import JsonTokenizer, load_tokenizer

# --- which tokens a word is made of ------------------------------------------------------------------------------


def owners(tokenizer, text, name="sentences", words=str.split):
    """The word of each token, none of which belongs to several."""
    (shares_TW,) = words_of_tokens(tokenizer, name, [text], words, 99)
    assert ((shares_TW == 1).sum(axis=1) == 1).all()
    return shares_TW.argmax(axis=1).tolist()


@pytest.fixture(scope="module")
def bytewise():
    """A SentencePiece model that normalises as usual and spells what it does not know in bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the fox ran over", "a dog is here"] * 9),
        model_writer=model,
        vocab_size=290,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=3,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("  the  fox ", ["▁the", "▁fox"]),
        # A character that becomes three, white space that Python alone calls so, characters of several bytes.
        ("a\u3000dog ½", ["▁a", "▁dog", "▁<0x31><0xE2><0x81><0x84><0x32>"]),
        ("b日 the", ["▁<0x62><0xE6><0x97><0xA5>", "▁the"]),
        ("x\tthe▁fox", ["▁x", "▁the▁fox"]),  # a mark in the text is no white space
    ],
)
def test_words_of_sentencepiece(bytewise, text, words):
    made = [""] * len(words)
    for word, piece in zip(owners(bytewise, text), bytewise.encode(text, out_type=str), strict=True):
        made[word] += piece
    assert made == words


def test_words_of_a_marian(tmp_path):
    """Two SentencePiece models, and tokens that stand in the text as they are."""
    tokenizer_folder("two", tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    for text, source_ids, target_ids, _ in golden_tokenizers()["two"]["texts"]:
        found = len(token_spans(tokenizer, text)), len(token_spans(tokenizer, text, target=True))
        assert found == (len(source_ids), len(target_ids))
    text = ">>fra<< the dog</s> un"
    pieces, others = (model.encode(" un", out_type=str) for model in (tokenizer.source, tokenizer.target))
    assert len(pieces) != len(others)
    for name, last in (("sentences", pieces), ("translations", others)):
        found = owners(tokenizer, text, name)
        assert found[0] == 0 and found[-len(last) :] == [3] * len(last) and found[-len(last) - 1] == 2
        assert sorted({*found}) == [0, 1, 2, 3] and found == sorted(found)


def test_words_of_a_json_tokenizer():
    words = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "ab": 1, "##c": 2}, unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = tokenizers.normalizers.Lowercase(), tokenizers.pre_tokenizers.Whitespace()
    assert owners(JsonTokenizer(words), "ABC é!  ab") == [0, 0, 1, 1, 2]
    bytes_of = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    alphabet = {byte: i for i, byte in enumerate(sorted(bytes_of.alphabet()))}
    spelled = tokenizers.Tokenizer(tokenizers.models.BPE(alphabet, []))
    spelled.pre_tokenizer = bytes_of
    assert owners(JsonTokenizer(spelled), "é b") == [0, 0, 1, 1]  # the space begins the word behind it


class Spelled(Letters):
    """A letter is a token; spaces are none."""

    def encode(self, text):
        return super().encode(text.replace(" ", ""))

    def spans(self, text):
        return [(i, i + 1) for i, letter in enumerate(text) if letter != " "]


def test_other_words_than_those_between_spaces():
    assert owners(Spelled(), "我想回家", words=list) == [0, 1, 2, 3]
    assert owners(Spelled(), "我想回家", words=lambda text: [text[:2], text[2:]]) == [0, 0, 1, 1]
    for wrong in (["回", "想"], ["我", ""], ["我我"]):
        with pytest.raises(ValueError, match=r"translations\[1\] has no word .* from its character \d on"):
            words_of_tokens(Spelled(), "translations", ["", "我想回家"], lambda text, w=wrong: w if text else [], 99)


def test_a_token_of_several_words_is_shared():
    class Long(Spelled):
        def spans(self, text):
            return [(0, 4), (4, 5), (5, 5)]

    (shares,) = words_of_tokens(Long(), "sentences", ["a b c "], str.split, 99)
    np.testing.assert_array_equal(shares, [[0.5, 0.5, 0], [0, 0, 1], [0, 0, 0]])  # nothing stands behind the last
    found = align_words(np.array([[0.2, 0.3, 0.1]], np.float32), shares, np.ones((1, 1), np.float32))
    np.testing.assert_allclose(found.weights, [[0.1, 0.1, 0.3]], rtol=1e-6)
    assert found.links == ((2, 0),)


# --- what words attend to ----------------------------------------------------------------------------------------


def copying(**options):
    """A model of which one head of the middle layer of three attends to the place in the source where it stands."""
    sizes = {"features": 16, "num_heads": 2, "key_dim": 16, "decoder_layers": 3, "max_length": 16}
    model, params = own_model(10, **sizes, positions="learned", **options)
    params = jax.tree.map(np.zeros_like, params)
    flat, tree = jax.tree_util.tree_flatten_with_path(params)
    params = tree.unflatten([leaf + (path[-1].key == "scale") for path, leaf in flat])
    (table,) = params["positions"].values()
    table[:] = np.eye(16)
    cross = params["decoder"]["layer_1"]["cross_attention"]
    cross["query"]["kernel"][:, 0] = cross["key"]["kernel"][:, 0] = 4 * np.eye(16)
    return model, params


@pytest.fixture(scope="module")
def copier():
    return Translator(*copying(), Spelled(), batch_size=4)


def test_the_attention_of_words(copier):
    """Half of it, of one head, is on the own place; that of the other head is alike on all five, the end among them."""
    first, *others = copier.align(["ab cd", "", "ab", " ", "a b c"], ["a bcd", "a b", " ", "", "cb a"])
    np.testing.assert_allclose(first.weights, [[0.7, 0.2], [0.2 + 0.5 / 3, 0.2 + 1 / 3]], atol=1e-6)
    assert first.links == ((0, 0), (1, 1)) and first.pharaoh() == "0-0 1-1"
    assert [other.links for other in others] == [(), (), (), ((0, 0), (2, 1))]
    assert [other.weights.shape for other in others] == [(2, 0), (0, 1), (0, 0), (2, 3)]
    (all_alike,) = copier.align(["ab cd"], ["a bcd"], layer=-1)
    np.testing.assert_allclose(all_alike.weights, np.full((2, 2), 0.4), atol=1e-6)
    (split,) = Translator(*copying(), Spelled(), batch_size=4, mesh=jax.make_mesh((2,), ("a",))).align(
        ["ab cd"], ["a bcd"]
    )
    np.testing.assert_allclose(split.weights, first.weights, atol=1e-6)


def test_the_start_of_a_source_is_no_word():
    """The source stands one place further behind."""
    translate = Translator(*copying(encoder_start_id=3), Spelled(), batch_size=4)
    (found,) = translate.align(["a b c d"], ["a b c d"])
    np.testing.assert_allclose(found.weights, 0.5 * np.eye(4, k=-1) + 0.5 / 6, atol=1e-6)


def test_what_is_cut_has_no_links(copier):
    long = " ".join(LETTERS * 3)
    with pytest.warns(TextsCut) as caught:
        first, second = copier.align([long, "a"], ["a b c", long])
    assert [(str(w.message).split(": ")[1], w.filename) for w in caught] == [
        ("the end of texts 0 is left out", __file__),
        ("the end of translations 1 is left out", __file__),
    ]
    assert first.links == ((0, 0), (1, 1), (2, 2)) and not first.weights[:, 15:].any() and first.weights[:, :15].all()
    assert second.weights[:16].all() and not second.weights[16:].any() and len(second.links) == 16


def test_the_layer():
    assert [decoder_layer(None, count) for count in (1, 2, 3, 6)] == [0, 0, 1, 4]
    assert [decoder_layer(layer, 3) for layer in (0, 2, -1, -3)] == [0, 2, 2, 0]
    for wrong in (3, -4, True, 1.0, "1"):
        with pytest.raises(ValueError, match="layer must be an integer from -3 to 2, not "):
            decoder_layer(wrong, 3)


def test_what_cannot_be_aligned_is_refused(copier):
    for sentences, translations, words in (
        (["a"], ["a", "b"], "2 translations for 1 sentences: give one for each"),
        ("a", ["a"], "give a list of sentences, not 'a'"),
        (["a"], [None], r"translations\[0\] must be a string, not None"),
    ):
        with pytest.raises(ValueError, match=words):
            copier.align(sentences, translations)
    model, params = copying()
    with pytest.raises(ValueError, match="a Letters does not say where its tokens stand: it has no method spans"):
        Translator(model, params, Letters()).align(["a"], ["a"])
    broken = {**params, "positions": jax.tree.map(lambda x: x * np.nan, params["positions"])}
    with pytest.raises(ValueError, match="attention is not finite: look for nan or infinity"):
        Translator(model, broken, Spelled(), batch_size=4).align(["a", "b", "c", "d"], ["a"] * 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert copier.align([], []) == []

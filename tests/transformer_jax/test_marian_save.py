"""Models as Marian folders: what PyTorch's library and CTranslate2 make of them, we make of them."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import sentencepiece

from tests.transformer_jax.make_golden_marian import ODD, inputs
from tests.transformer_jax.marian_folders import (
    SENTENCES,
    edit_tensors,
    fitting_tokenizer,
    golden,
    logits_of,
    odd_folder,
    own_model,
    processor,
    same,
    sinusoids,
)
from train.data.parallel import train_sentencepiece
from transformer_jax import Transformer, TransformerConfig, save_marian, stack_layers
from transformer_jax.decoding_defaults import DecodingDefaults, read_decoding_defaults
from transformer_jax.tags import check_tags
from transformer_jax.tokenizer import load_tokenizer, pieces_of

SWISH, RELU, GELU, UNTIED = ODD
ATOL = 2e-4  # float32, two libraries
DECODER_POSITIONS = "model.decoder.embed_positions.weight"


@pytest.mark.parametrize("odd", ODD)
def test_a_marian_is_written_as_it_was(odd, tmp_path):
    tensors = odd_folder(odd, tmp_path)
    model, params = Transformer.from_pretrained(tmp_path)
    decoding = DecodingDefaults(num_beams=6, bad_words_ids=((3,), (4, 5)), renormalize_logits=True)
    save_marian(tmp_path / "new" / "folder", model, params, fitting_tokenizer(model.config), decoding)
    written = safetensors.numpy.load_file(tmp_path / "new" / "folder" / "model.safetensors")
    if odd == UNTIED:
        tensors.pop("model.shared.weight")  # which nothing reads
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(written[name], tensor)
    ours = json.loads((tmp_path / "new" / "folder" / "config.json").read_text())
    theirs = json.loads((tmp_path / "config.json").read_text())
    changed = {"share_encoder_decoder_embeddings"} if odd == UNTIED else set()
    assert {name for name, value in ours.items() if theirs[name] != value} == changed
    assert read_decoding_defaults(tmp_path / "new" / "folder") == decoding
    assert Transformer.from_pretrained(tmp_path / "new" / "folder")[0] == model


BATCH = {
    "input_ids": np.array([[5, 9, 33, 4, 1], [7, 8, 1, 0, 0]]),
    "attention_mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    "decoder_input_ids": np.array([[0, 4, 35, 6], [0, 2, 11, 3]]),
}
OWN = {
    "the paper's": {},
    "halves, not scaled": {"positions": "halves", "embeddings": "plain", "activation": "gelu_new", "scan_layers": True},
    "tables of their own": {
        "share_encoder_decoder_embeddings": False,
        "tie_word_embeddings": False,
        "final_logits_bias": True,
        "decoder_start_id": 1,
    },
}


def with_start(batch, start):
    ids = batch["decoder_input_ids"].copy()
    ids[:, 0] = start
    return {**batch, "decoder_input_ids": ids}


@pytest.fixture(params=OWN, scope="module")
def own(request, tmp_path_factory):
    """(folder, logits of the model that was written there)"""
    model, params = own_model(**OWN[request.param])
    folder = tmp_path_factory.mktemp("own")
    arranged = stack_layers(params) if model.config.scan_layers else params
    save_marian(folder, model, arranged, processor())
    return folder, logits_of(model, arranged, **with_start(BATCH, model.config.decoder_start_id))


def test_our_own_model_as_a_marian_is_the_same_model(own):
    folder, expected = own
    model, params = Transformer.from_pretrained(folder)
    c = model.config
    assert (c.vocab_size, c.pad_id, c.decoder_start_id, c.positions, c.norm) == (37, 36, 36, "halves", "post")
    logits = logits_of(model, params, **with_start(BATCH, 36))
    np.testing.assert_allclose(logits[..., :36], expected, atol=1e-5)  # sums of the width in another order
    assert (logits[..., 36] < -9000).all()


def test_a_start_that_is_not_zero_is_in_the_first_position(own):
    """CTranslate2 and Marian start from zeros."""
    folder, _ = own
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    table = tensors.get("model.shared.weight", tensors.get("model.decoder.embed_tokens.weight"))
    assert table.shape == (37, 12) and not table[36].any() and table[0].any()
    beside = tensors[DECODER_POSITIONS] - sinusoids(40, 12)
    assert np.abs(beside[1:]).max() < 1e-6 and np.abs(beside[0]).max() > 0.1
    # Read and written once more it is the same; in a file that does not forbid the start nothing else is said by it.
    model, params = Transformer.from_pretrained(folder)
    save_marian(folder / "again", model, params, load_tokenizer(folder))
    again = safetensors.numpy.load_file(folder / "again" / "model.safetensors")
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_allclose(again[name], tensor, atol=1e-6)
    kind = ml_dtypes.bfloat16
    edit_tensors(folder / "again", lambda t: t.update({name: tensor.astype(kind) for name, tensor in t.items()}))
    rounded = Transformer.from_pretrained(folder / "again")[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.01, atol=0.01), rounded, params)
    edit_tensors(folder / "again", lambda t: t["final_logits_bias"].fill(0))
    with pytest.raises(ValueError, match=f"row 0 of {DECODER_POSITIONS} is no sinusoid"):
        Transformer.from_pretrained(folder / "again")


def test_the_vocabulary_of_our_own_model(own):
    folder, _ = own
    vocab = json.loads((folder / "vocab.json").read_text())
    assert [*vocab.values()] == [*range(37)]
    assert vocab["<pad>"] == 36 and vocab["<unused0>"] == 0 and vocab["<unused34>"] == 34
    assert {piece: i for piece, i in pieces_of(processor()).items() if i}.items() <= vocab.items()
    tokenizer = load_tokenizer(folder)
    for text in ("the quick fox", "", "über 日本"):
        assert tokenizer.encode(text) == tokenizer.encode_target(text) == processor().encode(text)
    assert tokenizer.decode(tokenizer.encode("a lazy fox")) == "a lazy fox"
    assert read_decoding_defaults(folder) == DecodingDefaults(
        num_beams=4, max_length=40, bad_words_ids=((36,),), forced_eos_token_id=1
    )


TAGGED = (">>de<< the quick fox", ">>fr<<", ">>de<< <BT> a dog", "a dog", ">>xx<< a dog", "<BT> fox")


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    """A model of several languages, whose sources begin with tags: (SentencePiece's ids of texts, Marian folder)."""
    made = train_sentencepiece([(text, text) for text in SENTENCES], 31, [">>de<<", ">>fr<<", "<BT>"]).processor
    model, params = own_model(31)
    folder = tmp_path_factory.mktemp("tagged")
    save_marian(folder, model, params, made)
    return {text: made.encode(text) for text in TAGGED}, folder


def test_tags_of_languages_are_tokens_of_the_marian(tagged):
    expected, folder = tagged
    tokenizer = load_tokenizer(folder)
    check_tags(tokenizer, [">>de<<", ">>fr<<", "<BT>"])
    assert all(tokenizer.encode(text) == ids for text, ids in expected.items() if ">>xx<<" not in text)
    assert tokenizer.encode(">>xx<< a dog")[0] == 2 and expected[">>fr<<"] == [4]
    with pytest.raises(ValueError, match="the vocabulary has no token >>xx<<"):
        check_tags(tokenizer, [">>xx<<"])


@pytest.mark.filterwarnings("ignore")
def test_pytorchs_tokenizer_reads_tags_alike(tagged, peers):
    _, transformers = peers
    expected, folder = tagged
    theirs, ours = transformers.MarianTokenizer.from_pretrained(folder), load_tokenizer(folder)
    for text, ids in expected.items():
        assert theirs(text)["input_ids"] == [*ours.encode(text), 1]
        assert ">>xx<<" in text or ours.encode(text) == ids


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"norm": "pre"}, "no norm 'pre': train one like .* norm='post', positions='halves' or 'interleaved' and emb"),
        ({"positions": "learned"}, "no positions 'learned'"),
        ({"embeddings": "normalised", "positions": "learned"}, "no embeddings 'normalised' and no positions 'learned'"),
        ({"head_dim": 5}, "no head_dim 5"),
        ({"attention_bias": False}, "no attention_bias False"),
        ({"encoder_start_id": 3}, "no encoder_start_id 3"),
    ],
)
def test_what_no_marian_can_be_is_not_written(tmp_path, overrides, message):
    model, params = own_model(**overrides)
    with pytest.raises(ValueError, match=message):
        save_marian(tmp_path / "new", model, params, processor())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("spoil", "tokenizer", "message"),
    [
        (lambda p: {k: v for k, v in p.items() if k != "decoder"}, processor, "decoder/layer_0.* is missing"),
        (lambda p: {**p, "embedding": {"embedding": np.full((36, 12), np.nan)}}, processor, "not finite .* embedding"),
        (lambda p: list(p), processor, "parameters are a dict of arrays, not list"),
        (lambda p: p, lambda: None, "needs a SentencePieceProcessor or a MarianTokenizer, not a NoneType"),
        (lambda p: p, sentencepiece.SentencePieceProcessor, "eos_id of the tokenizer is"),
        (
            lambda p: p,
            lambda: fitting_tokenizer(TransformerConfig(50)),
            "the tokenizer has 50 words, but the model's vocab_size is 36",
        ),
        (lambda p: p, lambda: fitting_tokenizer(TransformerConfig(36, pad_id=7)), "pad_id of the tokenizer is 7, but"),
    ],
)
def test_what_does_not_fit_is_not_written(tmp_path, spoil, tokenizer, message):
    model, params = own_model()
    with pytest.raises(ValueError, match=message):
        save_marian(tmp_path / "new", model, spoil(params), tokenizer())
    assert not (tmp_path / "new").exists()


def test_another_epsilon_is_named(tmp_path):
    model, params = own_model(norm_epsilon=1e-6)
    with pytest.warns(UserWarning, match="norm_epsilon is 1e-05, not 1e-06") as caught:
        save_marian(tmp_path, model, params, processor())
    assert caught[0].filename == __file__


# --- side by side ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_pytorch_reads_what_we_write(own, peers):
    torch, transformers = peers
    folder, expected = own
    theirs, report = transformers.MarianMTModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    with torch.inference_mode():
        logits = theirs.eval()(**{name: torch.tensor(ids) for name, ids in with_start(BATCH, 36).items()}).logits
    np.testing.assert_allclose(logits.numpy()[..., :36], expected, atol=ATOL)
    tokenizer = transformers.MarianTokenizer.from_pretrained(folder)
    for text in ("the quick fox", "", "über 日本", "<s> a  dog "):
        assert tokenizer(text)["input_ids"] == [*processor().encode(text), 1]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("odd", ODD)
def test_we_read_what_pytorch_writes_of_what_we_write(odd, tmp_path, peers):
    torch, transformers = peers
    odd_folder(odd, tmp_path)
    model, params = Transformer.from_pretrained(tmp_path)
    save_marian(tmp_path / "ours", model, params, fitting_tokenizer(model.config))
    theirs, report = transformers.MarianMTModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    batch = inputs(ODD[odd])
    with torch.inference_mode():
        logits = theirs.eval()(**{name: torch.tensor(value) for name, value in batch.items()}).logits
    np.testing.assert_allclose(logits.numpy(), golden()[f"{odd}/logits"], atol=ATOL)
    for folder, size in (("whole", "1GB"), ("split", "4KB")):
        theirs.save_pretrained(tmp_path / folder, max_shard_size=size)
        assert len([*(tmp_path / folder).glob("*.safetensors")]) > 1 or folder == "whole"
        again, loaded = Transformer.from_pretrained(tmp_path / folder)
        assert again == model
        same(loaded, params)


@pytest.mark.filterwarnings("ignore")
def test_ctranslate2_scores_alike(own, peers, tmp_path):
    """Converted by its own tool; it scores each token of a given target, and its end."""
    ctranslate2 = pytest.importorskip("ctranslate2", reason="ctranslate2, a parity peer, is not installed")
    folder, logits = own
    ctranslate2.converters.TransformersConverter(str(folder)).convert(str(tmp_path / "model"))
    theirs = ctranslate2.Translator(str(tmp_path / "model"), device="cpu", intra_threads=1)
    names = {i: piece for piece, i in json.loads((folder / "vocab.json").read_text()).items()}
    sources = [row[: sum(mask)] for row, mask in zip(BATCH["input_ids"], BATCH["attention_mask"], strict=True)]
    targets = BATCH["decoder_input_ids"][:, 1:]
    scored = theirs.score_batch(
        [[names[i] for i in row] for row in sources], [[names[i] for i in row] for row in targets]
    )
    labels = np.concatenate([targets, np.ones((2, 1), int)], axis=1)
    expected = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), labels[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose([row.log_probs for row in scored], expected, atol=ATOL)

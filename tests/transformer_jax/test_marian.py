"""Marian folders as PyTorch's library makes them: read, they compute the same."""

import functools
import json

import flax.serialization
import flax.traverse_util
import jax
import numpy as np
import pytest
import safetensors.numpy

from tests.transformer_jax.make_golden_marian import ODD, inputs
from tests.transformer_jax.marian_folders import (
    edit_config,
    edit_tensors,
    fitting_tokenizer,
    golden,
    logits_of,
    odd_folder,
    same,
    sinusoids,
)
from transformer_jax import Transformer, TransformerConfig, save_marian
from transformer_jax.decoding_defaults import DecodingDefaults, read_decoding_defaults

SWISH, RELU, GELU, UNTIED = ODD
ATOL = 2e-4  # float32, two libraries
DECODER_POSITIONS = "model.decoder.embed_positions.weight"


@pytest.mark.parametrize("odd", ODD)
def test_logits_are_those_of_pytorch(odd, tmp_path):
    tensors = odd_folder(odd, tmp_path)
    model, params = Transformer.from_pretrained(tmp_path)
    assert tensors["final_logits_bias"].any() and model.config.final_logits_bias
    np.testing.assert_allclose(logits_of(model, params, **inputs(ODD[odd])), golden()[f"{odd}/logits"], atol=ATOL)


def test_attention_to_the_source_is_that_of_pytorch(tmp_path):
    odd_folder(RELU, tmp_path)
    model, params = Transformer.from_pretrained(tmp_path)
    batch = inputs(ODD[RELU])
    found = jax.jit(functools.partial(model.apply, method="cross_attentions"))({"params": params}, **batch)
    expected = golden()[f"{RELU}/cross_attentions"]
    assert expected.shape == (3, 2, 2, 6, 7) and not expected[:, 0, ..., 5:].any()
    np.testing.assert_allclose(found, expected, atol=ATOL)


def test_a_configuration_says_all_that_the_model_is(tmp_path):
    odd_folder(RELU, tmp_path)
    assert Transformer.from_pretrained(tmp_path)[0].config == TransformerConfig(
        23,
        features=10,
        num_heads=5,
        decoder_num_heads=2,
        mlp_dim=14,
        decoder_mlp_dim=9,
        encoder_layers=1,
        decoder_layers=3,
        activation="relu",
        norm="post",
        norm_epsilon=1e-5,
        embeddings="plain",
        positions="halves",
        max_length=12,
        decoder_vocab_size=31,
        share_encoder_decoder_embeddings=False,
        tie_word_embeddings=False,
        final_logits_bias=True,
        pad_id=5,
        eos_id=2,
        decoder_start_id=7,
    )


def test_a_bias_of_zeros_is_no_parameter(tmp_path):
    odd_folder(SWISH, tmp_path)
    edit_tensors(tmp_path, lambda t: t["final_logits_bias"].fill(0))
    model, params = Transformer.from_pretrained(tmp_path)
    assert not model.config.final_logits_bias and "final_logits_bias" not in params
    edit_tensors(tmp_path, lambda t: t.pop("final_logits_bias"))
    same(Transformer.from_pretrained(tmp_path)[1], params)


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_what_older_files_hold_besides(tmp_path, kind):
    """Copies of the one table, tables of positions, names without "model.", the library's other word for swish."""
    tensors = odd_folder(SWISH, tmp_path)
    expected = Transformer.from_pretrained(tmp_path)[1]

    def change(t):
        for name in list(t):
            t[name.removeprefix("model.")] = t.pop(name)
        for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
            t[name] = tensors["model.shared.weight"]
        for side in ("encoder", "decoder"):
            t[f"{side}.embed_positions.weight"] = sinusoids(40, 18).astype(kind)

    edit_tensors(tmp_path, change)
    edit_config(tmp_path, activation_function="silu", num_hidden_layers=2, normalize_before=False, num_beams=6)
    same(Transformer.from_pretrained(tmp_path)[1], expected)
    edit_tensors(tmp_path, lambda t: t.pop("shared.weight"))
    same(Transformer.from_pretrained(tmp_path)[1], expected)


def test_an_untied_softmax_over_one_table(tmp_path):
    """PyTorch's library before version 5 tied source and target then; their table is in the file once."""
    odd_folder(UNTIED, tmp_path)
    names = ["model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"]
    edit_tensors(tmp_path, lambda t: t.update({name: t["model.shared.weight"] for name in names}))
    model, params = Transformer.from_pretrained(tmp_path)
    assert model.config.share_encoder_decoder_embeddings and not model.config.tie_word_embeddings
    edit_tensors(tmp_path, lambda t: [t.pop(name) for name in names])
    same(Transformer.from_pretrained(tmp_path)[1], params)
    save_marian(tmp_path / "again", model, params, fitting_tokenizer(model.config))
    written = safetensors.numpy.load_file(tmp_path / "again" / "model.safetensors")
    assert {*names, "model.shared.weight", "lm_head.weight"} <= written.keys()  # version 5 reads each of them
    same(Transformer.from_pretrained(tmp_path / "again")[1], params)


def test_flax_files_are_read(tmp_path):
    """flax_model.msgpack, the file of the library's former Flax models."""
    tensors = odd_folder(SWISH, tmp_path)
    expected = Transformer.from_pretrained(tmp_path)[1]
    flat = {}
    for name, tensor in tensors.items():
        *parts, last = name.split(".")
        if last == "weight":
            last = "scale" if "layer_norm" in name else "embedding" if "shared" in name else "kernel"
        flat[(*parts, last)] = np.ascontiguousarray(tensor.T) if last == "kernel" else tensor
    tree = flax.traverse_util.unflatten_dict(flat)
    (tmp_path / "flax_model.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))
    (tmp_path / "model.safetensors").unlink()
    same(Transformer.from_pretrained(tmp_path)[1], expected)


# --- decoding's defaults -----------------------------------------------------------------------------------------


def test_defaults_of_decoding(tmp_path):
    odd_folder(SWISH, tmp_path)
    assert read_decoding_defaults(tmp_path) == DecodingDefaults(forced_eos_token_id=0)
    said = {"num_beams": 6, "max_length": 512, "bad_words_ids": [[28]], "renormalize_logits": True, "min_length": None}
    (tmp_path / "generation_config.json").write_text(json.dumps(said | {"transformers_version": "4.32.0"}))
    options = {"num_beams": 6, "max_length": 512, "bad_words_ids": ((28,),), "renormalize_logits": True}
    assert read_decoding_defaults(tmp_path) == DecodingDefaults(**options)
    (tmp_path / "generation_config.json").unlink()
    edit_config(tmp_path, num_beams=4, forced_eos_token_id=0, bad_words_ids=[[28], [3, 4]])  # as older folders have it
    options = {"num_beams": 4, "forced_eos_token_id": 0, "bad_words_ids": ((28,), (3, 4))}
    assert read_decoding_defaults(tmp_path) == DecodingDefaults(**options)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"num_beams": 0}, "num_beams must be an integer from 1"),
        ({"bad_words_ids": [28]}, r"bad_words_ids must be a list of lists of ids, not \[28\]"),
        ({"bad_words_ids": [[-1]]}, "bad_words_ids must be a list of lists of ids"),
        ({"early_stopping": "maybe"}, "early_stopping must be True or False or 'never', not 'maybe'"),
        ({"forced_eos_token_id": [0]}, "forced_eos_token_id must be an integer"),
        ({"eos_token_id": [0, 1]}, r"eos_token_id \[0, 1\], but 0 in config.json"),
        ({"decoder_start_token_id": 3}, "decoder_start_token_id 3, but 28 in config.json"),
    ],
)
def test_defaults_of_decoding_that_cannot_be(tmp_path, said, message):
    odd_folder(SWISH, tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=f"generation_config.json: {message}"):
        read_decoding_defaults(tmp_path)

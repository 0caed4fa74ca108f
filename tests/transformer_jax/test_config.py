"""What a TransformerConfig can ask for besides one table and two equal stacks."""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import Transformer, TransformerConfig, logical_axes
from transformer_jax.checkpoints import shapes_by_name

SOURCE, TARGET = np.array([[3, 9, 1], [4, 1, 0]]), np.array([[0, 12, 7], [0, 2, 2]])
OWN = {
    "decoder_vocab_size": 13,
    "share_encoder_decoder_embeddings": False,
    "tie_word_embeddings": False,
    "final_logits_bias": True,
    "decoder_num_heads": 4,
    "decoder_mlp_dim": 10,
    "embeddings": "plain",
}


@pytest.fixture(scope="module")
def own(make_transformer):
    model, params = make_transformer(**OWN)
    bias = np.linspace(-1, 1, 13, dtype=np.float32)
    return model, {**params, "final_logits_bias": jnp.asarray(bias)}


def test_tables_of_their_own(own):
    model, _ = own
    shapes = shapes_by_name(model.parameter_shapes(), "/")
    tables = {
        path: shape for path, shape in shapes.items() if path.endswith("embedding") or "bias" in path.split("/")[0]
    }
    assert tables == {
        "embedding/embedding": (11, 8),
        "decoder_embedding/embedding": (13, 8),
        "lm_head/embedding": (13, 8),
        "final_logits_bias": (13,),
    }
    assert shapes["encoder/layer_0/attention/qkv/kernel"] == (8, 3, 2, 4)
    assert shapes["decoder/layer_0/cross_attention/query/kernel"] == (8, 4, 2)
    assert shapes["encoder/layer_0/mlp/up/kernel"] == (8, 12) and shapes["decoder/layer_0/mlp/up/kernel"] == (8, 10)
    axes = flax.traverse_util.flatten_dict(logical_axes(model, SOURCE, TARGET), sep="/")
    assert axes["decoder_embedding/embedding"] == axes["lm_head/embedding"] == ("vocab", "embed")
    assert axes["final_logits_bias"] == ("vocab",) and axes.keys() == shapes.keys()


def test_each_side_reads_its_table(own):
    model, params = own
    loss = jax.jit(jax.grad(lambda p: model.apply({"params": p}, SOURCE, TARGET).logits[:, :, 5].sum()))
    gradients = loss(params)

    def read(name):
        return set(np.flatnonzero(np.abs(gradients[name]["embedding"]).sum(1)).tolist())

    assert (read("embedding"), read("decoder_embedding")) == ({0, 1, 3, 4, 9}, {0, 2, 7, 12})
    assert read("lm_head") == {5}
    np.testing.assert_array_equal(gradients["final_logits_bias"], 6.0 * (np.arange(13) == 5))


def test_a_cache_continues_with_other_heads(own):
    model, params = own

    @jax.jit
    def both():
        run = functools.partial(model.apply, {"params": params})
        encoded = run(SOURCE, method="encode")
        whole, _ = run(TARGET, encoded, method="decode")
        cache = run(2, 4, method="empty_cache")
        first, cache = run(TARGET[:, :1], encoded, cache=cache, method="decode")
        return whole, jnp.concatenate([first, run(TARGET[:, 1:], encoded, cache=cache, method="decode")[0]], axis=1)

    whole, parts = both()
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_it_comes_back_from_a_folder(own, tmp_path):
    model, params = own
    model.save_pretrained(tmp_path, params)
    again, loaded = Transformer.from_pretrained(tmp_path)
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder_vocab_size": 6}, "vocab_size 5 and decoder_vocab_size 6 differ: then share_encoder_decoder_embedd"),
        ({"decoder_vocab_size": 0}, "decoder_vocab_size must be an integer from 1 to 2147483647 or None, not 0"),
        ({"decoder_num_heads": 7}, "7 heads do not divide the width 512"),
        (
            {"share_encoder_decoder_embeddings": None},
            "share_encoder_decoder_embeddings must be True or False, not None",
        ),
        (
            {"decoder_vocab_size": 3, "share_encoder_decoder_embeddings": False, "eos_id": 3},
            r"eos_id must lie between 0 and 2 \(decoder_vocab_size is 3\)",
        ),
        (
            {"decoder_vocab_size": 9, "share_encoder_decoder_embeddings": False, "pad_id": 8},
            r"pad_id must lie between 0 and 4 \(vocab_size is 5\)",
        ),
        (
            {"decoder_vocab_size": 9, "share_encoder_decoder_embeddings": False, "encoder_start_id": 8},
            "encoder_start_id must lie between 0 and 4",
        ),
    ],
)
def test_what_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**{"vocab_size": 5, **options})


def test_a_start_of_the_target_alone():
    config = TransformerConfig(5, decoder_vocab_size=9, share_encoder_decoder_embeddings=False, decoder_start_id=8)
    assert (config.target_vocab_size, TransformerConfig(5).target_vocab_size) == (9, 5)

"""Models so small that compiling them is all that costs anything, made once and shared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax import Transformer, TransformerConfig, translator

SIZES = {
    "features": 8,
    "num_heads": 2,
    "mlp_dim": 12,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "max_length": 32,
    "dropout_rate": 0.0,
}


@pytest.fixture(scope="session")
def make_transformer():
    """(vocabulary, overrides) -> (model, parameters)."""

    def make(vocab_size=11, dtype=jnp.float32, **overrides):
        model = Transformer(TransformerConfig.tiny(vocab_size, **{**SIZES, **overrides}), dtype)
        ids = jnp.zeros((1, 1), jnp.int32)
        return model, jax.jit(model.init)(jax.random.key(3), ids, ids)["params"]

    return make


@pytest.fixture(scope="session")
def tiny(make_transformer):
    return make_transformer()


@pytest.fixture
def calls(monkeypatch):
    """Stands a model in for a Translator's that copies its source, and keeps what it was asked."""
    calls = []

    def copy(models, search, params, input_ids, mask_BS, limit_B, constraints, keys_B, mesh, *more):
        np.testing.assert_array_equal(mask_BS, input_ids != 0)
        calls.append((np.asarray(input_ids), search.options))
        out = np.zeros((len(input_ids), search.options.num_beams, search.options.max_length), np.int32)
        copied = input_ids[:, None, : search.options.max_length - 1]
        out[:, :, 1 : copied.shape[2] + 1] = copied
        return out, np.zeros(out.shape[:2], np.float32)

    monkeypatch.setattr(translator, "decode", copy)
    return calls

"""Models so small that compiling them is all that costs anything, made once and shared."""

import jax
import jax.numpy as jnp
import pytest

from transformer_jax import Transformer, TransformerConfig

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

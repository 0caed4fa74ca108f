"""Table 3 of Vaswani et al. 2017, by the options that say each row: parameters counted by hand."""

import jax
import pytest

from train.architecture import Architecture
from train.errors import InputError
from train.options import options
from train.translate import TranslateConfig
from transformer_jax import Transformer
from transformer_jax.command import parse

BASE = {"d": 512, "h": 8, "k": 64, "v": 64, "f": 2048, "n": 6, "positions": 0}
# Options of `train translate --preset base` -> what differs in the model. Dropout and smoothing add no parameters.
ROWS = {
    "": {},
    "--architecture.num-heads 1": {"h": 1, "k": 512, "v": 512},
    "--architecture.num-heads 4": {"h": 4, "k": 128, "v": 128},
    "--architecture.num-heads 16": {"h": 16, "k": 32, "v": 32},
    "--architecture.num-heads 32": {"h": 32, "k": 16, "v": 16},
    "--architecture.key-dim 16": {"k": 16},
    "--architecture.key-dim 32": {"k": 32},
    "--architecture.layers 2": {"n": 2},
    "--architecture.layers 4": {"n": 4},
    "--architecture.layers 8": {"n": 8},
    "--architecture.features 256": {"d": 256, "k": 32, "v": 32},
    "--architecture.features 1024": {"d": 1024, "k": 128, "v": 128},
    "--architecture.mlp-dim 1024": {"f": 1024},
    "--architecture.mlp-dim 4096": {"f": 4096},
    "--architecture.dropout-rate 0": {},
    "--architecture.dropout-rate 0.2": {},
    "--label-smoothing 0": {},
    "--label-smoothing 0.2": {},
    "--architecture.positions learned": {"positions": 512},
    "--preset big": {"d": 1024, "h": 16, "f": 4096},
}


def by_hand(d, h, k, v, f, n, positions, vocabulary=37_000):
    attention = d * h * (2 * k + v) + h * (2 * k + v) + h * v * d + d
    feed_forward = d * f + f + f * d + d
    norm = 2 * d
    encoder, decoder = attention + feed_forward + 2 * norm, 2 * attention + feed_forward + 3 * norm
    return (vocabulary + positions) * d + n * (encoder + decoder)


@pytest.mark.parametrize("row", ROWS)
def test_each_row_is_an_option_away(row):
    config = parse(TranslateConfig, "train translate", ["--preset", "base", *row.split()])
    model = Transformer(config.architecture.config(config.preset, 37_000))
    count = sum(leaf.size for leaf in jax.tree.leaves(model.parameter_shapes()))
    assert count == by_hand(**BASE | ROWS[row])
    assert {"": 63_082_496, "--preset big": 214_245_376}.get(row, count) == count
    assert model.config.dropout_rate == {
        "--architecture.dropout-rate 0": 0.0,
        "--architecture.dropout-rate 0.2": 0.2,
        "--preset big": 0.3,
    }.get(row, 0.1)


def test_a_decoder_may_have_fewer_layers():
    config = Architecture(layers=4, decoder_layers=1, norm="post", activation="swish").config("tiny", 50)
    assert (config.encoder_layers, config.decoder_layers, config.norm, config.activation) == (4, 1, "post", "swish")


def test_what_makes_no_model_names_the_option():
    with pytest.raises(InputError, match=r"--architecture: 5 heads do not divide the width 128"):
        Architecture(num_heads=5).config("tiny", 50)


def test_every_field_is_an_option():
    assert {name for name, _, _ in options(TranslateConfig())} >= {"--architecture.key-dim", "--architecture.layers"}

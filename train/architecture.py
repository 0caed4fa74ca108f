"""What a Transformer that `translate` trains is made of: a preset, and what is given over it."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from train.errors import blaming
from transformer_jax import TransformerConfig
from transformer_jax.checks import Layers, Share, Width
from transformer_jax.layers import Activation

Preset = Literal["tiny", "base", "big"]
PRESETS: dict[str, Callable[..., TransformerConfig]] = {
    "tiny": TransformerConfig.tiny,
    "base": TransformerConfig.base,
    "big": TransformerConfig.big,
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What differs from the preset; None for nothing. Table 3 of Vaswani et al. 2017 is a few of these."""

    layers: Layers | None = None
    """Layers of the encoder, and of the decoder."""
    decoder_layers: Layers | None = None
    """Layers of the decoder, where they are not as many."""
    features: Width | None = None
    """Width of the model."""
    num_heads: Width | None = None
    """Heads of each attention."""
    head_dim: Width | None = None
    """Size of a head; by default the width divided by the heads."""
    key_dim: Width | None = None
    """Size of a head's queries and keys, where it is not that of its values."""
    mlp_dim: Width | None = None
    """Width inside the feed-forward layers."""
    dropout_rate: Share | None = None
    """Dropout of embeddings and sublayers."""
    activation: Activation | None = None
    """Of the feed-forward layers."""
    positions: Literal["interleaved", "halves", "learned"] | None = None
    """Sinusoids in the paper's layout or in Marian's, or a learned table."""
    norm: Literal["pre", "post"] | None = None
    """Normalisation in front of each sublayer, or behind it as the paper and Marian have it."""

    def config(self, preset: Preset, vocab_size: int, **fields: Any) -> TransformerConfig:
        """The configuration.

        Raises:
            InputError: there is none of such sizes.
        """
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        if layers := given.pop("layers", None):
            given = {"encoder_layers": layers, "decoder_layers": layers, **given}
        with blaming("--architecture"):
            return PRESETS[preset](vocab_size, **{**given, **fields})

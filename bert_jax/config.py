"""BertConfig: what a BERT is made of, from and to Hugging Face's config.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from transformer_jax.checks import require
from transformer_jax.layers import ACTIVATIONS
from transformer_jax.stack import StackConfig

# name: layers, width, heads; the feed-forward width is four times the width (Devlin et al. 2019, section 3;
# Turc et al. 2019 for the small ones).
PRESETS: dict[str, tuple[int, int, int]] = {
    "tiny": (2, 128, 2),
    "mini": (4, 256, 4),
    "small": (4, 512, 8),
    "medium": (8, 512, 8),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}

# How a model is run, not what it is: these stay out of config.json.
RUN_FIELDS = ("scan_layers", "remat")


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The make-up of a BERT under Hugging Face's names; the defaults are BERT-base, uncased.

    Attributes:
        hidden_act: gelu (exact) | gelu_new (tanh) | relu | swish.
        hidden_dropout_prob: dropout on the embeddings and on the output of each sublayer.
        initializer_range: standard deviation of the truncated normal that initialises kernels and tables.
        pad_token_id: id of the padding token; it is kept for other programs, the models read attention_mask.
        scan_layers, remat: how the encoder is run, see `transformer_jax.StackConfig`.

    Raises:
        ValueError: a size below 1, heads that do not divide the width, or an unknown choice.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    scan_layers: bool = False
    remat: str = "none"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int:
                lowest = 0 if field.name == "pad_token_id" else 1
                whole = isinstance(value, int) and not isinstance(value, bool)
                require(whole and value >= lowest, f"{field.name} must be an integer from {lowest} up, not {value!r}")
            elif field.type is float:
                number = isinstance(value, (int, float)) and not isinstance(value, bool)
                require(number and value >= 0, f"{field.name} must be a number from 0 up, not {value!r}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            require(getattr(self, name) < 1, f"{name} must be at least 0 and below 1, not {getattr(self, name)!r}")
        require(
            self.hidden_size % self.num_attention_heads == 0,
            f"num_attention_heads {self.num_attention_heads} does not divide hidden_size {self.hidden_size}",
        )
        require(self.hidden_act in ACTIVATIONS, f"hidden_act {self.hidden_act!r}: choose one of {[*ACTIVATIONS]}")
        _ = self.stack  # it checks what is left

    @property
    def stack(self) -> StackConfig:
        """The configuration of the encoder stack: post-norm, with biases."""
        return StackConfig(
            num_layers=self.num_hidden_layers,
            features=self.hidden_size,
            num_heads=self.num_attention_heads,
            mlp_dim=self.intermediate_size,
            activation=self.hidden_act,
            norm="post",
            norm_epsilon=self.layer_norm_eps,
            dropout_rate=self.hidden_dropout_prob,
            attention_dropout_rate=self.attention_probs_dropout_prob,
            attention_bias=True,
            initializer_range=self.initializer_range,
            scan_layers=self.scan_layers,
            remat=self.remat,
        )

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "BertConfig":
        """A published size by name: tiny | mini | small | medium | base | large."""
        require(name in PRESETS, f"preset {name!r}: choose one of {[*PRESETS]}")
        layers, width, heads = PRESETS[name]
        sizes = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads}
        return cls(**{**sizes, "intermediate_size": 4 * width, **overrides})

    @classmethod
    def tiny(cls, **overrides: Any) -> "BertConfig":
        """2 layers of width 128: 4.4 M parameters."""
        return cls.preset("tiny", **overrides)

    @classmethod
    def mini(cls, **overrides: Any) -> "BertConfig":
        """4 layers of width 256: 11 M parameters."""
        return cls.preset("mini", **overrides)

    @classmethod
    def small(cls, **overrides: Any) -> "BertConfig":
        """4 layers of width 512: 29 M parameters."""
        return cls.preset("small", **overrides)

    @classmethod
    def medium(cls, **overrides: Any) -> "BertConfig":
        """8 layers of width 512: 41 M parameters."""
        return cls.preset("medium", **overrides)

    @classmethod
    def base(cls, **overrides: Any) -> "BertConfig":
        """12 layers of width 768: 109 M parameters."""
        return cls.preset("base", **overrides)

    @classmethod
    def large(cls, **overrides: Any) -> "BertConfig":
        """24 layers of width 1024: 335 M parameters."""
        return cls.preset("large", **overrides)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], **overrides: Any) -> "BertConfig":
        """From the object of a config.json; keys that change nothing here are ignored.

        Raises:
            ValueError: the file describes another model (`model_type`, `position_embedding_type`, `is_decoder`),
                or a value is out of range.
        """
        for key, right in (("model_type", "bert"), ("position_embedding_type", "absolute"), ("is_decoder", False)):
            value = fields.get(key, right)
            require(value == right, f"{key} {value!r} is not supported: only {right!r} is")
        known = {field.name for field in dataclasses.fields(cls)} - set(RUN_FIELDS)
        chosen = {key: value for key, value in fields.items() if key in known}
        if chosen.get("pad_token_id", 0) is None:
            del chosen["pad_token_id"]
        return cls(**{**chosen, **overrides})

    def to_json(self) -> dict[str, Any]:
        """The object of a config.json that Hugging Face transformers reads."""
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name not in RUN_FIELDS}
        return {"model_type": "bert", "position_embedding_type": "absolute", **fields}

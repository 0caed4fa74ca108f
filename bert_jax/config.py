"""BertConfig: what a BERT is made of, from and to Hugging Face's config.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from transformer_jax.checks import Id, Layers, NotNegative, Positions, Share, Size, Width, check_fields, require, shown
from transformer_jax.layers import Activation
from transformer_jax.stack import Remat, StackConfig

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
        ValueError: a field of another type or out of its range, or heads that do not divide the width.
    """

    vocab_size: Size = 30522
    hidden_size: Width = 768
    num_hidden_layers: Layers = 12
    num_attention_heads: Width = 12
    intermediate_size: Width = 3072
    hidden_act: Activation = "gelu"
    hidden_dropout_prob: Share = 0.1
    attention_probs_dropout_prob: Share = 0.1
    max_position_embeddings: Positions = 512
    type_vocab_size: Size = 2
    initializer_range: NotNegative = 0.02
    layer_norm_eps: NotNegative = 1e-12
    pad_token_id: Id = 0
    scan_layers: bool = False
    remat: Remat = "none"

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            self.hidden_size % self.num_attention_heads == 0,
            f"num_attention_heads {self.num_attention_heads} does not divide hidden_size {self.hidden_size}",
        )

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
            require(value == right, f"{key} {shown(value)} is not supported: only {right!r} is")
        known = {field.name for field in dataclasses.fields(cls)} - set(RUN_FIELDS)
        chosen = {key: value for key, value in fields.items() if key in known}
        if chosen.get("pad_token_id", 0) is None:
            del chosen["pad_token_id"]
        return cls(**{**chosen, **overrides})

    def to_json(self) -> dict[str, Any]:
        """The object of a config.json that Hugging Face transformers reads."""
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name not in RUN_FIELDS}
        return {"model_type": "bert", "position_embedding_type": "absolute", **fields}

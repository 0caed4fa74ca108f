"""TransformerConfig: what an encoder-decoder Transformer is made of."""

import dataclasses
from typing import Any, Literal

from transformer_jax.checks import (
    Id,
    Layers,
    NotNegative,
    Positions,
    Share,
    Size,
    Width,
    check_fields,
    check_ids,
    require,
)
from transformer_jax.layers import Activation
from transformer_jax.stack import Remat, StackConfig


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The model's make-up; `tiny`, `base` and `big` are presets.

    Attributes:
        vocab_size: V of the source, and of target and softmax too unless `decoder_vocab_size` says otherwise.
        key_dim: of queries and keys, by default that of values, `head_dim`.
        decoder_num_heads, decoder_mlp_dim: those of the encoder by default.
        embeddings: "scaled" multiplies them by sqrt(D) in front of the positions (section 3.4), "plain" does not,
            "normalised" has a layer normalisation behind the positions instead, as BERT has it.
        positions: sinusoids in the paper's layout (interleaved) or in Marian's (halves), or a learned table.
        max_length: rows of a learned table, and of the sinusoids that `position_ids` may ask for.
        decoder_vocab_size: V of target and softmax, for tables of their own.
        share_encoder_decoder_embeddings: whether source and target have one table.
        tie_word_embeddings: whether the softmax's table is that of the target.
        final_logits_bias: whether the logits have a bias [V], which begins as zeros.
        encoder_start_id: what each source begins with; None for nothing. Like the end, it is among the `input_ids`.
        decoder_start_id: what the decoder reads first; the padding token, as in Marian.
    The other fields are those of `StackConfig`.
    """

    vocab_size: Size
    features: Width = 512
    num_heads: Width = 8
    head_dim: Width | None = None
    key_dim: Width | None = None
    mlp_dim: Width = 2048
    encoder_layers: Layers = 6
    decoder_layers: Layers = 6
    decoder_num_heads: Width | None = None
    decoder_mlp_dim: Width | None = None
    activation: Activation = "relu"
    norm: Literal["pre", "post"] = "post"
    norm_epsilon: NotNegative = 1e-6
    embeddings: Literal["scaled", "plain", "normalised"] = "scaled"
    positions: Literal["interleaved", "halves", "learned"] = "interleaved"
    max_length: Positions = 512
    dropout_rate: Share = 0.1
    attention_dropout_rate: Share = 0.0
    activation_dropout_rate: Share = 0.0
    attention_bias: bool = True
    decoder_vocab_size: Size | None = None
    share_encoder_decoder_embeddings: bool = True
    tie_word_embeddings: bool = True
    final_logits_bias: bool = False
    scan_layers: bool = False
    remat: Remat = "none"
    pad_id: Id = 0
    eos_id: Id = 1
    encoder_start_id: Id | None = None
    decoder_start_id: Id = 0

    def __post_init__(self) -> None:
        check_fields(self)
        for side in ("encoder", "decoder"):
            self.stack(side)  # it checks its heads
        sizes = {"vocab_size": self.vocab_size, "decoder_vocab_size": self.target_vocab_size}
        require(
            self.vocab_size == self.target_vocab_size or not self.share_encoder_decoder_embeddings,
            f"vocab_size {self.vocab_size} and decoder_vocab_size {self.decoder_vocab_size} differ: then "
            "share_encoder_decoder_embeddings must be False",
        )
        source, target = ["vocab_size"], ["decoder_vocab_size"]
        both = source + target
        tables = {"pad_id": both, "eos_id": both, "encoder_start_id": source, "decoder_start_id": target}
        for name, table in ((name, table) for name, read in tables.items() for table in read):
            if (id_ := getattr(self, name)) is not None:
                check_ids(name, id_, sizes[table], f"{table} is {sizes[table]}")
        require(self.pad_id != self.eos_id, f"pad_id and eos_id must differ, but both are {self.pad_id}")
        even = self.positions == "learned" or self.features % 2 == 0
        require(even, f"sinusoidal positions need an even width, not features {self.features}")

    @classmethod
    def tiny(cls, vocab_size: int, **overrides: Any) -> "TransformerConfig":
        """2 + 2 pre-norm layers of width 128: minutes on a CPU."""
        sizes = {"features": 128, "num_heads": 4, "mlp_dim": 512, "encoder_layers": 2, "decoder_layers": 2}
        return cls(vocab_size, **{**sizes, "norm": "pre", **overrides})

    @classmethod
    def base(cls, vocab_size: int, **overrides: Any) -> "TransformerConfig":
        """The paper's base model (table 3)."""
        return cls(vocab_size, **overrides)

    @classmethod
    def big(cls, vocab_size: int, **overrides: Any) -> "TransformerConfig":
        """The paper's big model (table 3)."""
        sizes = {"features": 1024, "num_heads": 16, "mlp_dim": 4096, "dropout_rate": 0.3}
        return cls(vocab_size, **{**sizes, **overrides})

    @property
    def target_vocab_size(self) -> int:
        """V of target and softmax."""
        return self.vocab_size if self.decoder_vocab_size is None else self.decoder_vocab_size

    def stack(self, side: Literal["encoder", "decoder"]) -> StackConfig:
        """The configuration of one of the two stacks."""
        shared = {f.name for f in dataclasses.fields(self)} & {f.name for f in dataclasses.fields(StackConfig)}
        fields = {name: getattr(self, name) for name in shared} | {"num_layers": self.encoder_layers}
        if side == "decoder":
            fields["num_layers"] = self.decoder_layers
            fields["num_heads"] = self.decoder_num_heads or self.num_heads
            fields["mlp_dim"] = self.decoder_mlp_dim or self.mlp_dim
        return StackConfig(**fields)

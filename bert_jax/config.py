"""BertConfig: what a BERT is made of, from and to Hugging Face's config.json."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from unicodedata import category

from transformer_jax.checks import (
    Id,
    Layers,
    NotNegative,
    Positions,
    Share,
    Size,
    Width,
    check_fields,
    check_value,
    listed,
    require,
    shown,
)
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

# How a model is run or begun, not what it is: these stay out of config.json.
RUN_FIELDS = ("scan_layers", "remat", "position_range")
# Left out of config.json where they say nothing, as Hugging Face does.
TASK_FIELDS = ("id2label", "slot_labels", "problem_type", "classifier_dropout", "tie_word_embeddings")

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The make-up of a BERT under Hugging Face's names; the defaults are BERT-base, uncased.

    Attributes:
        hidden_act: gelu (exact) | gelu_new (tanh) | relu | swish.
        hidden_dropout_prob: dropout on the embeddings and on the output of each sublayer.
        initializer_range: standard deviation of the truncated normal that initialises kernels and tables.
        position_range: root mean square of the sinusoids as which positions begin, which shortens the plateau of
            pretraining, see docs/pretraining.md; None: they begin at random, as in the paper.
        pad_token_id: id of the padding token; it is kept for other programs, the models read attention_mask.
        id2label: names of the classes or tags, in the order of the logits. In config.json the objects id2label
            (`{"0": name}`) and label2id, which are left out there where they are the default two.
        slot_labels: of a joint model, whose id2label are the intents: names of the tags.
        problem_type: what a sequence classifier's logits mean: one class of several, several classes at once, or
            numbers. None leaves it to who trains it.
        classifier_dropout: dropout in front of a classifier; None: `hidden_dropout_prob`.
        tie_word_embeddings: whether the masked-LM head's table is that of the word embeddings, as in the paper.
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
    position_range: NotNegative | None = None
    layer_norm_eps: NotNegative = 1e-12
    pad_token_id: Id = 0
    id2label: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    slot_labels: tuple[str, ...] = ()
    problem_type: ProblemType | None = None
    classifier_dropout: Share | None = None
    tie_word_embeddings: bool = True
    scan_layers: bool = False
    remat: Remat = "none"

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            self.hidden_size % self.num_attention_heads == 0,
            f"num_attention_heads {self.num_attention_heads} does not divide hidden_size {self.hidden_size}",
        )
        for name in ("id2label", "slot_labels"):
            names = getattr(self, name)
            label_names(name, names)
        require(len(self.id2label) > 0, "id2label must name at least one label")
        require(
            self.problem_type != "single_label_classification" or self.num_labels > 1,
            "problem_type 'single_label_classification' needs at least 2 labels (id2label), not 1",
        )

    @property
    def num_labels(self) -> int:
        """The number of classes, or of a tagger's tags."""
        return len(self.id2label)

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
                a value is out of range, or `id2label`, `label2id` and `num_labels` do not agree.
        """
        for key, right in (("model_type", "bert"), ("position_embedding_type", "absolute"), ("is_decoder", False)):
            value = fields.get(key, right)
            require(value == right, f"{key} {shown(value)} is not supported: only {right!r} is")
        known = {field.name for field in dataclasses.fields(cls)} - {*RUN_FIELDS, "id2label", "slot_labels"}
        chosen = {key: value for key, value in fields.items() if key in known}
        if chosen.get("pad_token_id", 0) is None:
            del chosen["pad_token_id"]
        chosen |= _labels_from_json(fields)
        return cls(**{**chosen, **overrides})

    def to_json(self) -> dict[str, Any]:
        """The object of a config.json that Hugging Face transformers reads."""
        fields = {name: getattr(self, name) for name in _NAMES if name not in RUN_FIELDS + TASK_FIELDS}
        task = {name: getattr(self, name) for name in TASK_FIELDS if getattr(self, name) != getattr(BertConfig, name)}
        if "id2label" in task:
            task["id2label"] = {str(index): name for index, name in enumerate(self.id2label)}
            task["label2id"] = {name: index for index, name in enumerate(self.id2label)}
        if "slot_labels" in task:
            task["slot_labels"] = [*self.slot_labels]
        return {"model_type": "bert", "position_embedding_type": "absolute", **fields, **task}


_NAMES = [field.name for field in dataclasses.fields(BertConfig)]


# --- labels ------------------------------------------------------------------------------------------------------

_NO_TEXT = ("Cc", "Cs", "Zl", "Zp")  # control characters, halves of surrogate pairs, ends of lines


def default_labels(count: int) -> tuple[str, ...]:
    """LABEL_0, LABEL_1 ...: what labels without names are called."""
    check_value("num_labels", count, Width)
    return tuple(f"LABEL_{index}" for index in range(count))


def unnamed(labels: Sequence[str]) -> bool:
    """Whether labels have only numbers for names."""
    return all(label == f"LABEL_{index}" for index, label in enumerate(labels))


def label_names(name: str, labels: Sequence[str] | Mapping[Any, str]) -> tuple[str, ...]:
    """Names in the order of their ids, from a list of them or from ids (0 or "0", 1 or "1" ...) -> names.

    Raises:
        ValueError: something else, ids that are not 0, 1, 2 ..., or names that are empty, not one line or there twice.
    """
    several = isinstance(labels, Mapping | Sequence) and not isinstance(labels, str | bytes)
    require(several, f"{name} must be a list of names, or an object of ids and names, not {shown(labels)}")
    if isinstance(labels, Mapping):
        by_id = {_label_id(name, key): value for key, value in labels.items()}
        in_order = sorted(by_id) == [*range(len(labels))]
        require(in_order, f"{name} must name the labels 0 to {len(labels) - 1}, not {shown([*labels])}")
        labels = [by_id[index] for index in range(len(labels))]
    for label in labels:
        fits = isinstance(label, str) and label != "" and not any(category(letter) in _NO_TEXT for letter in label)
        require(fits, f"{name}: a label's name must be one line of text, not {shown(label)}")
    twice = [label for label, count in Counter(labels).items() if count > 1]
    require(not twice, f"{name}: the names of labels must differ, but these are there more than once: {listed(twice)}")
    return tuple(labels)


def _label_id(name: str, key: Any) -> int:
    digits = isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) <= 7
    fits = digits or (isinstance(key, int) and not isinstance(key, bool))
    require(fits, f"{name}: a label's id must be an integer, not {shown(key)}")
    return int(key)


def _labels_from_json(fields: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """id2label and slot_labels, as far as a config.json has them; null says nothing."""
    found = {}
    id2label, label2id, count, slots = (
        fields.get(key) for key in ("id2label", "label2id", "num_labels", "slot_labels")
    )
    if slots is not None:
        found["slot_labels"] = label_names("slot_labels", slots)
    if count is not None:
        found["id2label"] = default_labels(count)
    if label2id is not None:
        require(isinstance(label2id, Mapping), f"label2id must be an object of names and ids, not {shown(label2id)}")
        by_id = {_label_id("label2id", index): name for name, index in label2id.items()}
        differ = len(by_id) == len(label2id)
        require(differ, f"label2id: the ids of labels must differ, not {shown([*label2id.values()])}")
        found["id2label"] = label_names("label2id", by_id)
    if id2label is not None:
        require(isinstance(id2label, Mapping), f"id2label must be an object of ids and names, not {shown(id2label)}")
        names = label_names("id2label", id2label)
        agree = label2id is None or names == found["id2label"]
        require(agree, f"id2label {shown(names)} and label2id {shown(label2id)} do not agree")
        found["id2label"] = names
    names = found.get("id2label", ())
    agree = count in (None, len(names))
    require(agree, f"num_labels {count} and the {len(names)} names of id2label or label2id do not agree")
    return found

"""What a folder in Hugging Face's layout says of decoding: its generation_config.json."""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from transformer_jax.checkpoints import read_config, read_json
from transformer_jax.checks import Id, Range, Size, check_fields, listed, require, shown
from transformer_jax.config import TransformerConfig
from transformer_jax.decoding.constraints import (
    Constraint,
    EndAtLimit,
    Forbidden,
    ForcedStart,
    MinimumLength,
    NoRepeatedNgram,
    Renormalized,
    RepetitionPenalty,
)

FILE = "generation_config.json"

# Keys that change what comes out, and what they are where they do not.
UNREAD: dict[str, Any] = {
    "max_new_tokens": None,
    "min_new_tokens": None,
    "do_sample": False,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "force_words_ids": None,
    "constraints": None,
    "guidance_scale": None,
}


class DecodingDefaults(NamedTuple):
    """Options of decoding under the names, and with the meaning, that they have in generation_config.json.

    Attributes:
        max_length: tokens of an output, its start and its end among them.
        bad_words_ids: tokens, or several in a row, that are never put out; Marian's padding is one.
        forced_bos_token_id, forced_eos_token_id: the first token, and the last that there is room for.
        renormalize_logits: whether what is left by all of these becomes a distribution again.
    """

    num_beams: Size = 1
    max_length: Size | None = None
    min_length: Id = 0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    repetition_penalty: Annotated[float, Range(0, open_low=True)] = 1.0
    no_repeat_ngram_size: Id = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    forced_bos_token_id: Id | None = None
    forced_eos_token_id: Id | None = None
    renormalize_logits: bool = False

    def to_json(self) -> dict[str, Any]:
        """The object of a generation_config.json: what is not the default."""
        said = {name: value for name, value in self._asdict().items() if value != self._field_defaults[name]}
        if "bad_words_ids" in said:
            said["bad_words_ids"] = [[*row] for row in said["bad_words_ids"]]
        return said


def decoding_file(decoding: DecodingDefaults, config: TransformerConfig) -> dict[str, bytes]:
    """The generation_config.json of a model, by its name."""
    ids = {"pad_token_id": config.pad_id, "eos_token_id": config.eos_id}
    said = {**ids, "decoder_start_token_id": config.decoder_start_id, **decoding.to_json()}
    return {FILE: (json.dumps(said, indent=2) + "\n").encode()}


def decoding_of(folder: str | Path) -> DecodingDefaults | None:
    """What a folder says of decoding, None where it says nothing: neither a Marian's nor one with that file."""
    marian = read_config(folder).get("model_type") == "marian"
    return read_decoding_defaults(folder) if marian or (Path(folder) / FILE).is_file() else None


def read_decoding_defaults(folder: str | Path) -> DecodingDefaults:
    """Of a folder's generation_config.json, or where there is none of its config.json, as older folders have it.

    What neither says is as PyTorch's library has it. Raises ValueError for a value that cannot be, and where the two do
    not agree on the tokens that begin, end and fill up an output.
    """
    config, path = (Path(folder) / name for name in ("config.json", FILE))
    model = read_json(config) if config.is_file() else {}
    fields = read_json(path) if path.is_file() else model
    for key in ("pad_token_id", "eos_token_id", "decoder_start_token_id"):
        id_, other = fields.get(key), model.get(key)
        require(None in (id_, other) or id_ == other, f"{path}: {key} {shown(id_)}, but {shown(other)} in config.json")
    said = {name: fields[name] for name in DecodingDefaults._fields if fields.get(name) is not None}
    try:
        for key, nothing in UNREAD.items():
            value = fields.get(key)
            require(value is None or value == nothing, f"{key} {shown(value)} is not supported: take it out")
        if "bad_words_ids" in said:
            said["bad_words_ids"] = _rows(said["bad_words_ids"])
        defaults = DecodingDefaults(**said)
        check_fields(defaults)
    except ValueError as error:
        raise ValueError(f"{path if path.is_file() else config}: {error}") from error
    return defaults


def constraints_of(defaults: DecodingDefaults, eos_id: int) -> tuple[Constraint, ...]:
    """The constraints that such options ask for, in the order of PyTorch's library.

    Raises:
        ValueError: they ask for what there is no constraint for.
    """
    d = defaults
    several = [row for row in d.bad_words_ids if len(row) > 1]
    require(not several, f"bad_words_ids of several tokens in a row are not supported: {shown(several)}")
    require(d.forced_eos_token_id in (None, eos_id), f"forced_eos_token_id {d.forced_eos_token_id} is not the end")
    return tuple(_constraints(defaults, eos_id))


def decoding_options(
    folder: Path, config: TransformerConfig, given: Mapping[str, Any], own: Collection[str]
) -> dict[str, Any]:
    """Options of a Translator: what is given, over what a folder with a generation_config.json says, as a Marian's.

    Args:
        own: the names that a Translator has itself; what is given under others of `DecodingDefaults` becomes
            constraints.
    """
    decides = decoding_of(folder)
    said = decides or DecodingDefaults()
    asked = {name: given[name] for name in DecodingDefaults._fields if name in given and name not in own}
    both = "constraints" in given and asked
    require(not both, f"give constraints, or {listed([*asked])}, which become constraints")
    options: dict[str, Any] = {}
    if decides:
        options = {name: getattr(said, name) for name in ("num_beams", "length_penalty", "early_stopping")}
        options |= {"preset": "hf", "max_length": config.max_length, "max_output_length": said.max_length}
    if "constraints" not in given:
        said = said._replace(**asked)
        check_fields(said)
        options["constraints"] = constraints_of(said, config.eos_id)
    return options | {name: value for name, value in given.items() if name not in asked}


def _constraints(d: DecodingDefaults, eos_id: int) -> Iterator[Constraint]:
    if d.repetition_penalty != 1:
        yield RepetitionPenalty(d.repetition_penalty)
    if d.no_repeat_ngram_size:
        yield NoRepeatedNgram(d.no_repeat_ngram_size)
    if forbidden := [id_ for row in d.bad_words_ids for id_ in row if id_ != eos_id]:
        yield Forbidden(tuple(forbidden))
    if d.min_length > 1:
        yield MinimumLength(d.min_length, eos_id)
    if d.forced_bos_token_id is not None:
        yield ForcedStart(d.forced_bos_token_id)
    if d.forced_eos_token_id is not None:
        yield EndAtLimit(eos_id)
    if d.renormalize_logits:
        yield Renormalized()


def _rows(words: Any) -> tuple[tuple[int, ...], ...]:
    fits = isinstance(words, list) and all(isinstance(row, list) and row for row in words)
    fits = fits and all(type(id_) is int and id_ >= 0 for row in words for id_ in row)
    require(fits, f"bad_words_ids must be a list of lists of ids, not {shown(words)}")
    return tuple(tuple(row) for row in words)

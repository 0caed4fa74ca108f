"""Translation of sentences."""

import dataclasses
import functools
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from transformer_jax.checkpoints import read_config
from transformer_jax.checks import LARGEST, Id, Range, check_fields, check_value, listed, require, shown
from transformer_jax.decoding import (
    BROKEN,
    Beam,
    BeamSearch,
    Constraint,
    GreedySearch,
    Length,
    Penalty,
    Prefix,
    Preset,
    Sampling,
    Search,
    SearchOptions,
    Temperature,
    TopK,
    TopP,
)
from transformer_jax.decoding_defaults import DecodingDefaults, constraints_of, read_decoding_defaults
from transformer_jax.generation import cast_matrices, decode
from transformer_jax.seq2seq import Transformer
from transformer_jax.texts import TextError, TextsCut, progress
from transformer_jax.tokenizer import (
    FILES_OF_TOKENIZERS,
    SENTENCEPIECE,
    Tokenizer,
    check_tokenizer,
    file_name,
    load_tokenizer,
    serialized,
)
from transformer_jax.weights import model_folder

# What is fetched of a repository of the hub beside the weights.
MORE_FILES = ("generation_config.json", *FILES_OF_TOKENIZERS)

LONGER = 50  # tokens that an output may have more than its source (Vaswani et al. 2017, section 6.1)

_NOTHING = (
    "the model gives scores that are not finite: look for nan or infinity in the parameters, or for constraints that "
    "leave no token"
)

Seed = Annotated[int, Range(0, 2**32 - 1)]


Output = tuple[list[int], float]  # ids without start and end, and the score


class Translation(NamedTuple):
    """An output.

    Attributes:
        score: what the search ranks by, see `SearchOptions`; of samples and of greedy search the log-probability.
        ids: its tokens, without start and end.
    """

    text: str
    score: float
    ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Translator:
    """Sentences in, sentences out: tokenised, sorted by length, padded to few shapes, decoded, put back in order.

    What becomes of a sentence does not depend on those that it is translated with, but for rounding.

    Attributes:
        num_beams: 1 is greedy search.
        length_penalty, early_stopping, preset: see `SearchOptions`, whose score is named by `preset`.
        max_length: tokens of a source, its end included; what is longer is cut, with a warning. Outputs have at most 50
            more than their source (Vaswani et al. 2017, section 6.1). Neither has more than a learned table of
            positions has rows.
        batch_size: sentences decoded together.
        max_output_length: tokens of an output, its start and its end among them, where that is less.
        constraints: see `transformer_jax.decoding.constraints`; those that are alike for all sentences.
        others: further models over the same vocabulary, with their parameters: the mean of all probabilities decides.

    Raises:
        ValueError: an option is out of range, or the tokenizer is not that of a model.
    """

    model: Transformer
    params: dict[str, Any]
    tokenizer: Tokenizer
    num_beams: Beam = 4
    length_penalty: Penalty = 0.6
    preset: Preset = "paper"
    max_length: Length = 256
    batch_size: Annotated[int, Range(1, 2**16)] = 64
    early_stopping: bool | Literal["never"] = False
    max_output_length: Length | None = None
    constraints: tuple[Constraint, ...] = ()
    others: tuple[tuple[Transformer, dict[str, Any]], ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        told = ("pad_id", "eos_id", "encoder_start_id", "decoder_start_id", "vocab_size", "target_vocab_size")
        for model, _ in self.others:
            for name in told:
                own, other = getattr(self.model.config, name), getattr(model.config, name)
                require(own == other, f"models that decide together must agree, but {name} is {own} and {other}")
        own = [constraint for constraint in self.constraints if jax.tree.leaves(constraint)]
        require(not own, f"constraints that hold arrays are of a batch's rows, not for a Translator: {shown(own)}")
        check_tokenizer(self.tokenizer, self.model.config)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, dtype: DTypeLike = jnp.float32, *, ensemble: Sequence[str | Path] = (), **options: Any
    ) -> "Translator":
        """Reads a folder that `Transformer.save_pretrained` wrote, with `spm.model` or `tokenizer.json` beside it.

        Or a Marian in Hugging Face's layout, from a folder or the hub, whose generation_config.json gives the options
        that are not given here.

        Args:
            ensemble: folders of further models with the same tokenizer, see `others`.
            options: those of the class; and instead of `constraints` the options of generation_config.json that make
                them (`min_length`, `repetition_penalty`, `no_repeat_ngram_size`, ...), see `DecodingDefaults`.

        Raises:
            ValueError: as `Transformer.from_pretrained`, `load_tokenizer` and the class; it names the folder.
        """
        path = model_folder(folder, MORE_FILES)
        tokenizer = load_tokenizer(path)
        model, params = Transformer.from_pretrained(path, dtype)
        name, words, wanted = file_name(tokenizer), tokenizer.vocab_size(), model.config.vocab_size
        # An spm.model that is cut off can be a smaller vocabulary; tables longer than the others are common.
        fits = words == wanted if name == SENTENCEPIECE else words <= wanted
        require(fits, f"{path}/{name} has {words} words, but vocab_size in config.json is {wanted}")
        others = []
        for each in ensemble:
            other = model_folder(each, MORE_FILES)
            same = serialized(load_tokenizer(other)) == serialized(tokenizer)
            require(same, f"{other} has another tokenizer than {path}: models that decide together share one")
            others.append(Transformer.from_pretrained(other, dtype))
        try:
            return cls(model, params, tokenizer, **{"others": tuple(others)} | _options(path, model, options))
        except ValueError as error:
            told = str(error)
            raise ValueError(told if told.startswith(str(path)) else f"{path}: {told}") from error

    def __call__(self, sentences: Sequence[str], prefixes: Sequence[str] | None = None) -> list[str]:
        """A translation for each sentence; "" for one without any token, such as "" and " ".

        Sentences that are longer than `max_length` are cut, and named in a warning.

        Args:
            prefixes: what each translation begins with; "" for nothing.

        Raises:
            ValueError: one string instead of several, something that is no string, or text that is not Unicode (a
                lone surrogate); a prefix that leaves no room; or the model's scores are not finite.
        """
        return [self._text(found[0][0]) if found else "" for found in self._search(sentences, self._kind, prefixes)]

    def n_best(self, sentences: Sequence[str], prefixes: Sequence[str] | None = None) -> list[list[Translation]]:
        """The best `num_beams` translations of each sentence that the search has found, the best first.

        They may be fewer, and none for a sentence without any token. Arguments, warnings and errors are the call's.
        """
        return [*map(self._translations, self._search(sentences, self._kind, prefixes))]

    def sample(
        self,
        sentences: Sequence[str],
        count: int = 1,
        seed: int = 0,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        prefixes: Sequence[str] | None = None,
        first: int = 0,
    ) -> list[list[Translation]]:
        """`count` translations of each sentence, drawn from the model's distribution behind the constraints.

        They are a function of the seed, of the sentence's place and of its text. Warnings and errors are the call's.

        Args:
            temperature: below 1 nearer to the likeliest token, above 1 nearer to chance.
            top_k: draw from the k likeliest tokens alone; 0 for all.
            top_p: draw from the fewest tokens whose probabilities come to p.
            prefixes: as in the call.
            first: the place of the first sentence, where a list comes in pieces.
        """
        check_value("count", count, Beam)
        check_value("seed", seed, Seed)
        check_value("top_k", top_k, Id)
        check_value("first", first, Id)
        warpers: list[Constraint] = []
        if temperature != 1:
            warpers.append(Temperature(temperature))
        if top_k:
            warpers.append(TopK(top_k))
        if top_p != 1:
            warpers.append(TopP(top_p))
        drawing = dataclasses.replace(self, num_beams=count, constraints=(*self.constraints, *warpers))
        found = drawing._search(sentences, Sampling, prefixes, jax.random.key(seed), first)
        return [*map(self._translations, found)]

    @property
    def _kind(self) -> type[Search]:
        return GreedySearch if self.num_beams == 1 else BeamSearch

    def _search(
        self,
        sentences: Sequence[str],
        kind: type[Search],
        prefixes: Sequence[str] | None,
        key: Array | None = None,
        first: int = 0,
    ) -> list[list[Output]]:
        """The outputs of each sentence; none of one without a token."""
        sources = self._sources(sentences)
        starts = self._starts(prefixes, sources)
        order = sorted((i for i, source in enumerate(sources) if source), key=lambda i: len(sources[i]))
        outputs: list[list[Output]] = [[] for _ in sources]
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        with progress(len(order), len(batches)) as advance:
            for members in batches:
                found = self._decode_batch(
                    [sources[i] for i in members],
                    None if starts is None else [starts[i] for i in members],
                    None if key is None else _keys(key, [first + i for i in members], self._rows(len(members))),
                    kind,
                )
                for i, own in zip(members, found, strict=True):
                    outputs[i] = own
                advance(len(members))
        return outputs

    def _decode_batch(
        self, sources: list[list[int]], starts: list[list[int]] | None, keys_B: Array | None, kind: type[Search]
    ) -> Iterator[list[Output]]:
        """The outputs of sources, the longest of which is the last."""
        c, rows = self.model.config, self._rows(len(sources))
        width = min(_bucket(len(sources[-1])), self._reach)
        ids_BS = np.full((rows, width), c.pad_id, np.int32)
        ids_BS[:, 0] = c.eos_id  # what fills up the last batch attends to something
        lengths_B, limit_B = np.ones(rows, np.int32), np.ones(rows, np.int32)  # and is done before it begins
        for row, source in enumerate(sources):
            ids_BS[row, : len(source)] = source
            lengths_B[row], limit_B[row] = len(source), self._limit(source)
        longest = min(_bucket(width + LONGER), self._reach)  # room for all; limit_B is what counts
        options = SearchOptions(
            longest,
            c.decoder_start_id,
            c.eos_id,
            c.pad_id,
            self.num_beams,
            self.length_penalty,
            self.early_stopping,
            self.preset,
        )
        ids_BWT, scores_BW = decode(
            (self.model, *(model for model, _ in self.others)),
            kind(options),
            self._weights,
            jnp.asarray(ids_BS),
            jnp.asarray(np.arange(width)[None, :] < lengths_B[:, None]),
            jnp.asarray(limit_B),
            (*self.constraints, *([] if starts is None else [_prefix(starts, rows)])),
            keys_B,
        )
        for row in range(len(sources)):
            ids_WT, scores_W = ids_BWT[row, :, : limit_B[row]], scores_BW[row].tolist()
            require(ids_WT[0, 1] != BROKEN, _NOTHING)
            yield [(self._ids(ids), score) for ids, score in zip(ids_WT, scores_W, strict=True) if score > -math.inf]

    @functools.cached_property
    def _weights(self) -> tuple[dict[str, Any], ...]:
        """The parameters of all models, in the type that they are multiplied in."""
        return tuple(cast_matrices(params, model.dtype) for model, params in ((self.model, self.params), *self.others))

    def _rows(self, count: int) -> int:
        """Of a batch with so many sentences: each number is a program of its own, to be compiled."""
        return min(self.batch_size, 1 << (count - 1).bit_length())

    def _limit(self, source: list[int]) -> int:
        """The most tokens of an output, its start and its end among them."""
        return min(len(source) + LONGER, self._reach, self.max_output_length or LARGEST)

    @property
    def _reach(self) -> int:
        """The tokens that a source, and an output, can have at all."""
        configs = [self.model.config, *(model.config for model, _ in self.others)]
        return min([c.max_length for c in configs if c.positions == "learned"], default=LARGEST)

    def _sources(self, sentences: Sequence[str]) -> list[list[int]]:
        """The ids of sentences, cut where they must be; [] for one without a token."""
        c = self.model.config
        begin = [] if c.encoder_start_id is None else [c.encoder_start_id]
        texts = _texts("sentences", sentences)
        encoded = (self.tokenizer.encode(text) if text.strip() else [] for text in texts)
        sources = [[*begin, *tokens, c.eos_id] if tokens else [] for tokens in encoded]
        longest = min(self.max_length, self._reach)
        cut = [i for i, source in enumerate(sources) if len(source) > longest]
        if cut:
            warnings.warn(TextsCut(longest, cut), stacklevel=4)
        return [source if len(source) <= longest else [*source[: longest - 1], c.eos_id] for source in sources]

    def _starts(self, prefixes: Sequence[str] | None, sources: list[list[int]]) -> list[list[int]] | None:
        """The ids that outputs begin with."""
        if prefixes is None:
            return None
        # A tokenizer of two vocabularies has a method for the target's.
        encode = getattr(self.tokenizer, "encode_target", self.tokenizer.encode)
        starts = [encode(text) for text in _texts("prefixes", prefixes)]
        require(len(starts) == len(sources), f"{len(starts)} prefixes for {len(sources)} sentences: give one for each")
        for i, (start, source) in enumerate(zip(starts, sources, strict=True)):
            if len(start) > (room := self._limit(source) - 2):
                raise TextError("prefixes", i, f"has {len(start)} tokens, but there is room for {room}")
        return starts

    def _ids(self, ids_T: np.ndarray) -> list[int]:
        return list(itertools.takewhile(lambda id_: id_ != self.model.config.eos_id, ids_T[1:].tolist()))

    def _text(self, ids: list[int]) -> str:
        try:
            return self.tokenizer.decode(ids)
        except IndexError as error:
            raise ValueError(f"the model gave ids that the tokenizer does not have, up to {max(ids)}") from error

    def _translations(self, found: list[Output]) -> list[Translation]:
        return [Translation(self._text(ids), score, tuple(ids)) for ids, score in found]


def _options(folder: Path, model: Transformer, given: dict[str, Any]) -> dict[str, Any]:
    """Those of a Translator: what is given, over what a Marian's folder says."""
    marian = read_config(folder).get("model_type") == "marian"
    said = read_decoding_defaults(folder) if marian else DecodingDefaults()
    own = {field.name for field in dataclasses.fields(Translator)}
    asked = {name: given[name] for name in DecodingDefaults._fields if name in given and name not in own}
    both = "constraints" in given and asked
    require(not both, f"give constraints, or {listed([*asked])}, which become constraints")
    options: dict[str, Any] = {}
    if marian:
        options = {name: getattr(said, name) for name in ("num_beams", "length_penalty", "early_stopping")}
        options |= {"preset": "hf", "max_length": model.config.max_length, "max_output_length": said.max_length}
    if "constraints" not in given:
        said = said._replace(**asked)
        check_fields(said)
        options["constraints"] = constraints_of(said, model.config.eos_id)
    return options | {name: value for name, value in given.items() if name not in asked}


def _texts(name: str, texts: Sequence[str]) -> Iterator[str]:
    """The texts, checked."""
    several = isinstance(texts, Iterable) and not isinstance(texts, str | bytes | Mapping)
    require(several, f"give a list of {name}, not {shown(texts)}")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TextError(name, i, f"must be a string, not {shown(text)}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TextError(name, i, f"is not Unicode: {error}") from error
        yield text


def _prefix(starts: list[list[int]], rows: int) -> Prefix:
    """The constraint that outputs begin with these ids."""
    ids_BP = np.zeros((rows, _bucket(max(map(len, starts)))), np.int32)
    lengths_B = np.zeros(rows, np.int32)
    for row, start in enumerate(starts):
        ids_BP[row, : len(start)], lengths_B[row] = start, len(start)
    return Prefix(jnp.asarray(ids_BP), jnp.asarray(lengths_B))


def _keys(key: Array, places: list[int], rows: int) -> Array:
    """A key for each row, which follows from its sentence's place among all."""
    places_B = np.zeros(rows, np.uint32)
    places_B[: len(places)] = places
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(places_B))


def _bucket(length: int) -> int:
    """The next of 16, 32, 64, 128 ...: each is a program of its own, to be compiled."""
    return max(16, 1 << (length - 1).bit_length())

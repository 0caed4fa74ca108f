"""Translation of sentences."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jax.typing import DTypeLike

from transformer_jax.alignment import (
    Alignment,
    Splitter,
    align_words,
    decoder_layer,
    token_attention,
    words_of_tokens,
)
from transformer_jax.batches import (
    Asked,
    ask,
    bucket,
    by_length,
    decode_text,
    demands,
    encode_sources,
    encode_translations,
    padded,
    row_count,
    row_keys,
    tokens_of,
)
from transformer_jax.checks import LARGEST, Id, Range, check_fields, check_value, require, shown
from transformer_jax.chunks import ShortLists, cast_matrices, decode
from transformer_jax.decoding import (
    BROKEN,
    Beam,
    BeamSearch,
    Constraint,
    ForcedStart,
    GreedySearch,
    Length,
    Penalty,
    Preset,
    Sampling,
    Search,
    SearchOptions,
    Temperature,
    TopK,
    TopP,
    check_columns,
)
from transformer_jax.decoding_defaults import decoding_options
from transformer_jax.devices import Devices
from transformer_jax.generation import GREEDY
from transformer_jax.loading import MORE_FILES, load_models
from transformer_jax.seq2seq import Transformer
from transformer_jax.shortlist import ShortList, short_lists
from transformer_jax.texts import TextError, checked_texts, progress
from transformer_jax.tokenizer import Tokenizer, check_tokenizer
from transformer_jax.weights import model_folder

LONGER = 50  # tokens that an output may have more than its source (Vaswani et al. 2017, section 6.1)

_NOTHING = "has scores that are not finite: look for nan in the parameters, or constraints that leave no token"

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
        length_penalty, early_stopping, preset: see `SearchOptions`.
        max_length: tokens of a source, its end included; what is longer is cut, with a warning. Outputs have at most 50
            more than their source (Vaswani et al. 2017, section 6.1). Neither has more than a learned table of
            positions has rows.
        batch_size: sentences decoded together.
        max_output_length: tokens of an output, its start and its end among them, where that is less.
        constraints: see `transformer_jax.decoding.constraints`; those that are alike for all sentences.
        others: further models over the same vocabulary, with their parameters: the mean of all probabilities decides.
        mesh: the rows of each batch are split over all its devices, whatever its axes are, and the parameters copied to
            each; None for the default device. The rows are then a multiple of the number of devices.
        shortlist: what each output is made of, by the words of its source. Only these words' logits are computed, and
            scores are under probabilities that are shared among them alone: higher ones than without.

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
    mesh: Mesh | None = None
    shortlist: ShortList | None = None

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
        Devices.of(self.mesh)
        if self.shortlist is not None:
            require(
                isinstance(self.shortlist, ShortList), f"shortlist must be a ShortList, not {shown(self.shortlist)}"
            )
            check_columns(self.constraints)
            self.shortlist.check(self.model.config.target_vocab_size)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, dtype: DTypeLike = jnp.float32, *, ensemble: Sequence[str | Path] = (), **options: Any
    ) -> "Translator":
        """Reads a folder that `Transformer.save_pretrained` wrote, with its tokenizer beside it; see `load_tokenizer`.

        Or a Marian in Hugging Face's layout, from a folder or the hub. A generation_config.json in the folder gives
        the options that are not given here.

        Args:
            ensemble: folders of further models with the same tokenizer, see `others`.
            options: those of the class; and instead of `constraints` the options of generation_config.json that make
                them (`min_length`, `repetition_penalty`, `no_repeat_ngram_size`, ...), see `DecodingDefaults`.

        Raises:
            ValueError: as `Transformer.from_pretrained`, `load_tokenizer` and the class; it names the folder.
        """
        path = model_folder(folder, MORE_FILES)
        (model, params), tokenizer, others = load_models(path, dtype, ensemble)
        own = [field.name for field in dataclasses.fields(cls)]
        try:
            options = decoding_options(path, model.config, options, own)
            return cls(model, params, tokenizer, **{"others": others} | options)
        except ValueError as error:
            told = str(error)
            raise ValueError(told if told.startswith(str(path)) else f"{path}: {told}") from error

    def __call__(
        self,
        sentences: Sequence[str],
        prefixes: Sequence[str] | None = None,
        phrases: Sequence[Sequence[str]] | None = None,
    ) -> list[str]:
        """A translation for each sentence; "" for one without any token, such as "" and " ".

        Sentences that are longer than `max_length` are cut, and named in a warning.

        Args:
            prefixes: what each translation begins with; "" for nothing.
            phrases: those that each translation contains, where the model likes them best; [] for none. They are whole
                words, with the tokens that they have behind a space, and may overlap; the last may go on. A phrase that
                is given n times comes n times.

        Raises:
            ValueError: one string instead of several, something that is no string, or text that is not Unicode (a
                lone surrogate); a prefix or phrases that leave no room, a phrase that the tokenizer does not know, or
                any for greedy search; or the model's scores are not finite.
        """
        return [*map(self._text, self._search(sentences, self._kind, prefixes, phrases))]

    def n_best(
        self,
        sentences: Sequence[str],
        prefixes: Sequence[str] | None = None,
        phrases: Sequence[Sequence[str]] | None = None,
    ) -> list[list[Translation]]:
        """The best `num_beams` translations of each sentence that the search has found, the best first.

        They may be fewer, and none for a sentence without any token. Arguments, warnings and errors are the call's.
        """
        return [*map(self._translations, self._search(sentences, self._kind, prefixes, phrases))]

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
        found = drawing._search(sentences, Sampling, prefixes, None, jax.random.key(seed), first)
        return [*map(self._translations, found)]

    def align(
        self,
        sentences: Sequence[str],
        translations: Sequence[str],
        *,
        layer: int | None = None,
        words: Splitter = str.split,
    ) -> list[Alignment]:
        """Which word of its sentence each word of a translation came from, by the attention of the first model.

        Translations may be anyone's. A token attends as the step does that gives it, where all before it are those of
        the translation: the mean over the heads of one decoder layer. What has no token, or was cut, has no links.
        Warnings are the call's; translations are cut at `max_length` + 50 tokens.

        Args:
            translations: one for each sentence.
            layer: of the decoder, from 0 or, negative, from the end. By default the last but one, where Garg et al.
                (2019) found the best alignments, or the only one.
            words: the words of a text, by default what white space separates. Texts without spaces, such as Chinese,
                need another: `list` for characters, or the function of a word segmenter.

        Raises:
            ValueError: not one translation for each sentence, no such layer, a tokenizer that does not say where its
                tokens stand, words that do not stand in their text, or as the call.
        """
        sentences = [*checked_texts("sentences", sentences)]
        translations = [*checked_texts("translations", translations)]
        texts, said = len(sentences), len(translations)
        require(texts == said, f"{said} translations for {texts} sentences: give one for each")
        layer = decoder_layer(layer, self.model.config.decoder_layers)
        source_words = words_of_tokens(self.tokenizer, "sentences", sentences, words, self._longest)
        target_words = words_of_tokens(self.tokenizer, "translations", translations, words, self._longest + LONGER)
        return [*map(align_words, self._attention(sentences, translations, layer), source_words, target_words)]

    @property
    def _kind(self) -> type[Search]:
        return GreedySearch if self.num_beams == 1 else BeamSearch

    def _search(
        self,
        sentences: Sequence[str],
        kind: type[Search],
        prefixes: Sequence[str] | None,
        phrases: Sequence[Sequence[str]] | None = None,
        key: Array | None = None,
        first: int = 0,
    ) -> list[list[Output]]:
        """The outputs of each sentence; none of one without a token."""
        sources = encode_sources(self.tokenizer, self.model.config, sentences, self._longest)
        limits = [self._limit(source) for source in sources]
        require(phrases is None or self.num_beams > 1, GREEDY)
        asked = ask(self.tokenizer, self.model.config, sources, limits, prefixes, phrases)
        outputs: list[list[Output]] = [[] for _ in sources]
        batches = by_length(sources, self.batch_size)
        with progress(sum(map(len, batches)), len(batches)) as advance:
            for members in batches:
                keys_B = None
                if key is not None:
                    keys_B = row_keys(key, [first + i for i in members], self._rows(len(members)))
                found = self._decode_batch([asked[i] for i in members], keys_B, kind)
                for i, own in zip(members, found, strict=True):
                    if own is None:
                        raise TextError("sentences", i, _NOTHING)
                    outputs[i] = own
                advance(len(members))
        return outputs

    def _decode_batch(
        self, asked: list[Asked], keys_B: Array | None, kind: type[Search]
    ) -> Iterator[list[Output] | None]:
        """The outputs of sentences, the longest of which is the last; None where scores are not finite."""
        c, rows = self.model.config, self._rows(len(asked))
        width = min(bucket(len(asked[-1].source)), self._reach)
        batch = padded([each.source for each in asked], [each.limit for each in asked], rows, width, c)
        longest = min(bucket(width + LONGER), self._reach)  # room for all; limits are what counts
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
        split = self._devices.split
        batch, keys_B, (begin, phrases) = split((batch, keys_B, demands(asked, rows)))
        short = None
        if self.shortlist is not None:
            always = [c.eos_id, *(each.id for each in self.constraints if isinstance(each, ForcedStart))]
            ids_N, is_own_BN = short_lists(self.shortlist, asked, always, rows, c.target_vocab_size)
            short = ShortLists(self._devices.copied(ids_N), split(is_own_BN))
        with self._devices.in_use():
            ids_BWT, scores_BW = decode(
                (self.model, *(model for model, _ in self.others)),
                kind(options),
                self._weights,
                *batch,
                (*self.constraints, *begin),
                keys_B,
                self._devices.mesh,
                phrases,
                short,
            )
        for row, each in enumerate(asked):
            ids_WT, scores_W = ids_BWT[row, :, : each.limit], scores_BW[row].tolist()
            both = zip(ids_WT, scores_W, strict=True)
            found = [(tokens_of(ids_T, c.eos_id), score) for ids_T, score in both if score > -math.inf]
            yield None if ids_WT[0, 1] == BROKEN else found

    def _attention(self, sentences: list[str], translations: list[str], layer: int) -> list[np.ndarray]:
        """What the tokens of translations attend to in their sentences, see `token_attention`."""
        sources = encode_sources(self.tokenizer, self.model.config, sentences, self._longest)
        targets = encode_translations(self.tokenizer, translations, min(self._longest + LONGER, self._reach))
        how = (self.batch_size, self._reach, self._devices)
        return token_attention(self.model, layer, self._weights[0], sources, targets, *how)

    @functools.cached_property
    def _weights(self) -> tuple[dict[str, Any], ...]:
        """The parameters of all models, in the type that they are multiplied in."""
        models = ((self.model, self.params), *self.others)
        return tuple(self._devices.copied(cast_matrices(params, model.dtype)) for model, params in models)

    @functools.cached_property
    def _devices(self) -> Devices:
        return Devices.of(self.mesh)

    def _rows(self, count: int) -> int:
        return row_count(count, self.batch_size, self._devices.parts)

    def _limit(self, source: list[int]) -> int:
        """The most tokens of an output, its start and its end among them."""
        return min(len(source) + LONGER, self._reach, self.max_output_length or LARGEST)

    @property
    def _reach(self) -> int:
        """The tokens that a source, and an output, can have at all."""
        configs = [self.model.config, *(model.config for model, _ in self.others)]
        return min([c.max_length for c in configs if c.positions == "learned"], default=LARGEST)

    @property
    def _longest(self) -> int:
        """The most tokens of a source."""
        return min(self.max_length, self._reach)

    def _text(self, found: list[Output]) -> str:
        return decode_text(self.tokenizer, found[0][0]) if found else ""

    def _translations(self, found: list[Output]) -> list[Translation]:
        return [Translation(decode_text(self.tokenizer, ids), score, tuple(ids)) for ids, score in found]

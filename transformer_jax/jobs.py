"""The jobs of `python -m transformer_jax`."""

import dataclasses
import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from transformer_jax.alignment import Alignment
from transformer_jax.checks import Id, Range, Size, listed, require
from transformer_jax.decoding import Beam, Length, Penalty, Preset
from transformer_jax.generation import GREEDY
from transformer_jax.lines import Job, Record, columns_line, json_line
from transformer_jax.minimum_risk import by_risk
from transformer_jax.shortlist import ShortList
from transformer_jax.tags import BACK_TRANSLATED, split_tags
from transformer_jax.texts import TextsCut
from transformer_jax.translator import Seed, Translation, Translator


@dataclasses.dataclass(frozen=True)
class SentencesJob(Job):
    """Outputs for a sentence a line, which is an empty line where that is one.

    What is not UTF-8 in a line is read as U+FFFD, and told.

    Attributes:
        format: the best output alone; or columns, score and text of each output; or a JSON object a line; or for each
            output a pair to train on, "<BT>" and the output, a tab, the text (see `back_translation`)
        alignment: which word of the sentence each word of an output came from, such as 0-0 1-2: behind ||| where the
            output stands alone, in a column behind its text, or as pairs in the object
        max_length: tokens of a sentence; what is longer is cut, and told
        max_output_length: tokens of an output; at most 50 more than its sentence has
        ensemble: folders of models that decide together with that of FOLDER
        min_length: tokens of an output, the start token among them, before it may end
        repetition_penalty: what scores of tokens that an output has already are divided by
        no_repeat_ngram_size: n, where no n tokens in a row come twice in an output; 0 for none
        shortlist: a lexical table by which each output has few words to be made of, a target word, a source word and a
            probability in each line: faster
        devices: how many the sentences of a batch are split over; all that there are where not given

    What is None is as the folder says.
    """

    format: Literal["text", "tsv", "jsonl", "back-translation"] = "text"
    alignment: bool = False
    max_length: Length | None = None
    max_output_length: Length | None = None
    ensemble: tuple[str, ...] = ()
    min_length: Id | None = None
    repetition_penalty: Annotated[float, Range(0, open_low=True)] | None = None
    no_repeat_ngram_size: Id | None = None
    shortlist: str | None = None
    devices: Size | None = None

    settings: ClassVar[tuple[str, ...]] = (
        "batch_size",
        "max_length",
        "max_output_length",
        "min_length",
        "repetition_penalty",
        "no_repeat_ngram_size",
    )

    def load(self) -> Any:
        idle = self.alignment and self.format == "back-translation"
        require(not idle, "--alignment has no meaning beside --format back-translation, which has no place for it")
        given = {name: getattr(self, name) for name in self.settings if getattr(self, name) is not None}
        devices = jax.local_devices()
        enough = self.devices is None or self.devices <= len(devices)
        require(enough, f"--devices {self.devices}: there are {len(devices)}")
        if len(devices := devices[: self.devices]) > 1:
            given["mesh"] = Mesh(np.array(devices), ("devices",))
        translator = Translator.from_pretrained(self.folder, jnp.dtype(self.dtype), ensemble=self.ensemble, **given)
        if self.shortlist is None:
            return translator
        return dataclasses.replace(translator, shortlist=ShortList.read(self.shortlist, translator.tokenizer))

    def text(self, number: int, line: bytes) -> str:
        try:
            return super().text(number, line)
        except ValueError as error:
            warnings.warn(f"{error}: what cannot be read there is read as U+FFFD", stacklevel=2)
            return super().text(number, line.decode("utf-8", "replace").encode())

    def aligned(
        self, translator: Translator, texts: Sequence[str], outputs: Sequence[list[Translation]]
    ) -> Iterator[Record]:
        """The answers that outputs of texts are, with alignments where asked for."""
        found: Iterator[Alignment] = iter(())
        if self.format == "text":
            outputs = [own[:1] for own in outputs]
        if self.alignment:
            pairs = [(text, output.text) for text, own in zip(texts, outputs, strict=True) for output in own]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TextsCut)  # told by the search
                found = iter(translator.align([text for text, _ in pairs], [output for _, output in pairs]))
        for own in outputs:
            yield {"outputs": own, "alignments": [*itertools.islice(found, len(own))]}

    @property
    def whole(self) -> bool:
        return self.format == "back-translation"

    def written(self, record: Record, answer: Record) -> str | None:
        if self.format == "back-translation":
            return back_translation(record["text"], answer["outputs"])
        said = [{"text": output.text, "score": output.score} for output in answer["outputs"]]
        for output, alignment in zip(said, answer["alignments"], strict=False):
            output["alignment"] = alignment.links if self.format == "jsonl" else alignment.pharaoh()
        if self.format == "jsonl":
            return json_line({**record, "translations": said})
        if self.format == "tsv":
            names = ("score", "text", "alignment")
            return columns_line(output[name] for output in said for name in names if name in output)
        best = said[0] if said else {"text": ""}
        return columns_line([" ||| ".join(best[name] for name in ("text", "alignment") if name in best)])


def back_translation(text: str, outputs: Sequence[Translation]) -> str | None:
    """Rows SOURCE, tab, TARGET for `train translate`, whose target people wrote (Sennrich et al. 2016).

    The source is marked (Caswell et al. 2019). The text's own tags, which ask for the output's language, are none of
    its words. Nothing is made of a text or an output that is empty, or that cannot be read.
    """
    _, target = split_tags(text)
    pairs = [(split_tags(output.text)[1], target) for output in outputs]
    rows = [columns_line(pair) for pair in pairs if all(side.strip() for side in pair)]
    return "\n".join(f"{BACK_TRANSLATED} {row}" for row in rows if not {"\0", "\ufffd"} & {*row}) or None


@dataclasses.dataclass(frozen=True)
class TranslateJob(SentencesJob):
    """Translates a sentence a line by beam search.

    Attributes:
        num_beams: 1 is greedy search; 4 where the folder does not say
        length_penalty: 0.6 where the folder does not say
        early_stopping: when a search ends, see SearchOptions
        preset: how outputs are scored; paper where the folder does not say
        n_best: outputs of a sentence, the best first
        phrases: a line is a sentence and, behind tabs, phrases that its translation contains
    """

    num_beams: Beam | None = None
    length_penalty: Penalty | None = None
    early_stopping: bool | Literal["never"] | None = None
    preset: Preset | None = None
    n_best: Size = 1
    phrases: bool = False

    settings = (*SentencesJob.settings, "num_beams", "length_penalty", "early_stopping", "preset")

    def load(self) -> Translator:
        wasted = f"--n-best {self.n_best}: --format text has the best output alone; give --format tsv or jsonl"
        require(self.n_best == 1 or self.format != "text", wasted)
        translator = super().load()
        beams = translator.num_beams
        beams_only = () if beams > 1 else ("length_penalty", "early_stopping", "preset")
        idle = [f"--{name.replace('_', '-')}" for name in beams_only if getattr(self, name) is not None]
        require(not idle, f"{listed(idle)}: no meaning beside --num-beams 1, which is greedy search")
        fixed = translator.preset == "marian" and self.early_stopping is not None
        require(not fixed, "--early-stopping: no meaning beside --preset marian, which has a rule of its own")
        require(self.n_best <= beams, f"--n-best {self.n_best} is more than the {beams} of --num-beams")
        require(beams > 1 or not self.phrases, f"--phrases: {GREEDY}")
        return translator

    def record(self, line: str) -> Record:
        if not self.phrases:
            return super().record(line)
        text, *phrases = line.split("\t")
        return {"text": text, "phrases": [phrase for phrase in phrases if phrase.strip()]}

    def answers(self, loaded: Translator, records: Sequence[Record]) -> Iterable[Record]:
        texts = [record["text"] for record in records]
        found = loaded.n_best(texts, phrases=[record["phrases"] for record in records] if self.phrases else None)
        return self.aligned(loaded, texts, [outputs[: self.n_best] for outputs in found])


@dataclasses.dataclass(frozen=True)
class SampleJob(SentencesJob):
    """Draws outputs for a sentence a line.

    Attributes:
        count: outputs of a sentence
        temperature: below 1 nearer to the likeliest token, above 1 nearer to chance
        top_k: draw from the k likeliest tokens alone; 0 for all
        top_p: draw from the fewest tokens whose probabilities come to p
        seed: decides what is drawn
        minimum_risk: put the output first that has the most in common with the others, by chrF
    """

    count: Beam = 1
    temperature: Annotated[float, Range(0, open_low=True)] = 1.0
    top_k: Id = 0
    top_p: Annotated[float, Range(0, 1, open_low=True)] = 1.0
    seed: Seed = 0
    minimum_risk: bool = False

    def load(self) -> tuple[Translator, Iterator[int]]:
        """What draws, and how many sentences came before."""
        wasted = f"--count {self.count}: --format text has the first output alone; give --minimum-risk, or --format tsv"
        require(self.count == 1 or self.format != "text" or self.minimum_risk, wasted)
        require(self.count > 2 or not self.minimum_risk, "--minimum-risk has no choice: give a --count of 3 or more")
        ranks = self.minimum_risk and self.format == "back-translation"
        require(not ranks, "--minimum-risk has no meaning beside --format back-translation, a row for each output")
        return super().load(), itertools.count()

    def answers(self, loaded: tuple[Translator, Iterator[int]], records: Sequence[Record]) -> Iterable[Record]:
        translator, places = loaded
        first, *_ = itertools.islice(places, len(records))
        how: dict[str, Any] = {name: getattr(self, name) for name in ("temperature", "top_k", "top_p")}
        texts = [record["text"] for record in records]
        drawn = translator.sample(texts, self.count, self.seed, first=first, **how)
        return self.aligned(translator, texts, [by_risk(outputs) for outputs in drawn] if self.minimum_risk else drawn)


JOBS: dict[str, type[Job]] = {"translate": TranslateJob, "sample": SampleJob}

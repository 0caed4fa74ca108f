"""Translation data: pairs of sentences from files, a shared vocabulary, and batches of about equal token counts."""

import hashlib
import io
import os
import random
import re
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sentencepiece

from train.data.files import read_lines
from train.data.tfds import is_tfds, tfds_source
from train.errors import InputError

Pair = tuple[str, str]

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
_VOCABULARY_SENTENCES = 1_000_000
_VOCABULARY_THREADS = 4  # a constant: the order of floating-point sums, and so the vocabulary, depends on it


# --- reading -----------------------------------------------------------------------------------------------------


def read_pairs(data: Sequence[str], option: str = "--data", split: str = "train") -> list[Pair]:
    """Reads (source, target) pairs.

    Args:
        data: one TSV file (`source<TAB>target`, a `.gz` suffix means gzip); or two files whose lines belong together,
            source first; or one TFDS data set (`tfds:NAME/CONFIG[:SPLIT]` or a folder that TFDS prepared) whose
            rows are or hold a dict of two languages. Source is the language that the name of the configuration has
            first, as in TFDS' `supervised_keys`: German for `tfds:wmt14_translate/de-en`.
        option: what to blame in messages.
        split: the split of a TFDS data set that names none.

    Raises:
        InputError: more than two files; a row that is not two texts with one tab between; files of different
            length; an empty side; a tab in one of two files; a TFDS row of another form.
    """
    if len(data) == 1:
        return _tfds_pairs(data[0], split, option) if is_tfds(data[0]) else _tsv_pairs(data[0], option)
    if len(data) == 2 and not any(map(is_tfds, data)):
        return _aligned_pairs(data[0], data[1], option)
    raise InputError(f"{option}: {' '.join(data) or 'nothing'}: give one TSV file, two aligned files or one tfds:NAME")


def _tsv_pairs(path: str, option: str) -> list[Pair]:
    pairs = []
    for number, line in read_lines(path, option):
        sides = line.split("\t")
        if len(sides) != 2:
            raise InputError(
                f"{option}: {path}:{number} has {len(sides) - 1} tabs; each row is SOURCE, one tab, TARGET"
            )
        pairs.append(_pair(sides[0], sides[1], f"{option}: {path}:{number}"))
    return pairs


def _aligned_pairs(source_path: str, target_path: str, option: str) -> list[Pair]:
    pairs: list[Pair] = []
    lines = [0, 0]
    for source, target in zip_longest(read_lines(source_path, option), read_lines(target_path, option)):
        for side, (line, path) in enumerate(((source, source_path), (target, target_path))):
            lines[side] += line is not None
            if line is not None and "\t" in line[1]:
                raise InputError(f"{option}: {path}:{line[0]} has a tab; a TSV file is given alone, not as one of two")
        if source is not None and target is not None and lines[0] == lines[1]:
            pairs.append((source[1].strip(), target[1].strip()))
    if lines[0] != lines[1]:
        raise InputError(
            f"{option}: {source_path} has {lines[0]} lines and {target_path} has {lines[1]}; line n of one must be "
            "the translation of line n of the other"
        )
    for number, (source_text, target_text) in enumerate(pairs, 1):
        _pair(source_text, target_text, f"{option}: {target_path if source_text else source_path}:{number}")
    return pairs


def _tfds_pairs(spec: str, split: str, option: str) -> list[Pair]:
    source = tfds_source(spec, split, option)
    pairs = []
    for index in range(len(source)):
        row = source[index]
        nested = [value for value in row.values() if isinstance(value, dict)]
        languages = nested[0] if len(nested) == 1 else row
        if len(languages) != 2 or not all(isinstance(text, str) for text in languages.values()):
            raise InputError(
                f"{option}: {source.name}: row {index} has the fields {', '.join(row)}; translation data has the texts "
                "of two languages"
            )
        # Rows come with sorted keys; only the configuration's name tells which language is the source.
        first, second = sorted(languages, key=source.name.split(" ")[0].partition("/")[2].find)
        source_text, target_text = (" ".join(languages[language].split()) for language in (first, second))
        pairs.append(_pair(source_text, target_text, f"{option}: {source.name}: row {index}"))
    return pairs


def _pair(source: str, target: str, place: str) -> Pair:
    source, target = source.strip(), target.strip()
    if not source or not target:
        raise InputError(f"{place}: the {'target' if source else 'source'} is empty; remove the pair or complete it")
    return source, target


def hold_out(pairs: Sequence[Pair], count: int) -> tuple[list[Pair], list[Pair]]:
    """Splits pairs into (train, held out) with `count` held-out sources, chosen by a hash of their text.

    All pairs of a held-out source leave the training data; the first of them is the held-out one. The choice does
    not depend on the order of the pairs, and pairs that are added later change little of it.

    Raises:
        InputError: there are no sources left to train on.
    """
    targets: dict[str, str] = {}
    for source, target in pairs:
        targets.setdefault(source, target)
    if not 0 < count < len(targets):
        raise InputError(
            f"cannot hold out {count} of {len(targets)} different source sentences; "
            "hold out fewer, or name held-out pairs with --eval.data"
        )
    chosen = sorted(targets, key=lambda source: hashlib.sha256(source.encode()).digest())[:count]
    reserved = set(chosen)
    return [pair for pair in pairs if pair[0] not in reserved], [(source, targets[source]) for source in chosen]


# --- vocabulary --------------------------------------------------------------------------------------------------


def train_sentencepiece(
    pairs: Sequence[Pair], vocab_size: int, folder: Path | None = None
) -> sentencepiece.SentencePieceProcessor:
    """Trains one unigram vocabulary on both sides of the pairs (Kudo 2018), the same one for the same pairs.

    Every character is in it, and digits are split from each other. Ids: padding 0 (also the decoder's start, as in
    T5 and Marian), EOS 1, unknown 2, no BOS. Of more than a million sentences a fixed sample is used.

    Args:
        folder: where to write `spm.model`, whole or not at all; by default nothing is written.

    Raises:
        InputError: the text does not give `vocab_size` pieces, or has more characters than that.
    """
    sentences = list(chain.from_iterable(pairs))
    if len(sentences) > _VOCABULARY_SENTENCES:
        sentences = random.Random(0).sample(sentences, _VOCABULARY_SENTENCES)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            split_digits=True,
            byte_fallback=False,
            character_coverage=1.0,  # otherwise the rarest letters, as in "Réunion", become unknown
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            bos_id=-1,
            num_threads=_VOCABULARY_THREADS,
            shuffle_input_sentence=False,
            minloglevel=3,
        )
    except RuntimeError as error:
        raise _vocabulary_error(error, vocab_size) from error
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"spm.model.{os.getpid()}.partial"
        partial.write_bytes(model.getvalue())
        partial.replace(folder / "spm.model")
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def _vocabulary_error(error: RuntimeError, vocab_size: int) -> InputError:
    message = str(error)
    if high := re.search(r"Vocabulary size too high.*<= (\d+)", message, re.S):
        return InputError(f"--vocab-size: {vocab_size} is more than the training text gives; at most {high[1]}")
    if low := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return InputError(f"--vocab-size: {vocab_size} is less than the text's characters; at least {low[1]}")
    reason = " ".join(message.split())
    return InputError(f"--vocab-size: SentencePiece cannot make a vocabulary of {vocab_size}: {reason}")


def load_sentencepiece(path: str | Path) -> sentencepiece.SentencePieceProcessor:
    """Reads an `spm.model`.

    Raises:
        InputError: the file is missing or no SentencePiece model.
    """
    try:
        processor = sentencepiece.SentencePieceProcessor()
        processor.LoadFromSerializedProto(Path(path).read_bytes())  # the constructor takes empty bytes for no model
        return processor
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as a SentencePiece model: {reason}") from error


def encode_pairs(
    processor: sentencepiece.SentencePieceProcessor, pairs: Iterable[Pair]
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of all sources and of all targets, each with EOS at its end."""
    sources, targets = zip(*pairs, strict=True)
    return processor.encode(list(sources), add_eos=True), processor.encode(list(targets), add_eos=True)


# --- batches -----------------------------------------------------------------------------------------------------


def bucket_lengths(lengths: Sequence[int], count: int = 4, multiple: int = 8, *, maximum: int) -> tuple[int, ...]:
    """The boundaries of at most `count` buckets that need the least padding for the `lengths`.

    They are multiples of `multiple` or `maximum`; none exceeds `maximum`, and lengths above it do not count.
    """
    kept = [length for length in lengths if length <= maximum]
    used = sorted({min(-(-length // multiple) * multiple, maximum) for length in kept})
    below = np.searchsorted(np.sort(kept), used, side="right")  # lengths up to each possible boundary
    # best[j]: total padded length, and boundaries, of all lengths up to used[j] in the buckets allowed so far
    best: list[tuple[int, tuple[int, ...]]] = [(int(n) * bound, (bound,)) for n, bound in zip(below, used, strict=True)]
    for _ in range(count - 1):
        longer = [
            [(best[i][0] + int(below[j] - below[i]) * used[j], (*best[i][1], used[j])) for i in range(j)]
            for j in range(len(used))
        ]
        best = [min([one, *more]) for one, more in zip(best, longer, strict=True)]
    return best[-1][1] if best else (maximum,)


class _Bucket(NamedTuple):
    length: int
    rows: int
    members: np.ndarray  # int64, indices of examples


class TokenBatches:
    """Random access to batches of pairs of about `tokens_per_batch` target tokens each, padding included.

    `batches[k]` is a dict of int32 [B, L]: `input_ids` (source) and `labels` (target), both padded to the length L of
    the bucket; consumers take `ids != pad_id` as the mask. Examples go by the longer of their sides into the first
    of the `lengths` that holds it. B is the largest multiple of `multiple` with B * L <= `tokens_per_batch`, though
    at least `multiple`.

    An epoch permutes the examples of each bucket by (seed, epoch), cuts them into batches, leaves out what fills no
    batch, and permutes the batches. So n = `batches_per_epoch` is constant, and step k is batch k % n of epoch
    k // n. A bucket with too few examples for one batch gives them to the next longer one; the last takes as many rows
    as it has examples for and, with fewer than `multiple`, those of the next shorter one.

    Args:
        sources, targets: token ids of each example, EOS included.
        lengths: the buckets' padded lengths.
        steps: the number of batches, over as many epochs as it takes.
        multiple: what B is a multiple of: the number of shards of the batch, itself a multiple of `process_count`.
        process_index, process_count: `batches[k]` is this slice of the rows of the global batch.

    Attributes:
        batches_per_epoch: the n above.
        dropped: how many examples are longer than all `lengths`.
        shapes: the (B, L) of global batches that occur.

    Raises:
        InputError: no examples, or fewer than `multiple`, are short enough.
    """

    def __init__(
        self,
        sources: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        *,
        tokens_per_batch: int,
        lengths: Sequence[int],
        pad_id: int = PAD_ID,
        seed: int,
        steps: int,
        multiple: int = 1,
        process_index: int = 0,
        process_count: int = 1,
    ):
        if multiple % process_count:
            raise ValueError(f"multiple is {multiple}, but must be a multiple of the {process_count} processes")
        self._sources, self._targets = _Ragged(sources), _Ragged(targets)
        self._pad_id, self._seed, self._steps = pad_id, seed, steps
        self._process_index, self._process_count = process_index, process_count
        longest = np.maximum(self._sources.lengths, self._targets.lengths)
        bounds = sorted(set(lengths))
        self.dropped = int(np.sum(longest > bounds[-1]))
        if len(longest) - self.dropped < multiple:
            raise InputError(
                f"--data: {len(longest) - self.dropped} of {len(longest)} pairs have at most {bounds[-1]} tokens a "
                f"side, but a batch needs {multiple} or more; give more or shorter pairs, or raise --max-length"
            )
        self._buckets = _fill_buckets(longest, bounds, tokens_per_batch, multiple)
        self.shapes = [(bucket.rows, bucket.length) for bucket in self._buckets]
        counts = [len(bucket.members) // bucket.rows for bucket in self._buckets]
        # Of batch j of an epoch, before the batches are permuted: its bucket, and which one of the bucket's it is.
        self._places = [(number, nth) for number, count in enumerate(counts) for nth in range(count)]
        self.batches_per_epoch = len(self._places)
        self._plans: dict[int, tuple[np.ndarray, list[np.ndarray]]] = {}

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < self._steps:
            raise IndexError(f"batch {index} of {self._steps}")
        epoch, position = divmod(index, self.batches_per_epoch)
        order, members = self._plan(epoch)
        number, nth = self._places[order[position]]
        length, rows, _ = self._buckets[number]
        local = rows // self._process_count
        first = nth * rows + self._process_index * local
        chosen = members[number][first : first + local]
        return {
            "input_ids": self._sources.padded(chosen, length, self._pad_id),
            "labels": self._targets.padded(chosen, length, self._pad_id),
        }

    def _plan(self, epoch: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """The epoch's order of batches and of each bucket's examples; the two latest plans are kept."""
        plan = self._plans.get(epoch)
        if plan is None:
            rng = np.random.default_rng([self._seed, epoch])
            members = [rng.permutation(bucket.members) for bucket in self._buckets]
            plan = rng.permutation(self.batches_per_epoch), members
            # A new dict, since several threads may read: they prefetch across the end of an epoch.
            self._plans = {**dict(list(self._plans.items())[-1:]), epoch: plan}
        return plan


class _Ragged:
    """Lists of token ids in one array."""

    def __init__(self, rows: Sequence[Sequence[int]]):
        self.lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        self._ends = np.cumsum(self.lengths)
        self._tokens = np.fromiter(chain.from_iterable(rows), np.int32, int(self.lengths.sum()))

    def padded(self, chosen: np.ndarray, length: int, pad_id: int) -> np.ndarray:
        padded_BL = np.full((len(chosen), length), pad_id, np.int32)
        for row, index in enumerate(chosen):
            end, size = self._ends[index], self.lengths[index]
            padded_BL[row, :size] = self._tokens[end - size : end]
        return padded_BL


def _fill_buckets(longest: np.ndarray, bounds: Sequence[int], tokens_per_batch: int, multiple: int) -> list[_Bucket]:
    """Buckets with at least one batch each, by the rule that `TokenBatches` describes."""
    bucket_of = np.searchsorted(bounds, longest)  # len(bounds): dropped
    members = [np.flatnonzero(bucket_of == number) for number in range(len(bounds))]
    filled = [(bound, ids) for bound, ids in zip(bounds, members, strict=True) if len(ids)]
    buckets: list[_Bucket] = []
    waiting = np.zeros(0, np.int64)
    for position, (length, ids) in enumerate(filled):
        waiting = np.concatenate([waiting, ids])
        rows = max(tokens_per_batch // length // multiple, 1) * multiple
        if position == len(filled) - 1:
            while len(waiting) < multiple:
                waiting = np.concatenate([buckets.pop().members, waiting])
            rows = min(rows, len(waiting) // multiple * multiple)
        if len(waiting) >= rows:
            buckets.append(_Bucket(length, rows, waiting))
            waiting = waiting[:0]
    return buckets

"""Which words an output may have, by the words of its source (Jean et al. 2015, section 3.4), as Marian has it."""

import dataclasses
import gzip
import itertools
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from transformer_jax.batches import Asked
from transformer_jax.checks import Id, Size, check_value, printed, require, shown
from transformer_jax.chunks import ShortLists
from transformer_jax.tokenizer import vocabularies

FEWEST = 128  # columns of the logits: the sizes of short lists are this and its doubles


@dataclasses.dataclass(frozen=True)
class ShortList:
    """The words that come of each word: those of a source's words together are what its output is made of.

    Attributes:
        targets: target ids by source id.
        first: this many ids at the beginning of the target's vocabulary, its most frequent words, are in every list.
        shared: the ids of the source are in its list too, as names stay what they are where there is one vocabulary.

    Raises:
        ValueError: ids are no integers, or below 0.
    """

    targets: Mapping[int, np.ndarray]
    first: int = 100
    shared: bool = True

    def __post_init__(self) -> None:
        check_value("first", self.first, Id)
        for id_, targets in self.targets.items():
            fits = np.ndim(targets) == 1 and np.issubdtype(np.asarray(targets).dtype, np.integer)
            fits = fits and bool(np.all(np.asarray(targets) >= 0))
            require(fits, f"targets[{id_}] must be ids from 0, not {shown(targets)}")

    @classmethod
    def read(cls, path: str | Path, tokenizer: Any, best: int = 100, first: int = 100) -> "ShortList":
        """Reads a lexical table, the text that Marian's `--shortlist` reads: `target source probability` in each line.

        As in Marian a line counts where its probability is above 0, the last of several lines for the same two words,
        and NULL stands for no word. Lines with a word that the tokenizer does not have are left out, and told in a
        warning. A name that ends in .gz is unpacked.

        Args:
            tokenizer: whose words the table has, such as "▁house".
            best: the most targets of a source word, the likeliest first.

        Raises:
            ValueError: the file cannot be read, a line is wrong, or none has words of the tokenizer. It names the file
                and the line.
        """
        check_value("best", best, Size)
        path = Path(path)
        sources, targets = vocabularies(tokenizer)
        table: dict[int, dict[int, float]] = {}
        unknown, lines = [], 0
        for number, words in _lines(path):
            target, source, probability = words
            if "NULL" in (target, source):
                continue
            lines += 1
            if source in sources and target in targets:
                table.setdefault(sources[source], {})[targets[target]] = probability
            else:
                unknown.append((number, target if source in sources else source))
        require(lines > len(unknown), f"{path}: none of its {lines} lines has two words that the tokenizer knows")
        if unknown:
            which = f"{path}:{unknown[0][0]}: {printed(unknown[0][1], 80)}"
            told = f"{len(unknown)} of {lines} lines have words that the tokenizer does not know, and are left out"
            warnings.warn(f"{which}: {told}", stacklevel=2)
        return cls({source: _best(found, best) for source, found in table.items()}, first, sources == targets)

    def check(self, vocabulary: int) -> None:
        """Raises ValueError where it has target ids that are not below this."""
        largest = max((int(np.max(ids)) for ids in self.targets.values() if len(ids)), default=0)
        told = f"the shortlist has the target id {largest}, but those of the model are below {vocabulary}"
        require(largest < vocabulary, told)

    def ids(self, source: Sequence[int], vocabulary: int) -> np.ndarray:
        """The target ids that may come of a source's, sorted."""
        found = [self.targets[id_] for id_ in {*source} & self.targets.keys()]
        found += [np.arange(min(self.first, vocabulary)), np.asarray(source if self.shared else [], int)]
        return np.unique(np.concatenate(found).astype(np.int32))


def short_lists(
    shortlist: ShortList, asked: Sequence[Asked], always: Sequence[int], rows: int, vocabulary: int
) -> ShortLists:
    """Those of a batch with so many rows, in as many columns as a power of two; what fills these up is no one's.

    Args:
        always: ids in each list, such as that of the end.
    """
    lists = [[*shortlist.ids(each.source, vocabulary), *always, *each.demanded] for each in asked]
    ids_N = np.unique(np.concatenate(lists)).astype(np.int32)
    size = min(vocabulary, max(FEWEST, 1 << (len(ids_N) - 1).bit_length()))
    others = np.setdiff1d(np.arange(vocabulary, dtype=np.int32), ids_N)
    ids_N = np.sort(np.concatenate([ids_N, others[: size - len(ids_N)]]))
    is_own_BN = np.ones((rows, size), bool)  # of rows that no sentence fills too, which are done before they begin
    for row, own in enumerate(lists):
        is_own_BN[row] = np.isin(ids_N, own)
    return ShortLists(jnp.asarray(ids_N), jnp.asarray(is_own_BN))


def _lines(path: Path) -> Iterator[tuple[int, tuple[str, str, float]]]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if words := line.split():  # at what ASCII calls white space: a word may hold another kind
                    yield number, _entry(f"{path}:{number}", words)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _entry(where: str, words: list[bytes]) -> tuple[str, str, float]:
    wanted = "a line is a target word, a source word and a probability"
    try:
        cells = [word.decode() for word in words]
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 (byte {error.start} of a word): {wanted}") from error
    require(len(cells) == 3, f"{where}: {len(cells)} columns, but {wanted}")
    try:
        probability = float(cells[2])
    except ValueError as error:
        raise ValueError(f"{where}: {shown(cells[2])} is no number, but {wanted}") from error
    require(0 <= probability <= 1, f"{where}: {shown(cells[2])} is not from 0 to 1, but {wanted}")
    return cells[0], cells[1], probability


def _best(found: dict[int, float], best: int) -> np.ndarray:
    """The likeliest targets; of equally likely ones those with the highest ids, as Marian's are sorted."""
    likely = sorted(((probability, id_) for id_, probability in found.items() if probability > 0), reverse=True)
    return np.array([id_ for _, id_ in itertools.islice(likely, best)], np.int32)

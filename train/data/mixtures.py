"""Several corpora as one: the languages of each, the tags that ask for them, and the pairs that are held out.

A source begins with the tag of its target's language, so that one model serves several directions (Johnson et al.
2017). Sources that a model wrote, marked by `transformer_jax.tags.BACK_TRANSLATED`, are trained on in their own
direction alone, and judge nothing.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from typing import NamedTuple

from train.data.parallel import Pair, read_pairs
from train.data.tfds import is_tfds
from train.errors import InputError
from transformer_jax.checks import listed, printed, shown
from transformer_jax.tags import BACK_TRANSLATED, language_tag, split_tags

Languages = tuple[str, str]

_ENTRY = re.compile(r"(?:(\w+)-(\w+)=)?(.+)", re.DOTALL)


class Part(NamedTuple):
    """Pairs of one kind.

    Attributes:
        places: what they were read from.
        languages: of sources and of targets; None where nothing names them, and sources get no tag.
    """

    places: tuple[str, ...]
    languages: Languages | None
    pairs: list[Pair]

    @property
    def direction(self) -> str:
        return "-".join(self.languages or ())

    def sides(self) -> Languages:
        """Names of the languages, different ones where nothing names them."""
        return self.languages or ("source", "target")


def read_parts(data: Sequence[str], option: str = "--data", split: str = "train") -> list[Part]:
    """Reads what `read_pairs` does; or several TSV files and TFDS data sets, which the entries may name languages of.

    Args:
        data: as of `read_pairs`, or entries that each are a TSV file, `.tsv` or `.tsv.gz`, or a TFDS data set, in front
            of which the languages of its columns may stand: `en-de=pairs.tsv`.

    Raises:
        InputError: as `read_pairs`; or some entries name languages and others do not.
    """
    entries = [_entry(entry) for entry in data]
    named = [place for languages, place in entries if languages]
    plain = [place for languages, place in entries if not languages]
    alone = all(is_tfds(place) or place.endswith((".tsv", ".tsv.gz")) for place in plain)
    if not named and not alone:
        return [Part(tuple(plain), None, read_pairs(plain, option, split))]
    if named and plain:
        raise InputError(
            f"{option}: {listed([printed(place) for place in plain])} without languages beside others with them: write "
            f"LANGUAGE-LANGUAGE= in front of each entry or of none, such as en-de={printed(plain[0])}"
        )
    return [Part((place,), languages, read_pairs([place], option, split, languages)) for languages, place in entries]


def _entry(entry: str) -> tuple[Languages | None, str]:
    match = _ENTRY.fullmatch(entry)
    one, other, place = match.groups() if match else (None, None, entry)
    return ((one, other) if one and other else None), place


def is_back_translated(source: str) -> bool:
    """Whether a source is marked."""
    return BACK_TRANSLATED in source and BACK_TRANSLATED in split_tags(source)[0]


# --- holding out -------------------------------------------------------------------------------------------------


def hold_out(parts: Sequence[Part], count: int, both_directions: bool = False) -> tuple[list[Part], list[Part]]:
    """Splits (train, held out) with `count` held-out sources of each direction, chosen by a hash of their text.

    What leaves the training data with them is said by `without`. The first pair of a held-out source is the held-out
    one. The choice does not depend on the order of the pairs, and pairs that are added later change little of it.

    Raises:
        InputError: there are no sources left to train on.
    """
    targets: dict[Languages | None, dict[str, str]] = defaultdict(dict)
    for part in parts:
        for source, target in part.pairs:
            if not is_back_translated(source):
                targets[part.languages].setdefault(source, target)
    held_out = []
    for languages, of in (targets or {None: {}}).items():
        if not 0 < count < len(of):
            which = f" of {'-'.join(languages)}" if languages else ""
            raise InputError(
                f"--held-out {count}: cannot hold out so many of {len(of)} different source sentences{which}; "
                "hold out fewer, or name held-out pairs with --eval.data"
            )
        chosen = sorted(of, key=lambda source: hashlib.sha256(source.encode()).digest())[:count]
        held_out.append(Part((), languages, [(source, of[source]) for source in chosen]))
    rest = without(parts, held_out, both_directions)
    if not any(part.pairs for part in rest):
        raise InputError(
            f"--held-out {count}: every pair shares a text with one that is held out; hold out fewer, or name held-out "
            "pairs with --eval.data"
        )
    return rest, held_out


def without(parts: Sequence[Part], held_out: Sequence[Part], both_directions: bool) -> list[Part]:
    """The parts without pairs that tell of held-out ones.

    Those are pairs either side of which is a held-out source: the same pair in another file, in the other direction,
    or with another translation. Of pairs that are translated back, also those of a held-out target. White space does
    not make texts others, as lines that are translated back have plain spaces alone.
    """
    sources: dict[str, set[str]] = defaultdict(set)
    targets: dict[str, set[str]] = defaultdict(set)
    for part in held_out:
        one, other = part.sides()
        sources[one].update(_words(source) for source, _ in part.pairs)
        targets[other].update(_words(target) for _, target in part.pairs)
    if both_directions:
        for language, texts in targets.items():
            sources[language] |= texts
    rest = []
    for part in parts:
        one, other = part.sides()
        pairs = []
        for pair in part.pairs:
            marked = is_back_translated(pair[0])
            text, target = (_words(side) for side in (split_tags(pair[0])[1] if marked else pair[0], pair[1]))
            tells = text in sources[one] or target in sources[other] or (marked and target in targets[other])
            if not tells:
                pairs.append(pair)
        rest.append(part._replace(pairs=pairs))
    return rest


def _words(text: str) -> str:
    return " ".join(text.split())


# --- directions --------------------------------------------------------------------------------------------------


def by_direction(parts: Iterable[Part], both_directions: bool) -> dict[str, list[Pair]]:
    """The pairs of each direction, "" where nothing names languages, and else with tags in front of the sources."""
    found: dict[str, list[Pair]] = defaultdict(list)
    for part in parts:
        if part.languages is None:
            found[""] += part.pairs
            continue
        one, other = part.languages
        found[part.direction] += [(f"{language_tag(other)} {source}", target) for source, target in part.pairs]
        if both_directions:
            real = [pair for pair in part.pairs if not is_back_translated(pair[0])]
            found[f"{other}-{one}"] += [(f"{language_tag(one)} {target}", source) for source, target in real]
    return dict(found)


def in_turn(directions: dict[str, list[Pair]]) -> tuple[list[Pair], list[str]]:
    """The pairs of all directions in turn, so that the first of them are of all; and the direction of each."""
    named = [[(pair, name) for pair in pairs] for name, pairs in directions.items()]
    mixed = [each for group in zip_longest(*named) for each in group if each is not None]
    return [pair for pair, _ in mixed], [name for _, name in mixed]


def tags_of(pairs: Iterable[Pair], option: str = "--data") -> list[str]:
    """All tags that sources begin with.

    Raises:
        InputError: a target holds one: it would be learned as a word of the language.
    """
    pairs = list(pairs)
    tags = sorted(set(chain.from_iterable(split_tags(source)[0] for source, _ in pairs)))
    inside = re.compile("|".join(map(re.escape, tags)))
    for _, target in pairs if tags else ():
        if found := inside.search(target):
            raise InputError(
                f"{option}: the target {shown(target)} holds {found[0]}, which begins sources and is no word of a "
                "language; take it out"
            )
    return tags

"""Translation data: pairs of sentences from files, and vocabularies."""

import io
import random
import re
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import sentencepiece

from train.data.files import check_text, read_lines
from train.data.tfds import is_tfds, tfds_source
from train.errors import InputError
from transformer_jax.checks import listed, printed
from transformer_jax.tags import piece_of_tag, split_tags
from transformer_jax.tokenizer import target_encoder

Pair = tuple[str, str]

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
_VOCABULARY_SENTENCES = 1_000_000
_VOCABULARY_BYTES = 4192  # SentencePiece by itself leaves out longer sentences, without a word
_VOCABULARY_RESERVED = "\u2585"  # and those with its mark for rare characters
_LARGEST_VOCABULARY = 1_000_000  # SentencePiece starts from so many candidates, and hangs where 32 bits overflow
_VOCABULARY_THREADS = 4  # a constant: the order of floating-point sums, and so the vocabulary, depends on it


# --- reading -----------------------------------------------------------------------------------------------------


def read_pairs(
    data: Sequence[str], option: str = "--data", split: str = "train", languages: tuple[str, str] | None = None
) -> list[Pair]:
    """Reads (source, target) pairs.

    Args:
        data: one TSV file (`source<TAB>target`, a `.gz` suffix means gzip); or two files whose lines belong together,
            source first; or one TFDS data set (`tfds:NAME/CONFIG[:SPLIT]` or a folder that TFDS prepared) whose
            rows are or hold a dict of two languages. Source is the language that the name of the configuration has
            first, as in TFDS' `supervised_keys`: German for `tfds:wmt14_translate/de-en`.
        option: what to blame in messages.
        split: the split of a TFDS data set that names none.
        languages: of source and target, which TFDS' rows then must have, in whatever order.

    Raises:
        InputError: more than two files; a row that is not two texts with one tab between; files of different
            length; an empty side; a tab in one of two files; a TFDS row of another form.
    """
    if len(data) == 1:
        return _tfds_pairs(data[0], split, option, languages) if is_tfds(data[0]) else _tsv_pairs(data[0], option)
    if len(data) == 2 and not any(map(is_tfds, data)):
        return _aligned_pairs(data[0], data[1], option)
    names = listed([printed(entry) for entry in data]) or "nothing"
    raise InputError(
        f"{option}: {names}: give one TSV file, two aligned files or one tfds:NAME, or several whose names end in .tsv "
        "or .tsv.gz or begin with tfds:"
    )


def _tsv_pairs(path: str, option: str) -> list[Pair]:
    pairs = []
    name = printed(path)
    for number, line in read_lines(path, option):
        sides = line.split("\t")
        if len(sides) != 2:
            raise InputError(
                f"{option}: {name}:{number} has {len(sides) - 1} tabs; each row is SOURCE, one tab, TARGET"
            )
        pairs.append(_pair(sides[0], sides[1], f"{option}: {name}:{number}"))
    return pairs


def _aligned_pairs(source_path: str, target_path: str, option: str) -> list[Pair]:
    pairs: list[Pair] = []
    lines = [0, 0]
    names = printed(source_path), printed(target_path)
    for source, target in zip_longest(read_lines(source_path, option), read_lines(target_path, option)):
        for side, line in enumerate((source, target)):
            lines[side] += line is not None
            if line is not None and "\t" in line[1]:
                raise InputError(
                    f"{option}: {names[side]}:{line[0]} has a tab; it is a TSV file, whose name must end in .tsv or "
                    ".tsv.gz where it is not given alone"
                )
        if source is not None and target is not None and lines[0] == lines[1]:
            pairs.append((source[1].strip(), target[1].strip()))
    if lines[0] != lines[1]:
        raise InputError(
            f"{option}: {names[0]} has {lines[0]} lines and {names[1]} has {lines[1]}; line n of one must be "
            "the translation of line n of the other"
        )
    for number, (source_text, target_text) in enumerate(pairs, 1):
        _pair(source_text, target_text, f"{option}: {names[bool(source_text)]}:{number}")
    return pairs


def _tfds_pairs(spec: str, split: str, option: str, order: tuple[str, str] | None) -> list[Pair]:
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
        if order and set(order) != set(languages):
            raise InputError(
                f"{option}: {source.name}: row {index} is of {' and '.join(languages)}, not of {' and '.join(order)}"
            )
        # Rows come with sorted keys; only the configuration's name tells which language is the source.
        first, second = order or sorted(languages, key=source.name.split(" ")[0].partition("/")[2].find)
        source_text, target_text = (" ".join(languages[language].split()) for language in (first, second))
        place = f"{option}: {source.name}: row {index}"
        pairs.append(_pair(check_text(source_text, place), check_text(target_text, place), place))
    return pairs


def _pair(source: str, target: str, place: str) -> Pair:
    source, target = source.strip(), target.strip()
    if not source or not target:
        raise InputError(f"{place}: the {'target' if source else 'source'} is empty; remove the pair or complete it")
    return source, target


# --- vocabulary --------------------------------------------------------------------------------------------------


class Vocabulary(NamedTuple):
    """A vocabulary, and how many sentences it was not made from: words for why -> count."""

    processor: sentencepiece.SentencePieceProcessor
    left_out: dict[str, int]


def train_sentencepiece(
    pairs: Iterable[Sequence[str]], vocab_size: int, tags: Sequence[str] = (), option: str = "--vocab-size"
) -> Vocabulary:
    """Trains one unigram vocabulary on all sides of the pairs (Kudo 2018), the same one for the same pairs.

    Every character is in it, digits are split from each other, and each of `tags` is a piece (see
    `transformer_jax.tags`) of which no other is made. Ids: padding 0 (also the decoder's start, as in
    T5 and Marian), EOS 1, unknown 2, no BOS. Of more than a million sentences a fixed sample is used, and of that no
    sentence of more than 4192 bytes or with the mark that SentencePiece reserves.

    Raises:
        InputError: `vocab_size`, which `option` gave, is below 4 or above a million, the text does not give so many
            pieces, or has more characters than that; or the pairs have no sentence that can be used.
    """
    if not UNK_ID + 2 <= vocab_size <= _LARGEST_VOCABULARY:
        raise InputError(f"{option}: {vocab_size} must lie between {UNK_ID + 2} and {_LARGEST_VOCABULARY}")
    sentences = list(chain.from_iterable(pairs))
    if tags:
        sentences = [split_tags(sentence)[1] for sentence in sentences]
    left_out = {"sentences beyond a sample of a million": max(0, len(sentences) - _VOCABULARY_SENTENCES)}
    if len(sentences) > _VOCABULARY_SENTENCES:
        sentences = random.Random(0).sample(sentences, _VOCABULARY_SENTENCES)
    short = [sentence for sentence in sentences if len(sentence.encode()) <= _VOCABULARY_BYTES]
    usable = [sentence for sentence in short if _VOCABULARY_RESERVED not in sentence]
    left_out[f"sentences over {_VOCABULARY_BYTES} bytes"] = len(sentences) - len(short)
    left_out[f"sentences with {_VOCABULARY_RESERVED}, which SentencePiece reserves"] = len(short) - len(usable)
    processor = _train_unigram(usable, vocab_size, tags, option)
    return Vocabulary(processor, {reason: count for reason, count in left_out.items() if count})


def _train_unigram(
    sentences: Sequence[str], vocab_size: int, tags: Sequence[str], option: str
) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            user_defined_symbols=[piece_of_tag(tag) for tag in tags],
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
        raise _vocabulary_error(error, vocab_size, option) from error
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def _vocabulary_error(error: RuntimeError, vocab_size: int, option: str) -> InputError:
    message = str(error)
    if high := re.search(r"Vocabulary size too high.*<= (\d+)", message, re.S):
        return InputError(f"{option}: {vocab_size} is more than the training text gives; at most {high[1]}")
    if low := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return InputError(f"{option}: {vocab_size} is less than the text's characters; at least {low[1]}")
    if re.search(r"sentences_\.empty|all_chars_count", message):
        return InputError(
            f"--data: a vocabulary needs sentences with visible characters, of at most {_VOCABULARY_BYTES} bytes and "
            f"without {_VOCABULARY_RESERVED}; the data has none"
        )
    reason = " ".join(message.split())
    return InputError(f"{option}: SentencePiece cannot make a vocabulary of {vocab_size}: {reason}")


def encode_pairs(
    tokenizer: Any, pairs: Iterable[Pair], eos_id: int = EOS_ID, start_id: int | None = None
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of all sources and of all targets, each with EOS at its end; `start_id`, if any, begins each source."""
    sources, targets = zip(*pairs, strict=True)
    start = [] if start_id is None else [start_id]
    return (
        [[*start, *ids, eos_id] for ids in tokenizer.encode(list(sources))],
        [[*ids, eos_id] for ids in target_encoder(tokenizer)(list(targets))],
    )

"""BERT's WordPiece tokenizer over the `tokenizers` library, in Hugging Face's file layout."""

import copy
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from tokenizers import Encoding, Tokenizer

from bert_jax.tokenizer_files import FILES, Settings, assemble, check_special, file_contents, read_backend, reading
from bert_jax.vocabulary import MAX_VOCABULARY, SPECIAL_TOKENS, check_texts, learn_vocabulary
from transformer_jax.checkpoints import write_files
from transformer_jax.checks import LARGEST, Range, Size, check_ids, check_value, listed, require, shown
from transformer_jax.hub import local_folder

MIN_BUCKET = 16


class Ids(Protocol):
    """What batches are made of; an `Encoding` is one.

    Attributes:
        overflowing: what was cut off, or whether anything was.
    """

    @property
    def ids(self) -> Any: ...

    @property
    def type_ids(self) -> Any: ...

    @property
    def overflowing(self) -> Any: ...

    def __len__(self) -> int: ...


class BertTokenizer:
    """Text -> ids, with [CLS] and [SEP] around one text or between two.

    Attributes:
        backend: the `tokenizers.Tokenizer`, without truncation and padding.
        pad_id, unk_id, cls_id, sep_id, mask_id: ids of the special tokens.
        special_ids: all ids that are not text, ascending.
        vocab_size: one more than the highest id.
    """

    def __init__(self, backend: Tokenizer) -> None:
        """Raises ValueError for what is no BERT's: no WordPiece, no special tokens, or not put around texts."""
        kind = type(backend.model).__name__
        require(kind == "WordPiece", f"the model is {kind}, not WordPiece")
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        vocabulary = backend.get_vocab()
        check_special(vocabulary)
        check_special(backend.get_vocab(with_added_tokens=False))
        unknown = backend.model.unk_token
        require(unknown == "[UNK]", f"unknown words become {shown(unknown)}, not '[UNK]'")
        ids = [vocabulary[token] for token in SPECIAL_TOKENS]
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = ids
        alone, around = backend.encode("[MASK]"), backend.encode("[MASK]", "[MASK]")
        right = around.tokens == ["[CLS]", "[MASK]", "[SEP]", "[MASK]", "[SEP]"] and around.type_ids == [0, 0, 0, 1, 1]
        require(
            right and (alone.tokens, alone.type_ids) == (["[CLS]", "[MASK]", "[SEP]"], [0, 0, 0]),
            f"two texts of [MASK] must become [CLS] [MASK] [SEP] [MASK] [SEP], not {shown(' '.join(around.tokens))}, "
            f"and one [CLS] [MASK] [SEP], not {shown(' '.join(alone.tokens))}",
        )
        added = [index for index, token in backend.get_added_tokens_decoder().items() if token.special]
        self.special_ids: tuple[int, ...] = tuple(sorted({*ids, *added}))
        self.vocab_size: int = max(vocabulary.values()) + 1
        require(self.vocab_size <= MAX_VOCABULARY, f"id {self.vocab_size - 1} is too high for a vocabulary")

    # --- making one -----------------------------------------------------------------------------------------------

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, lowercase: bool = True) -> "BertTokenizer":
        """Learns a WordPiece vocabulary; the same texts give the same vocabulary.

        The special tokens have ids 0 to 4. Characters may fill half of the vocabulary: of texts with more of them,
        the most frequent are kept. The texts are held in memory. Words of more than 100 characters, which become
        [UNK], are not learned from.

        Raises:
            ValueError: vocab_size is below 16 or above 10 million, texts is not a list of str, or there is no word
                in it.
        """
        return cls(assemble(learn_vocabulary(texts, vocab_size, lowercase), Settings(do_lower_case=lowercase)))

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "BertTokenizer":
        """Reads tokenizer.json or else vocab.txt from a folder or the hub.

        What tokenizer_config.json says of `do_lower_case`, `strip_accents` and `tokenize_chinese_chars` is followed.
        A vocab.txt without `do_lower_case` is that of a cased model if any entry of it has a capital letter, else
        that of an uncased one, which lower-cases all text (Hugging Face always does, and a cased model then gets
        other words than it was trained on). A vocabulary with capitals that is lower-cased nevertheless, because its
        files say so, is named in a warning.

        Raises:
            ValueError: nothing of that name, neither file in it, or files that cannot be read, are damaged, or hold
                another kind of tokenizer.
        """
        folder = local_folder(name, FILES)
        backend = read_backend(folder)
        with reading(next(folder / file for file in FILES if (folder / file).exists())):
            return cls(backend)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes what Hugging Face's BertTokenizer loads: tokenizer.json, vocab.txt and two small JSON files.

        Raises ValueError, and writes nothing, for a token that vocab.txt cannot hold.
        """
        folder, files = Path(folder), file_contents(self.backend)
        folder.mkdir(parents=True, exist_ok=True)
        write_files(folder, {name: content.encode() for name, content in files.items()})

    # --- using it -------------------------------------------------------------------------------------------------

    def __call__(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        max_length: int | None = None,
        padding: Literal["longest", "max_length"] = "longest",
    ) -> dict[str, np.ndarray]:
        """Encodes a list of texts, or of pairs of texts.

        Args:
            max_length: longest row, special tokens included. Of a pair the longer text is cut first, without a word.
                None: no limit.
            padding: on the right, to the longest row of the batch or to max_length.

        Returns:
            int32 arrays [B, L] `input_ids`, `token_type_ids` and `attention_mask`.

        Raises:
            ValueError: one str instead of a list, no text at all, elements that are no str, lists of different
                lengths, or no room for text.
        """
        check_value("padding", padding, Literal["longest", "max_length"])
        require(padding == "longest" or max_length is not None, "padding='max_length' needs max_length")
        encodings = self.encode(texts, pairs, max_length)
        return self.pad(encodings, max_length if padding == "max_length" else None)

    def pad(
        self, encodings: Sequence[Ids], length: int | None = None, rows: int | None = None
    ) -> dict[str, np.ndarray]:
        """What `encode` and its like returned -> the arrays of `__call__`.

        Args:
            length: of a row; by default that of the longest encoding.
            rows: by default one an encoding. Rows of padding are added behind them, which attend to their first token.
        """
        shape = (rows or len(encodings), length or max(map(len, encodings)))
        input_ids = np.full(shape, self.pad_id, np.int32)
        token_type_ids, attention_mask = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        attention_mask[len(encodings) :, 0] = 1
        for row, encoding in enumerate(encodings):
            used = len(encoding)
            input_ids[row, :used] = encoding.ids
            token_type_ids[row, :used] = encoding.type_ids
            attention_mask[row, :used] = 1
        return {"input_ids": input_ids, "token_type_ids": token_type_ids, "attention_mask": attention_mask}

    def pad_to_bucket(self, encodings: Sequence[Ids], longest: int) -> dict[str, np.ndarray]:
        """As `pad`, in one of few shapes, so that little is compiled: rows are a power of two, see `bucket`."""
        rows = 1 << (len(encodings) - 1).bit_length()
        return self.pad(encodings, bucket(max(map(len, encodings)), longest), rows)

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, max_length: int | None = None
    ) -> list[Encoding]:
        """The encodings behind `__call__`, not padded: they also know words and character offsets.

        What did not fit is in their `overflowing`.
        """
        texts = check_texts("texts", texts)
        pairs = None if pairs is None else check_texts("pairs", pairs)
        require(len(texts) > 0, "texts is empty: give at least one text")
        require(pairs is None or len(pairs) == len(texts), f"{len(texts)} texts, but {len(pairs or ())} pairs")
        room = _room(max_length, 2 if pairs is None else 3)
        first = self._plain.encode_batch(texts, add_special_tokens=False)
        if pairs is None:
            return self._finished(first, room)
        second = self._plain.encode_batch(pairs, add_special_tokens=False)
        for both in zip(first, second, strict=True):
            _truncate(room, *both)
        return [self.backend.post_process(a, b) for a, b in zip(first, second, strict=True)]

    def encode_words(self, sentences: Sequence[Sequence[str]], max_length: int | None = None) -> list[Encoding]:
        """As `encode`, of sentences that are split into words already.

        `word_ids` of an encoding say of each token which word of the sentence it belongs to (None: [CLS] and [SEP]),
        `offsets` where it lies within that word. A word of nothing that is kept, such as "" or control characters,
        has no token; a sentence without words is [CLS] [SEP].

        Raises:
            ValueError: sentences is no list of lists of str, or empty, or there is no room for text.
        """
        several = isinstance(sentences, Iterable) and not isinstance(sentences, str | bytes | Mapping)
        require(several, f"sentences must be a list of lists of words, not {shown(sentences)}")
        words = [check_texts(f"sentences[{index}]", sentence) for index, sentence in enumerate(sentences)]
        require(len(words) > 0, "sentences is empty: give at least one sentence")
        room = _room(max_length, 2)
        return self._finished(self._plain.encode_batch(words, is_pretokenized=True, add_special_tokens=False), room)

    def encode_windows(self, question: str, context: str, max_length: int, stride: int) -> list[Encoding]:
        """A question beside its context, in as many rows as the context needs: [CLS] question [SEP] context [SEP].

        Only the context is cut, into windows that overlap. Where an encoding's `sequence_ids` are 1, its `offsets`
        are places in the whole context; where they are 0, in the question.

        Args:
            max_length: longest row, special tokens included.
            stride: how many tokens of the context each window shares with the one before.

        Raises:
            ValueError: question or context is no str, or the question leaves no room for more than `stride` tokens.
        """
        both = [check_texts(name, [text])[0] for name, text in (("question", question), ("context", context))]
        check_value("max_length", max_length, Size)
        check_value("stride", stride, Annotated[int, Range(0, LARGEST)])
        first, second = self._plain.encode_batch(both, add_special_tokens=False)
        room = max_length - 3 - len(first)
        require(
            room > stride,
            f"max_length {max_length} leaves {max(room, 0)} tokens for the context beside the question's {len(first)}, "
            f"but more than stride {stride} are needed",
        )
        second.truncate(room, stride=stride)
        # One by one: the library gives type ids to the first row alone.
        return [self.backend.post_process(first, window) for window in (second, *second.overflowing)]

    @functools.cached_property
    def _plain(self) -> Tokenizer:
        """Without [CLS] and [SEP], which are put around what is left after truncation.

        The whole one, even where it is told not to add them, calls each text the first of a pair: `sequence_ids` of
        two such texts are wrong once they are joined.
        """
        plain = copy.deepcopy(self.backend)
        plain.post_processor = None
        return plain

    def _finished(self, encodings: list[Encoding], room: int | None) -> list[Encoding]:
        for encoding in encodings:
            _truncate(room, encoding)
        return [self.backend.post_process(encoding) for encoding in encodings]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """One row of ids -> text; WordPiece does not keep case and spaces that the normalizer removed.

        Raises ValueError for ids that are no integers or no token's.
        """
        row = np.asarray(ids if isinstance(ids, np.ndarray) else [*ids])
        if row.size == 0:
            return ""
        require(row.ndim == 1, f"ids must be one row of integers, not of the shape {row.shape}")
        check_ids("ids", row, self.vocab_size, "the vocabulary")
        unused = [str(i) for i in row.tolist() if self.backend.id_to_token(i) is None]
        require(not unused, f"ids must be tokens of the vocabulary, but {listed(unused)} are none")
        return self.backend.decode(row.tolist(), skip_special_tokens=skip_special_tokens)

    def continuation_mask(self) -> np.ndarray:
        """Boolean [V]: True for the "##" pieces, which continue a word."""
        mask = np.zeros(self.vocab_size, bool)
        mask[[i for piece, i in self.backend.get_vocab().items() if piece.startswith("##") and len(piece) > 2]] = True
        return mask


def bucket(length: int, longest: int) -> int:
    """The next of 16, 32, 48, 64, 96, 128, 192 ..., at most `longest`: few shapes, and a third of padding at most."""
    power = max(MIN_BUCKET, 1 << (length - 1).bit_length())
    between = power * 3 // 4
    return min(longest, between if length <= between and power > 2 * MIN_BUCKET else power)


def _room(max_length: int | None, special: int) -> int | None:
    check_value("max_length", max_length, Size | None)
    room = None if max_length is None else max_length - special
    require(room is None or room > 0, f"max_length {max_length} leaves no room beside {special} special tokens")
    return room


def _truncate(room: int | None, a: Encoding, b: Encoding | None = None) -> None:
    """Cuts to `room` tokens in all, the longer text first; when both are cut, the longer one keeps the odd token."""
    lengths = [len(a)] if b is None else [len(a), len(b)]
    if room is None or sum(lengths) <= room:
        return
    if b is None:
        a.truncate(room)
        return
    short = min(*lengths, room // 2)
    keep_a, keep_b = (short, room - short) if len(a) <= len(b) else (room - short, short)
    for encoding, keep in ((a, keep_a), (b, keep_b)):
        if len(encoding) > keep:
            encoding.truncate(keep)

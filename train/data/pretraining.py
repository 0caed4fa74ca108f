"""Examples for masked-LM pretraining, with next sentences (Devlin et al. 2019, appendix A.2) and without.

The masking itself happens on the device (`bert_jax.masking`); here sentences become pairs or rows.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from train.data.documents import Document
from train.errors import InputError

_SENTENCES_A_BATCH = 10_000


class TokenCorpus(NamedTuple):
    """A tokenized corpus in three flat arrays, and how many sentences gave no token.

    tokens: int32, all tokens in order. sentence_starts: int64, where each sentence begins in `tokens`, and their
    number at the end. document_starts: int64, where each document begins in the sentences, and their number at
    the end. No sentence and no document is empty.
    """

    tokens: np.ndarray
    sentence_starts: np.ndarray
    document_starts: np.ndarray
    dropped: int = 0


def tokenize_corpus(documents: Sequence[Document], tokenizer: Tokenizer) -> TokenCorpus:
    """Tokenizes documents without special tokens; sentences and documents that give no token are dropped.

    Truncation and padding that the tokenizer may be set to are ignored.
    """
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    sentences = list(chain.from_iterable(documents))
    tokens, lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    for start in range(0, len(sentences), _SENTENCES_A_BATCH):
        batch = sentences[start : start + _SENTENCES_A_BATCH]
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]
        lengths.append(np.fromiter(map(len, ids), np.int64, len(ids)))
        tokens.append(np.fromiter(chain.from_iterable(ids), np.int32))
    length = np.concatenate(lengths)
    document = np.repeat(np.arange(len(documents)), [len(sentences) for sentences in documents])[length > 0]
    sentences_a_document = np.bincount(document, minlength=len(documents))
    return TokenCorpus(
        np.concatenate(tokens),
        _starts(length[length > 0]),
        _starts(sentences_a_document[sentences_a_document > 0]),
        int(np.sum(length == 0)),
    )


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def can_pair(corpus: TokenCorpus) -> bool:
    """Whether the corpus has two documents, and one of them two sentences: B can follow A, or come from elsewhere."""
    return len(corpus.sentence_starts) > len(corpus.document_starts) > 2


class _Rows:
    """Random access to rows: [CLS] part [SEP], or [CLS] part [SEP] part [SEP], padded to `max_length`."""

    def __init__(self, corpus: TokenCorpus, max_length: int, cls_id: int, sep_id: int, pad_id: int, plan: np.ndarray):
        self._tokens, self._plan = corpus.tokens, plan
        self._max_length, self._cls_id, self._sep_id, self._pad_id = max_length, cls_id, sep_id, pad_id

    def __len__(self) -> int:
        return len(self._plan)

    def _framed(self, *parts: tuple[int, int]) -> dict[str, np.ndarray]:
        """The row of parts, each given as its start and end in the tokens; token types count the parts."""
        input_ids_L = np.full(self._max_length, self._pad_id, np.int32)
        token_type_ids_L = np.zeros(self._max_length, np.int32)
        input_ids_L[0] = self._cls_id
        length = 1
        for number, (start, end) in enumerate(parts):
            begin, length = length, length + end - start + 1
            input_ids_L[begin : length - 1] = self._tokens[start:end]
            input_ids_L[length - 1] = self._sep_id
            token_type_ids_L[begin:length] = number
        return {
            "input_ids": input_ids_L,
            "token_type_ids": token_type_ids_L,
            "attention_mask": np.arange(self._max_length) < length,
        }


def _room(max_length: int, special: int, least: int, what: str) -> int:
    """The tokens of the text in a row with so many special ones."""
    if max_length < special + least:
        raise InputError(f"--max-length {max_length}: {what} need at least {special + least} tokens")
    return max_length - special


class SentenceRows(_Rows):
    """Random access to rows of text: [CLS] sentences [SEP] of at most `max_length` tokens, padded to it.

    A row has as many whole sentences of one document, one after another, as it has room for (DOC-SENTENCES, Liu et
    al. 2019, section 4.2), so those at the end of a document may be shorter. A sentence that is longer than a row
    begins one and goes on in the next ones; what follows it joins its last piece. Each token is in one row.

    `rows[i]` is a dict: input_ids int32 [L], token_type_ids int32 [L] of zeros, attention_mask bool [L], with L =
    `max_length`.

    Raises:
        InputError: the corpus, which `option` names, has no tokens, or `max_length` leaves no room for one.
    """

    # There is one plan only: nothing in it is drawn, and what makes an epoch differ from the one before are the order
    # and the masks, as in RoBERTa. Cuts that differ between passes would cost a short row a document in each of them.
    def __init__(
        self,
        corpus: TokenCorpus,
        *,
        max_length: int,
        cls_id: int,
        sep_id: int,
        pad_id: int = 0,
        option: str = "--data",
    ):
        room = _room(max_length, 2, 1, "rows")
        if not len(corpus.tokens):
            raise InputError(f"{option}: the tokenizer finds no token in the text")
        super().__init__(corpus, max_length, cls_id, sep_id, pad_id, _plan_rows(corpus, room))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        start, end = self._plan[index].tolist()
        return self._framed((start, end))


def _plan_rows(corpus: TokenCorpus, room: int) -> np.ndarray:
    """int64 rows (start and end in tokens) that together hold each token once."""
    starts, documents = corpus.sentence_starts.data, corpus.document_starts.data  # as memory views: fast scalars
    rows = array("q")
    for document in range(len(documents) - 1):
        first, last = documents[document], documents[document + 1]
        position = starts[first]
        while position < starts[last]:
            end = starts[bisect_right(starts, position + room, first, last + 1) - 1]
            if end <= position:  # within a sentence that is longer than the room
                end = position + room
            rows.extend((position, end))
            position = end
    return np.frombuffer(rows, np.int64).reshape(-1, 2)


class SentencePairs(_Rows):
    """Random access to the pairs of a corpus: [CLS] A [SEP] B [SEP] of at most `max_length` tokens, padded to it.

    A and B are runs of whole sentences; half the time B is what follows A, else it is from another document and
    the sentences it displaced are used again. A run that is one sentence alone has no following one, so short
    documents give more random pairs than half. A tenth of the pairs (`short_probability`) aims at a shorter random
    length. Longer pairs lose tokens of the longer side, from its front or its back at random.

    Each of the `duplicates` passes over the corpus draws anew. All is a pure function of the arguments.

    `pairs[i]` is a dict: input_ids int32 [L], token_type_ids int32 [L], attention_mask bool [L], and
    next_sentence_label int32 (0: B follows A; 1: B is random, as in Hugging Face), with L = `max_length`.

    Raises:
        InputError: the corpus, which `option` names, cannot make pairs (see `can_pair`), or `max_length` leaves no
            room for two tokens.
    """

    def __init__(
        self,
        corpus: TokenCorpus,
        *,
        max_length: int,
        cls_id: int,
        sep_id: int,
        pad_id: int = 0,
        seed: int,
        duplicates: int = 5,
        short_probability: float = 0.1,
        option: str = "--data",
    ):
        room = _room(max_length, 3, 2, "sentence pairs")
        if not can_pair(corpus):
            raise InputError(
                f"{option}: next-sentence prediction needs two or more documents, one of them of two sentences, but "
                f"the data has {len(corpus.sentence_starts) - 1} sentences in {len(corpus.document_starts) - 1} "
                "documents; separate documents by blank lines, or name more files"
            )
        passes = []
        for duplicate in range(duplicates):
            rng = np.random.default_rng([seed, duplicate])
            passes.append(_truncated(_plan_pairs(corpus, room, short_probability, rng), room, rng))
        super().__init__(corpus, max_length, cls_id, sep_id, pad_id, np.concatenate(passes))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        a_start, a_end, b_start, b_end, label = self._plan[index].tolist()
        pair = self._framed((a_start, a_end), (b_start, b_end))
        return {**pair, "next_sentence_label": np.asarray(label, np.int32)}


def _plan_pairs(corpus: TokenCorpus, room: int, short_probability: float, rng: np.random.Generator) -> np.ndarray:
    """One pass over all documents: int64 rows (A's start and end, B's start and end in tokens, label)."""
    starts, documents = corpus.sentence_starts.data, corpus.document_starts.data  # as memory views: fast scalars
    number = len(documents) - 1
    uniform = _uniform(rng)
    rows = array("q")
    for document in range(number):
        sentence, last = documents[document], documents[document + 1]
        while sentence < last:
            target = room
            if next(uniform) < short_probability:
                target = 2 + int(next(uniform) * (room - 1))
            end = bisect_left(starts, starts[sentence] + target, sentence + 1, last)
            middle = sentence + 1  # A is at least one sentence and leaves at least one where there are two
            if end - sentence > 2:
                middle += int(next(uniform) * (end - sentence - 1))
            if end - sentence > 1 and next(uniform) < 0.5:
                rows.extend((starts[sentence], starts[middle], starts[middle], starts[end], 0))
                sentence = end
                continue
            other = int(next(uniform) * (number - 1))
            other += other >= document
            b_first, b_last = documents[other], documents[other + 1]
            b_first += int(next(uniform) * (b_last - b_first))
            left = target - (starts[middle] - starts[sentence])
            b_end = bisect_left(starts, starts[b_first] + left, b_first + 1, b_last)
            rows.extend((starts[sentence], starts[middle], starts[b_first], starts[b_end], 1))
            sentence = middle
    return np.frombuffer(rows, np.int64).reshape(-1, 5)


def _uniform(rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield from rng.random(4096).tolist()


def _truncated(plan: np.ndarray, room: int, rng: np.random.Generator) -> np.ndarray:
    """Cuts pairs to `room` tokens: one token after another from the longer side (B if equal), front or back."""
    plan = plan.copy()
    a, b = plan[:, 1] - plan[:, 0], plan[:, 3] - plan[:, 2]
    excess = np.maximum(a + b - room, 0)
    uneven = np.minimum(excess, np.abs(a - b))
    even = excess - uneven  # once both are equally long they take turns
    for column, cut in ((0, np.where(a > b, uneven, 0) + even // 2), (2, np.where(b > a, uneven, 0) + (even + 1) // 2)):
        front = rng.binomial(cut, 0.5)
        plan[:, column] += front
        plan[:, column + 1] -= cut - front
    return plan

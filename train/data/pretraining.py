"""Examples for masked-LM and next-sentence pretraining (Devlin et al. 2019, appendix A.2).

The masking itself happens on the device (`bert_jax.masking`); here sentences become pairs.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from train.data.documents import Document
from train.errors import InputError

_SENTENCES_A_BATCH = 10_000
_SPECIAL = 3  # [CLS] A [SEP] B [SEP]


class TokenCorpus(NamedTuple):
    """A tokenized corpus in three flat arrays.

    tokens: int32, all tokens in order. sentence_starts: int64, where each sentence begins in `tokens`, and their
    number at the end. document_starts: int64, where each document begins in the sentences, and their number at
    the end. No sentence and no document is empty.
    """

    tokens: np.ndarray
    sentence_starts: np.ndarray
    document_starts: np.ndarray


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
        np.concatenate(tokens), _starts(length[length > 0]), _starts(sentences_a_document[sentences_a_document > 0])
    )


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


class SentencePairs:
    """Random access to the pairs of a corpus: [CLS] A [SEP] B [SEP] of at most `max_length` tokens, padded to it.

    A and B are runs of whole sentences; half the time B is what follows A, else it is from another document and
    the sentences it displaced are used again. A run that is one sentence alone has no following one, so short
    documents give more random pairs than half. A tenth of the pairs (`short_probability`) aims at a shorter random
    length. Longer pairs lose tokens of the longer side, from its front or its back at random.

    Each of the `duplicates` passes over the corpus draws anew. All is a pure function of the arguments.

    `pairs[i]` is a dict: input_ids int32 [L], token_type_ids int32 [L], attention_mask bool [L], and
    next_sentence_label int32 (0: B follows A; 1: B is random, as in Hugging Face), with L = `max_length`.

    Raises:
        InputError: the corpus has fewer than two documents, or `max_length` leaves no room for two tokens.
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
    ):
        if len(corpus.document_starts) < 3:
            raise InputError(
                f"next-sentence prediction needs two or more documents, but the data has "
                f"{len(corpus.document_starts) - 1}; separate documents by blank lines, or name more files"
            )
        if max_length < _SPECIAL + 2:
            raise InputError(f"max_length is {max_length}, but sentence pairs need at least {_SPECIAL + 2} tokens")
        self._tokens = corpus.tokens
        self._max_length, self._cls_id, self._sep_id, self._pad_id = max_length, cls_id, sep_id, pad_id
        passes = []
        for duplicate in range(duplicates):
            rng = np.random.default_rng([seed, duplicate])
            plan = _plan(corpus, max_length - _SPECIAL, short_probability, rng)
            passes.append(_truncated(plan, max_length - _SPECIAL, rng))
        self._plan = np.concatenate(passes)

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        a_start, a_end, b_start, b_end, label = self._plan[index].tolist()
        second = a_end - a_start + 2  # where B begins
        length = second + b_end - b_start + 1
        input_ids_L = np.full(self._max_length, self._pad_id, np.int32)
        input_ids_L[0] = self._cls_id
        input_ids_L[1 : second - 1] = self._tokens[a_start:a_end]
        input_ids_L[second - 1] = self._sep_id
        input_ids_L[second : length - 1] = self._tokens[b_start:b_end]
        input_ids_L[length - 1] = self._sep_id
        position_L = np.arange(self._max_length)
        return {
            "input_ids": input_ids_L,
            "token_type_ids": ((position_L >= second) & (position_L < length)).astype(np.int32),
            "attention_mask": position_L < length,
            "next_sentence_label": np.asarray(label, np.int32),
        }


def _plan(corpus: TokenCorpus, room: int, short_probability: float, rng: np.random.Generator) -> np.ndarray:
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

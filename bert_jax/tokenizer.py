"""BERT's WordPiece tokenizer over the `tokenizers` library, in Hugging Face's file layout."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer, decoders, models, pre_tokenizers, processors

from bert_jax.hub import local_folder
from bert_jax.vocabulary import (
    MAX_VOCABULARY,
    MAX_WORD,
    SPECIAL_TOKENS,
    check_texts,
    learn_vocabulary,
    normalizer,
    read_vocabulary,
    write_vocabulary,
)
from transformer_jax.checkpoints import write_files
from transformer_jax.checks import Size, check_fields, check_ids, check_value, listed, require, shown
from transformer_jax.tokenizer import reading

FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")


class _Settings(NamedTuple):
    """What a tokenizer_config.json says about a vocab.txt."""

    do_lower_case: bool = True
    strip_accents: bool | None = None
    tokenize_chinese_chars: bool = True


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
        _check_special(vocabulary)
        _check_special(backend.get_vocab(with_added_tokens=False))
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
        return cls(_assemble(learn_vocabulary(texts, vocab_size, lowercase), _Settings(do_lower_case=lowercase)))

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "BertTokenizer":
        """Reads tokenizer.json or else vocab.txt (with tokenizer_config.json) from a folder or the hub.

        Raises:
            ValueError: nothing of that name, neither file in it, or files that cannot be read, are damaged, or hold
                another kind of tokenizer.
        """
        folder = local_folder(name, FILES)
        whole, vocabulary, settings = (folder / file for file in FILES)
        if whole.exists():
            with reading(whole):
                return cls(Tokenizer.from_str(whole.read_text(encoding="utf-8")))
        require(vocabulary.exists(), f"{folder} holds neither tokenizer.json nor vocab.txt")
        with reading(settings):
            chosen = _read_settings(settings)
        with reading(vocabulary):
            return cls(_assemble(read_vocabulary(vocabulary), chosen))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes what Hugging Face's BertTokenizer loads: tokenizer.json, vocab.txt and two small JSON files.

        Raises ValueError, and writes nothing, for a token that vocab.txt cannot hold.
        """
        folder, rules = Path(folder), self.backend.normalizer
        names = dict(
            zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL_TOKENS, strict=True)
        )
        config = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": getattr(rules, "lowercase", True),
            "strip_accents": getattr(rules, "strip_accents", None),
            "tokenize_chinese_chars": getattr(rules, "handle_chinese_chars", True),
            **names,
        }
        files = {
            "tokenizer.json": self.backend.to_str(pretty=True),
            "vocab.txt": write_vocabulary(self.backend.get_vocab()),
            "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
            "special_tokens_map.json": json.dumps(names, indent=2) + "\n",
        }
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

    def pad(self, encodings: Sequence[Encoding], length: int | None = None) -> dict[str, np.ndarray]:
        """What `encode` returned -> the arrays of `__call__`, of the given length or that of the longest row."""
        shape = (len(encodings), length or max(map(len, encodings)))
        input_ids = np.full(shape, self.pad_id, np.int32)
        token_type_ids, attention_mask = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        for row, encoding in enumerate(encodings):
            used = len(encoding)
            input_ids[row, :used] = encoding.ids
            token_type_ids[row, :used] = encoding.type_ids
            attention_mask[row, :used] = 1
        return {"input_ids": input_ids, "token_type_ids": token_type_ids, "attention_mask": attention_mask}

    def encode(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, max_length: int | None = None
    ) -> list[Encoding]:
        """The encodings behind `__call__`, not padded: they also know words and character offsets."""
        texts = check_texts("texts", texts)
        pairs = None if pairs is None else check_texts("pairs", pairs)
        require(len(texts) > 0, "texts is empty: give at least one text")
        require(pairs is None or len(pairs) == len(texts), f"{len(texts)} texts, but {len(pairs or ())} pairs")
        check_value("max_length", max_length, Size | None)
        special = 2 if pairs is None else 3
        room = None if max_length is None else max_length - special
        require(room is None or room > 0, f"max_length {max_length} leaves no room beside {special} special tokens")
        first = self.backend.encode_batch(texts, add_special_tokens=False)
        if pairs is None:
            for encoding in first:
                _truncate(room, encoding)
            return [self.backend.post_process(encoding) for encoding in first]
        second = self.backend.encode_batch(pairs, add_special_tokens=False)
        for both in zip(first, second, strict=True):
            _truncate(room, *both)
        return [self.backend.post_process(a, b) for a, b in zip(first, second, strict=True)]

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


def _check_special(vocabulary: dict[str, int]) -> None:
    missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
    require(not missing, f"the vocabulary lacks the special tokens {', '.join(missing)}")


def _read_settings(path: Path) -> _Settings:
    if not path.exists():
        return _Settings()
    config = json.loads(path.read_text(encoding="utf-8-sig"))
    require(isinstance(config, dict), f"it holds {type(config).__name__}, not a JSON object")
    settings = _Settings(**{name: config[name] for name in _Settings._fields if name in config})
    check_fields(settings)
    return settings


def _assemble(vocabulary: dict[str, int], settings: _Settings) -> Tokenizer:
    """BERT's pipeline over a vocabulary."""
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=MAX_WORD))
    backend.normalizer = normalizer(*settings)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    _check_special(vocabulary)
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return backend

"""BERT's WordPiece tokenizer over the `tokenizers` library, in Hugging Face's file layout."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Encoding, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from bert_jax.hub import local_folder
from transformer_jax.checkpoints import write_file
from transformer_jax.checks import require

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")
# Longer words become [UNK], as in the original.
MAX_WORD = 100


class BertTokenizer:
    """Text -> ids, with [CLS] and [SEP] around one text or between two.

    Attributes:
        backend: the `tokenizers.Tokenizer`, without truncation and padding.
        pad_id, unk_id, cls_id, sep_id, mask_id: ids of the special tokens.
        special_ids: all ids that are not text, ascending.
        vocab_size: one more than the highest id.
    """

    def __init__(self, backend: Tokenizer) -> None:
        """Raises ValueError where the vocabulary lacks one of BERT's five special tokens."""
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        vocabulary = backend.get_vocab()
        _check_special(vocabulary)
        ids = [vocabulary[token] for token in SPECIAL_TOKENS]
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = ids
        added = [index for index, token in backend.get_added_tokens_decoder().items() if token.special]
        self.special_ids: tuple[int, ...] = tuple(sorted({*ids, *added}))
        self.vocab_size: int = max(vocabulary.values()) + 1

    # --- making one -----------------------------------------------------------------------------------------------

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, lowercase: bool = True) -> "BertTokenizer":
        """Learns a WordPiece vocabulary; the same texts give the same vocabulary.

        The special tokens have ids 0 to 4. Characters may fill half of the vocabulary: of texts with more of them,
        the most frequent are kept. The texts are held in memory.

        Raises:
            ValueError: vocab_size is below 16.
        """
        require(vocab_size >= 16, f"vocab_size must be at least 16, not {vocab_size}")
        texts = list(texts)
        limit = (vocab_size - len(SPECIAL_TOKENS)) // 2
        alphabet = _learn(texts, 0, lowercase, SPECIAL_TOKENS, {})
        options: dict[str, Any] = {}
        if len(alphabet) - len(SPECIAL_TOKENS) > 2 * limit:
            options = {"initial_alphabet": _frequent_characters(texts, lowercase, limit), "limit_alphabet": limit}
            alphabet = _learn(texts, 0, lowercase, SPECIAL_TOKENS, options)
        # The library numbers the "##" characters in the order of a hash table, which differs between processes and
        # decides ties. Given first, as if they were special, they have fixed ids.
        pieces = sorted(piece for piece in alphabet if piece.startswith("##") and len(piece) > 2)
        return cls(_assemble(_learn(texts, vocab_size, lowercase, [*SPECIAL_TOKENS, *pieces], options), lowercase))

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "BertTokenizer":
        """Reads tokenizer.json or else vocab.txt (with tokenizer_config.json) from a folder or the hub.

        Raises:
            ValueError: nothing of that name, neither file in it, or files that cannot be read.
        """
        folder = local_folder(name, FILES)
        whole, vocabulary, settings = (folder / file for file in FILES)
        if whole.is_file():
            try:
                return cls(Tokenizer.from_file(str(whole)))
            except ValueError:
                raise
            # The library raises plain Exception.
            except Exception as error:
                raise ValueError(f"{whole} cannot be read: {error}") from error
        require(vocabulary.is_file(), f"{folder} holds neither tokenizer.json nor vocab.txt")
        try:
            config = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        except ValueError as error:
            raise ValueError(f"{settings} is not JSON: {error}") from error
        tokens = vocabulary.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        return cls(
            _assemble(
                {token: index for index, token in enumerate(tokens)},
                config.get("do_lower_case", True),
                config.get("strip_accents"),
                config.get("tokenize_chinese_chars", True),
            )
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes what Hugging Face's BertTokenizer loads: tokenizer.json, vocab.txt and two small JSON files."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        normalizer = self.backend.normalizer
        names = dict(
            zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL_TOKENS, strict=True)
        )
        config = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": getattr(normalizer, "lowercase", True),
            "strip_accents": getattr(normalizer, "strip_accents", None),
            "tokenize_chinese_chars": getattr(normalizer, "handle_chinese_chars", True),
            **names,
        }
        vocabulary = self.backend.get_vocab()
        tokens = sorted(vocabulary, key=vocabulary.__getitem__)
        for file, content in (
            ("tokenizer.json", self.backend.to_str(pretty=True)),
            ("vocab.txt", "".join(f"{token}\n" for token in tokens)),
            ("tokenizer_config.json", json.dumps(config, indent=2) + "\n"),
            ("special_tokens_map.json", json.dumps(names, indent=2) + "\n"),
        ):
            write_file(folder / file, content.encode())

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
            max_length: longest row, special tokens included. Of a pair the longer text is cut first. None: no limit.
            padding: on the right, to the longest row of the batch or to max_length.

        Returns:
            int32 arrays [B, L] `input_ids`, `token_type_ids` and `attention_mask`.

        Raises:
            ValueError: one str instead of a list, no text at all, lists of different lengths, or no room for text.
        """
        encodings = self.encode(texts, pairs, max_length)
        require(padding in ("longest", "max_length"), f"padding {padding!r}: choose longest or max_length")
        if padding == "max_length":
            require(max_length is not None, "padding='max_length' needs max_length")
        length = max_length if padding == "max_length" else max(len(encoding) for encoding in encodings)
        shape = (len(encodings), int(length or 0))
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
        for name, value in (("texts", texts), ("pairs", pairs)):
            require(not isinstance(value, str), f"{name} must be a list of texts, not one str ({value!r:.40})")
        require(len(texts) > 0, "texts is empty: give at least one text")
        require(pairs is None or len(pairs) == len(texts), f"{len(texts)} texts, but {len(pairs or ())} pairs")
        special = 2 if pairs is None else 3
        room = None if max_length is None else max_length - special
        require(room is None or room > 0, f"max_length {max_length} leaves no room beside {special} special tokens")
        first = self.backend.encode_batch(list(texts), add_special_tokens=False)
        if pairs is None:
            for encoding in first:
                _truncate(room, encoding)
            return [self.backend.post_process(encoding) for encoding in first]
        second = self.backend.encode_batch(list(pairs), add_special_tokens=False)
        for both in zip(first, second, strict=True):
            _truncate(room, *both)
        return [self.backend.post_process(a, b) for a, b in zip(first, second, strict=True)]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """One row of ids -> text; WordPiece does not keep case and spaces that the normalizer removed."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

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


def _normalizer(lowercase: bool, strip_accents: bool | None = None, chinese: bool = True) -> Any:
    return normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=strip_accents, lowercase=lowercase
    )


def _learn(
    texts: Sequence[str], vocab_size: int, lowercase: bool, special: Sequence[str], options: dict[str, Any]
) -> dict[str, int]:
    """The vocabulary of one training run: special tokens, characters, then merged pieces."""
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer, learner.pre_tokenizer = _normalizer(lowercase), pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=list(special), show_progress=False, **options
    )
    learner.train_from_iterator(texts, trainer)
    return learner.get_vocab()


def _frequent_characters(texts: Sequence[str], lowercase: bool, limit: int) -> list[str]:
    normalizer = _normalizer(lowercase)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    kept = [character for character in counts if not character.isspace()]
    return sorted(kept, key=lambda character: (-counts[character], character))[:limit]


def _assemble(
    vocabulary: dict[str, int], lowercase: bool, strip_accents: bool | None = None, chinese: bool = True
) -> Tokenizer:
    """BERT's pipeline over a vocabulary."""
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=MAX_WORD))
    backend.normalizer = _normalizer(lowercase, strip_accents, chinese)
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

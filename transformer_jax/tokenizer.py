"""The tokenizers that a model's folder may hold: SentencePiece's, Marian's, or one of the `tokenizers` library."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from transformer_jax.checkpoints import read_json, write_files
from transformer_jax.checks import listed, printed, require, shown
from transformer_jax.config import TransformerConfig
from transformer_jax.spans import Span, sentencepiece_spans
from transformer_jax.tags import marian_names

# What a folder is known by to hold each kind. A Marian's may hold the others too, made of its own files.
FILES = MARIAN, SENTENCEPIECE, JSON = "source.spm", "spm.model", "tokenizer.json"
FILES_OF_TOKENIZERS = (*FILES, "target.spm", "vocab.json", "target_vocab.json", "tokenizer_config.json")
# Where a Marian's tokenizer_config.json may name tokens beside its vocabulary.
ADDED = "added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"


class Tokenizer(Protocol):
    """What a Translator needs of a tokenizer: text without start and end, which the model's configuration names.

    `sentencepiece.SentencePieceProcessor` has it. One that has the methods `vocab_size`, `eos_id` and `pad_id` too is
    held against the model; -1 stands for a token that it does not know. For word alignment it has `spans`, see
    `transformer_jax.spans`.
    """

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


class JsonTokenizer:
    """A tokenizer of the `tokenizers` library under SentencePiece's method names, such as a BERT's WordPiece.

    Attributes:
        backend: the `tokenizers.Tokenizer`, without truncation and padding.
    """

    def __init__(self, backend: Any) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend

    def encode(self, text: Any) -> Any:
        """The ids of one text, or a list of them for each of several; without start and end."""
        if not isinstance(text, str):
            return [row.ids for row in self.backend.encode_batch(list(text), add_special_tokens=False)]
        return self.backend.encode(text, add_special_tokens=False).ids

    def spans(self, text: str) -> list[Span]:
        """Where each token of a text stands in it."""
        return self.backend.encode(text, add_special_tokens=False).offsets

    def decode(self, ids: list[int]) -> str:
        """Ids -> text, without special tokens and without ids that are no token's."""
        return self.backend.decode(ids)

    def vocab_size(self) -> int:
        """One more than the highest id."""
        return max(self.backend.get_vocab().values(), default=-1) + 1

    def pad_id(self) -> int:
        """The id of BERT's padding; -1 without."""
        return self._id("[PAD]")

    def eos_id(self) -> int:
        """The id of BERT's separator; -1 without."""
        return self._id("[SEP]")

    def unk_id(self) -> int:
        """The id of BERT's unknown word; -1 without."""
        return self._id("[UNK]")

    def _id(self, token: str) -> int:
        id_ = self.backend.token_to_id(token)
        return -1 if id_ is None else id_


class MarianTokenizer:
    """Two SentencePiece models and the ids of their pieces, under SentencePiece's method names.

    It gives the ids of Hugging Face's MarianTokenizer: what begins a text like `>>fra<<` is one token, the end, padding
    and unknown token are themselves wherever they are written, and a piece without an id is unknown.

    Attributes:
        source, target: a `sentencepiece.SentencePieceProcessor` for each language.
        vocab: piece -> id, of both languages.
        target_vocab: that of the target where it has one of its own, with the same ids for end and padding.
        settings: the object of tokenizer_config.json, which names these tokens.

    Raises:
        ValueError: ids are not integers that differ, or a vocabulary lacks one of these tokens.
    """

    def __init__(
        self,
        source: Any,
        target: Any,
        vocab: Mapping[str, int],
        target_vocab: Mapping[str, int] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        own = {"tokenizer_class": "MarianTokenizer", "separate_vocabs": target_vocab is not None}
        self.settings = {**own, "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", **(settings or {})}
        self.source, self.target, self.vocab = source, target, dict(vocab)
        self.target_vocab = self.vocab if target_vocab is None else dict(target_vocab)
        names = [_content(key, self.settings[key]) for key in ("eos_token", "unk_token", "pad_token")]
        self._eos, self._unk, self._pad = names
        for of, ids in {"vocab": self.vocab, "target_vocab": self.target_vocab}.items():
            wrong = [f"{piece} {shown(id_)}" for piece, id_ in ids.items() if type(id_) is not int or id_ < 0]
            require(not wrong, f"{of}: ids are integers from 0, but {listed(wrong)} are not")
            require(len(set(ids.values())) == len(ids), f"{of}: {len(ids)} pieces have {len(set(ids.values()))} ids")
            missing = [name for name in names if name not in ids]
            require(not missing, f"{of} lacks {listed(missing)}")
        for name in (self._eos, self._pad):
            agree = self.vocab[name] == self.target_vocab[name]
            require(agree, f"{name} is {self.vocab[name]} in vocab, but {self.target_vocab[name]} in target_vocab")
        for key in ADDED:
            others = sorted({_content(key, token) for token in _several(key, self.settings.get(key))} - {*names})
            require(not others, f"{key}: tokens that are added to the vocabulary are not read: {listed(others)}")
        by_length = sorted(names, key=len, reverse=True)
        self._special = re.compile(f"({'|'.join(map(re.escape, by_length))})")
        self._pieces = {id_: piece for piece, id_ in self.target_vocab.items()}
        self._skipped = {self.target_vocab[name] for name in names}

    @classmethod
    def of_sentencepiece(cls, source: Any, target: Any) -> "MarianTokenizer":
        """Of two SentencePiece models with a vocabulary each, whose ids stay what they are."""
        kinds = {"eos": source.eos_id(), "unk": source.unk_id(), "pad": source.pad_id()}
        lacking = [kind for kind, id_ in kinds.items() if id_ < 0]
        require(not lacking, f"the source's SentencePiece model has no token for {listed(lacking)}")
        names = {f"{kind}_token": source.id_to_piece(id_) for kind, id_ in kinds.items()}
        return cls(source, target, pieces_of(source), pieces_of(target), names)

    def encode(self, text: Any) -> Any:
        """The ids of a source text, or a list of them for each of several; without its end."""
        return self._encode(text, self.source, self.vocab)

    def encode_target(self, text: Any) -> Any:
        """The same for texts in the target's language."""
        return self._encode(text, self.target, self.target_vocab)

    def spans(self, text: str) -> list[Span]:
        """Where each token of a source text stands in it."""
        return self._spans(text, self.source)

    def target_spans(self, text: str) -> list[Span]:
        """The same for a text in the target's language."""
        return self._spans(text, self.target)

    def decode(self, ids: list[int]) -> str:
        """Ids of the target -> text, without end, padding and unknown. Raises IndexError for ids of no piece."""
        unknown = [id_ for id_ in ids if id_ not in self._pieces]
        if unknown:
            raise IndexError(f"no piece has the id {unknown[0]}")
        pieces = [self._pieces[id_] for id_ in ids if id_ not in self._skipped]
        return self.target.decode_pieces(pieces).replace("▁", " ").strip()

    def vocab_size(self) -> int:
        """One more than the highest id of the source."""
        return max(self.vocab.values()) + 1

    def target_vocab_size(self) -> int:
        """One more than the highest id of the target."""
        return max(self.target_vocab.values()) + 1

    def eos_id(self) -> int:
        """The id of the end."""
        return self.vocab[self._eos]

    def pad_id(self) -> int:
        """The id of the padding."""
        return self.vocab[self._pad]

    def unk_id(self) -> int:
        """The id of what has no piece in the target."""
        return self.target_vocab[self._unk]

    def serialized(self) -> bytes:
        """All that decides what it does."""
        names = [self._eos, self._unk, self._pad]
        said = json.dumps([names, *(sorted(vocab.items()) for vocab in (self.vocab, self.target_vocab))]).encode()
        return said + self.source.serialized_model_proto() + self.target.serialized_model_proto()

    def files(self) -> dict[str, bytes]:
        """The files that `load_tokenizer` and Hugging Face's MarianTokenizer read."""
        objects: dict[str, Any] = {"vocab.json": self.vocab, "tokenizer_config.json": self.settings}
        if self.settings["separate_vocabs"]:
            objects["target_vocab.json"] = self.target_vocab
        models = {MARIAN: self.source, "target.spm": self.target}
        return {
            **{name: (json.dumps(value, indent=2) + "\n").encode() for name, value in objects.items()},
            **{name: processor.serialized_model_proto() for name, processor in models.items()},
        }

    def _encode(self, text: Any, processor: Any, vocab: dict[str, int]) -> Any:
        if not isinstance(text, str):
            return [self._encode(each, processor, vocab) for each in text]
        parts = (
            [part] if is_token else processor.encode(part, out_type=str) for part, _, is_token in self._parts(text)
        )
        return [vocab.get(piece, vocab[self._unk]) for pieces in parts for piece in pieces]

    def _spans(self, text: str, processor: Any) -> list[Span]:
        found: list[Span] = []
        for part, begin, is_token in self._parts(text):
            spans = [(0, len(part))] if is_token else sentencepiece_spans(processor, part)
            found += [(begin + first, begin + end) for first, end in spans]
        return found

    def _parts(self, text: str) -> Iterator[tuple[str, int, bool]]:
        """The parts of a text, where each begins, and whether it is a token as it stands."""
        begin = 0
        for i, part in enumerate(self._special.split(text)):
            code = re.match(">>.*?<<", part, re.DOTALL)
            at = len(part) if i % 2 else code.end() if code else 0
            for piece, where, is_token in ((part[:at], begin, True), (part[at:], begin + at, False)):
                if piece:
                    yield piece, where, is_token
            begin += len(part)


def _content(key: str, token: Any) -> str:
    """The text of a token, which tokenizer_config.json says as it is or as an object."""
    name = token.get("content") if isinstance(token, Mapping) else token
    require(isinstance(name, str) and name != "", f"{key} must be a token, not {shown(token)}")
    return str(name)


def _several(key: str, tokens: Any) -> list[Any]:
    """Tokens that are listed, or by id."""
    tokens = [*tokens.values()] if isinstance(tokens, Mapping) else [] if tokens is None else tokens
    require(isinstance(tokens, list), f"{key} must be a list of tokens, or an object, not {shown(tokens)}")
    return tokens


def pieces_of(processor: Any) -> dict[str, int]:
    """The pieces of a SentencePiece model and their ids, as a Marian's vocabulary has them."""
    return marian_names({processor.id_to_piece(id_): id_ for id_ in range(processor.vocab_size())})


def target_encoder(tokenizer: Any) -> Any:
    """Text of the target's language -> ids; a tokenizer of two vocabularies has a method of its own for that."""
    return getattr(tokenizer, "encode_target", tokenizer.encode)


def vocabularies(tokenizer: Any) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """The words of the source and of the target, and their ids."""
    if isinstance(tokenizer, MarianTokenizer):
        return tokenizer.vocab, tokenizer.target_vocab
    one = tokenizer.backend.get_vocab() if isinstance(tokenizer, JsonTokenizer) else pieces_of(tokenizer)
    return one, one


def check_tokenizer(tokenizer: Any, config: TransformerConfig) -> None:
    """Raises ValueError where a tokenizer has more words than a model has rows, or another end or padding."""
    names = ("vocab_size", "target_vocab_size", "eos_id", "pad_id")
    told = {name: method() for name in names if callable(method := getattr(tokenizer, name, None))}
    for name in names[:2]:
        words, rows = told.pop(name, 0), getattr(config, name)
        require(words <= rows, f"the tokenizer has {words} words, but the model's {name} is {rows}")
    for name, id_ in told.items():
        right = getattr(config, name)
        require(id_ in (-1, right), f"{name} of the tokenizer is {id_}, but that of the model {right}")


# --- files -------------------------------------------------------------------------------------------------------


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a folder: Marian's files, or else its spm.model, or its tokenizer.json, whichever it holds.

    Raises:
        ValueError: it holds none, or a file cannot be read.
    """
    folder = Path(folder)
    found = [name for name in FILES if (folder / name).exists()]
    require(bool(found), f"{folder} holds no vocabulary: neither {' nor '.join(FILES)}")
    if found[0] == MARIAN:
        return load_marian(folder)
    return (load_sentencepiece if found[0] == SENTENCEPIECE else load_json)(folder / found[0])


def save_tokenizer(folder: str | Path, tokenizer: Any) -> None:
    """Writes the files that `load_tokenizer` reads."""
    write_files(Path(folder), files_of(tokenizer))


def file_name(tokenizer: Any) -> str:
    """The name of the file that such a tokenizer is known by."""
    return next(iter(files_of(tokenizer)))


def serialized(tokenizer: Any) -> bytes:
    """All that decides what the tokenizer does."""
    if isinstance(tokenizer, MarianTokenizer):  # whose files say more, and in any order
        return tokenizer.serialized()
    return b"".join(files_of(tokenizer).values())


def files_of(tokenizer: Any) -> dict[str, bytes]:
    """The files that hold the tokenizer."""
    if isinstance(tokenizer, MarianTokenizer):
        return tokenizer.files()
    if isinstance(tokenizer, JsonTokenizer):
        return {JSON: tokenizer.backend.to_str(pretty=True).encode()}
    return {SENTENCEPIECE: tokenizer.serialized_model_proto()}


def load_marian(folder: str | Path) -> MarianTokenizer:
    """Reads source.spm, target.spm and vocab.json, and tokenizer_config.json and target_vocab.json where they are.

    Raises:
        ValueError: a file is missing or cannot be read, tokens are added beside the vocabulary, or as the class.
    """
    folder = Path(folder)
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.is_file() else {}
    separate = settings.get("separate_vocabs", False)
    require(isinstance(separate, bool), f"{path}: separate_vocabs must be true or false, not {shown(separate)}")
    source, target = (load_sentencepiece(folder / name) for name in (MARIAN, "target.spm"))
    vocab = read_json(folder / "vocab.json")
    target_vocab = read_json(folder / "target_vocab.json") if separate else None
    try:
        tokenizer = MarianTokenizer(source, target, vocab, target_vocab, settings)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    return tokenizer


def load_json(path: str | Path) -> JsonTokenizer:
    """Reads a `tokenizer.json` of any kind. Raises ValueError where it is missing or cannot be read."""
    import tokenizers

    with reading(Path(path)):
        tokenizer = JsonTokenizer(tokenizers.Tokenizer.from_str(Path(path).read_text(encoding="utf-8")))
        tokenizer.encode("a")
    return tokenizer


def load_sentencepiece(path: str | Path) -> Any:
    """Reads an `spm.model` into a `sentencepiece.SentencePieceProcessor`.

    Raises:
        ValueError: the file is missing, cannot be read, or is no SentencePiece model.
    """
    import sentencepiece

    try:
        processor = sentencepiece.SentencePieceProcessor()
        processor.LoadFromSerializedProto(Path(path).read_bytes())  # the constructor takes empty bytes for no model
        processor.id_to_piece(list(range(processor.vocab_size())))  # that each of them is text
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as a SentencePiece model: {reason}") from error
    return processor


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever is wrong with a file, and `tokenizers` raises plain Exception, becomes a ValueError that names it."""
    try:
        yield
    except BaseException as error:  # that library panics with one of Rust's own
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{path} cannot be read: {printed(' '.join(str(error).split()))}") from error

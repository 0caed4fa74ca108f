"""The tokenizers that a model's folder may hold: SentencePiece's, or one of the `tokenizers` library."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from transformer_jax.checkpoints import write_file
from transformer_jax.checks import printed, require

FILES = SENTENCEPIECE, JSON = "spm.model", "tokenizer.json"


class Tokenizer(Protocol):
    """What a Translator needs of a tokenizer: text without start and end, which the model's configuration names.

    `sentencepiece.SentencePieceProcessor` has it. One that has the methods `vocab_size`, `eos_id` and `pad_id` too is
    held against the model; -1 stands for a token that it does not know.
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

    def _id(self, token: str) -> int:
        id_ = self.backend.token_to_id(token)
        return -1 if id_ is None else id_


# --- files -------------------------------------------------------------------------------------------------------


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a folder: its spm.model or else its tokenizer.json, whichever it holds.

    Raises:
        ValueError: it holds neither, or the file cannot be read.
    """
    folder = Path(folder)
    found = [name for name in FILES if (folder / name).exists()]
    require(bool(found), f"{folder} holds no vocabulary: neither {' nor '.join(FILES)}")
    return (load_sentencepiece if found[0] == SENTENCEPIECE else load_json)(folder / found[0])


def save_tokenizer(folder: str | Path, tokenizer: Any) -> None:
    """Writes the one file that `load_tokenizer` reads."""
    write_file(Path(folder) / file_name(tokenizer), serialized(tokenizer))


def file_name(tokenizer: Any) -> str:
    """The name of the file that holds such a tokenizer."""
    return JSON if isinstance(tokenizer, JsonTokenizer) else SENTENCEPIECE


def serialized(tokenizer: Any) -> bytes:
    """The content of that file."""
    if isinstance(tokenizer, JsonTokenizer):
        return tokenizer.backend.to_str(pretty=True).encode()
    return tokenizer.serialized_model_proto()


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

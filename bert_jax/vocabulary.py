"""WordPiece vocabularies: learned from texts, and read from files."""

import codecs
import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from transformer_jax.checks import Range, check_value, require, shown

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# Longer words become [UNK], as in the original.
MAX_WORD = 100
MAX_VOCABULARY = 10_000_000

# Letters and digits, but not the Chinese characters, which are words by themselves: surely parts of one word.
_ONE_WORD = re.compile(rf"[^\W_\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f]{{{MAX_WORD + 2},}}")


def check_texts(name: str, texts: Iterable[str]) -> list[str]:
    """A list of texts that the library can read.

    Raises:
        ValueError: one str or something else that is no list, or an element that is no str or holds half of a
            surrogate pair. It says which.
    """
    require(not isinstance(texts, str), f"{name} must be a list of texts, not one str ({shown(texts, 40)})")
    iterable = isinstance(texts, Iterable) and not isinstance(texts, bytes | Mapping)
    require(iterable, f"{name} must be a list of texts, not {shown(texts)}")
    texts = list(texts)
    for index, text in enumerate(texts):
        require(isinstance(text, str), f"{name}[{index}] must be a str, not {shown(text)}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            where = f"{name}[{index}], character {error.start}"
            raise ValueError(f"{where}: {text[error.start]!r} is half of a surrogate pair, no text") from error
    return texts


def normalizer(lowercase: bool, strip_accents: bool | None = None, chinese: bool = True) -> Any:
    """BERT's: control characters out, spaces around Chinese characters, small letters without accents."""
    return normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=strip_accents, lowercase=lowercase
    )


# --- learning ----------------------------------------------------------------------------------------------------


def learn_vocabulary(texts: Iterable[str], vocab_size: int, lowercase: bool) -> dict[str, int]:
    """Token -> id; see `BertTokenizer.train`."""
    check_value("vocab_size", vocab_size, Annotated[int, Range(16, MAX_VOCABULARY)])
    check_value("lowercase", lowercase, bool)
    # The library takes seconds to normalise a word of megabytes: what is dropped anyway is cut short before.
    texts = [_ONE_WORD.sub(lambda match: match[0][: MAX_WORD + 1], text) for text in check_texts("texts", texts)]
    limit = (vocab_size - len(SPECIAL_TOKENS)) // 2
    alphabet = _learn(texts, 0, lowercase, SPECIAL_TOKENS, {})
    require(
        len(alphabet) > len(SPECIAL_TOKENS),
        f"there is nothing to learn from: none of {len(texts)} texts holds a word of 1 to {MAX_WORD} characters",
    )
    options: dict[str, Any] = {}
    if len(alphabet) - len(SPECIAL_TOKENS) > 2 * limit:
        characters = _frequent_characters(texts, lowercase, alphabet)[:limit]
        options = {"initial_alphabet": characters, "limit_alphabet": limit}
        alphabet = _learn(texts, 0, lowercase, SPECIAL_TOKENS, options)
    # The library numbers the "##" characters in the order of a hash table, which differs between processes and
    # decides ties. Given first, as if they were special, they have fixed ids.
    pieces = sorted(piece for piece in alphabet if piece.startswith("##") and len(piece) > 2)
    return _learn(texts, vocab_size, lowercase, [*SPECIAL_TOKENS, *pieces], options)


def _learn(
    texts: Sequence[str], vocab_size: int, lowercase: bool, special: Sequence[str], options: dict[str, Any]
) -> dict[str, int]:
    """The vocabulary of one training run: special tokens, characters, then merged pieces."""
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = normalizer(lowercase)
    # Learning takes time quadratic in a word's length.
    without_long = pre_tokenizers.Split(Regex(rf"\A.{{{MAX_WORD + 1},}}\z"), "removed")
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), without_long])
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=list(special), show_progress=False, **options
    )
    learner.train_from_iterator(texts, trainer)
    return learner.get_vocab()


def _frequent_characters(texts: Sequence[str], lowercase: bool, alphabet: Container[str]) -> list[str]:
    """The characters of `alphabet`, the frequent ones first."""
    rules = normalizer(lowercase)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(rules.normalize_str(text))
    kept = [character for character in counts if character in alphabet or f"##{character}" in alphabet]
    return sorted(kept, key=lambda character: (-counts[character], character))


# --- files -------------------------------------------------------------------------------------------------------

_BLANK = " \t\r"  # other white space does occur as a token


def read_vocabulary(path: Path) -> dict[str, int]:
    """Token -> id of a vocab.txt: UTF-8, a token a line, the first line is id 0.

    A byte order mark, spaces and carriage returns at the ends of lines, and empty lines at the end are no tokens.

    Raises:
        ValueError: another encoding, an empty line, or a token on two lines. It says where.
    """
    content = path.read_bytes()
    require(not content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)), "it is UTF-16: save it as UTF-8")
    try:
        text = content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {number} (byte {error.start}) is not UTF-8: save the file as UTF-8") from error
    vocabulary: dict[str, int] = {}
    for index, line in enumerate(text.rstrip(_BLANK + "\n").split("\n")):
        token = line.strip(_BLANK)
        require(token != "", f"line {index + 1} holds no token")
        first = vocabulary.setdefault(token, index)
        require(first == index, f"line {index + 1} repeats the token of line {first + 1}, {shown(token)}")
    return vocabulary


def write_vocabulary(vocabulary: dict[str, int]) -> str:
    """The vocab.txt of a vocabulary; ids that no token has get one, so that the lines count right.

    Raises:
        ValueError: a token that no line can hold.
    """
    tokens = {index: token for token, index in vocabulary.items()}
    for token in tokens.values():
        fits = token == token.strip(_BLANK) != "" and "\n" not in token
        require(fits, f"a vocab.txt cannot hold the token {shown(token)}")
    return "".join(f"{tokens.get(index, f'[unassigned{index}]')}\n" for index in range(max(tokens) + 1))

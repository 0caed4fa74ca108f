"""A BERT tokenizer's files, in Hugging Face's layout: tokenizer.json, or vocab.txt with tokenizer_config.json."""

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from bert_jax.vocabulary import MAX_WORD, SPECIAL_TOKENS, normalizer, read_vocabulary, write_vocabulary
from transformer_jax.checks import check_value, require, shown
from transformer_jax.tokenizer import reading

FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")


class Settings(NamedTuple):
    """What a tokenizer_config.json says; None: nothing."""

    do_lower_case: bool | None = None
    strip_accents: bool | None = None
    tokenize_chinese_chars: bool | None = None


def read_backend(folder: Path) -> Tokenizer:
    """The tokenizer of a folder; see `BertTokenizer.from_pretrained`.

    Raises:
        ValueError: neither file is there, or one cannot be read or is damaged. It names the file.
    """
    whole, vocabulary, settings = (folder / file for file in FILES)
    require(whole.exists() or vocabulary.exists(), f"{folder} holds neither tokenizer.json nor vocab.txt")
    with reading(settings):
        chosen = _read_settings(settings)
    if whole.exists():
        with reading(whole):
            backend = _settled(Tokenizer.from_str(whole.read_text(encoding="utf-8")), chosen)
    else:
        with reading(vocabulary):
            backend = assemble(read_vocabulary(vocabulary), chosen)
    capitals = with_capitals(backend.get_vocab(with_added_tokens=False))
    if capitals and getattr(backend.normalizer, "lowercase", False):
        warnings.warn(
            f"{folder}: the tokenizer lower-cases all text, but {len(capitals)} entries of its vocabulary have capital "
            f"letters and are never used then, such as {shown(min(capitals))}; if the model is cased, set "
            f'"do_lower_case": false in {settings.name}',
            stacklevel=3,
        )
    return backend


def with_capitals(tokens: Iterable[str]) -> list[str]:
    """The tokens that lower-casing changes: no uncased tokenizer ever gives them. Those in brackets are no words."""
    return [token for token in tokens if token != token.lower() and not (token[0] == "[" and token[-1] == "]")]


def assemble(vocabulary: dict[str, int], settings: Settings) -> Tokenizer:
    """BERT's pipeline over a vocabulary, which says whether it is cased where the settings do not."""
    lowercase, accents, chinese = settings
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=MAX_WORD))
    backend.normalizer = normalizer(
        not with_capitals(vocabulary) if lowercase is None else lowercase, accents, chinese is not False
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    check_special(vocabulary)
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return backend


def file_contents(backend: Tokenizer) -> dict[str, str]:
    """The files of a tokenizer by name. Raises ValueError for a token that vocab.txt cannot hold."""
    rules = backend.normalizer
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL_TOKENS, strict=True))
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": getattr(rules, "lowercase", True),
        "strip_accents": getattr(rules, "strip_accents", None),
        "tokenize_chinese_chars": getattr(rules, "handle_chinese_chars", True),
        **names,
    }
    return {
        "tokenizer.json": backend.to_str(pretty=True),
        "vocab.txt": write_vocabulary(backend.get_vocab()),
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
        "special_tokens_map.json": json.dumps(names, indent=2) + "\n",
    }


def check_special(vocabulary: dict[str, int]) -> None:
    """Raises ValueError for a vocabulary without BERT's special tokens."""
    missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
    require(not missing, f"the vocabulary lacks the special tokens {', '.join(missing)}")


def _read_settings(path: Path) -> Settings:
    if not path.exists():
        return Settings()
    config = json.loads(path.read_text(encoding="utf-8-sig"))
    require(isinstance(config, dict), f"it holds {type(config).__name__}, not a JSON object")
    said = {name: config[name] for name in Settings._fields if name in config}
    for name, value in said.items():
        check_value(name, value, bool | None if name == "strip_accents" else bool)
    return Settings(**said)


def _settled(backend: Tokenizer, settings: Settings) -> Tokenizer:
    """A tokenizer.json with what tokenizer_config.json says otherwise: Hugging Face follows the latter, too."""
    rules = backend.normalizer
    if isinstance(rules, normalizers.BertNormalizer):
        saved = [rules.lowercase, rules.strip_accents, rules.handle_chinese_chars]
        chosen: list[Any] = [old if new is None else new for old, new in zip(saved, settings, strict=True)]
        if chosen != saved:
            backend.normalizer = normalizer(*chosen)
    return backend

"""Writes golden_tokenizers.json: python tests/bert_jax/make_golden_tokenizers.py (needs PyTorch's transformers).

What Hugging Face's BertTokenizerFast makes of awkward texts with small vocabularies of four kinds.
"""

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("golden_tokenizers.json")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]"]
# Kind: whether it is lower-cased, texts whose characters it knows, whole words that it knows.
KINDS: dict[str, tuple[bool, str, str]] = {
    "uncased": (
        True,
        "abcdefghijklmnopqrstuvwxyz0123456789.,!?$%'()-#æøßł",
        "the quick brown fox don jump ##ing cafe elan",
    ),
    "cased": (False, "aAbBcCdDeEfFlLmMnNoOpPqQrRsStTuvwxyz0123.,'éÉïÆ", "The the Quick brown Café ##ing Élan elan"),
    "chinese": (
        True,
        "abcdefghijklmnopqrstuvwxyz0123456789,。！我爱北京天安门你好東カ",
        "abc app ##le iphone 2023 100",
    ),
    "multilingual": (
        False,
        "aAbBcCdeEéÉfhiIjkKlLmMnoprRsStTuvwxyz012.,Łłóź我爱北京東タワカフェーПриветМнемстदुयािمرحبا",
        "The quick Стра ##на Мир 東 東京 सते Łódź ##ство",
    ),
}
TEXTS = [
    "",
    " \t\n",
    "The Quick brown fox, don't jumping!",
    "Café naïve Élan ÉCOLE cafe\u0301",
    "我爱北京天安门 ABC你好。appleiPhone 2023",
    "Straße Ærø Łódź İstanbul",
    "Привет, Мир Страна",
    "東京タワー カフェ",
    "नमस्ते दुनिया مرحبا",
    "x" * 120 + " y",
    "a\u200bb\u00a0c\td\x00e\ufffdf",
    "😀 [MASK] [SEP]x [mask] the[CLS]",
    "3.14% $5 (the #1) “quote”—ok",
]
WORDS = [
    ["Don't", "", "jumping", "\u200b", "東京", "Élan"],
    ["The", "[MASK]", "x" * 120, "fox"],
    [" spaced  words ", "我爱"],
]
QUESTION, CONTEXT = "The Quick fox?", "我爱 the brown fox.  Café Élan, Мир 東京: don't jumping! 012 the end"
MAX_LENGTH, STRIDE = 22, 5


def vocabulary(kind: str) -> list[str]:
    """The tokens of one kind: special ones, each character alone and continuing a word, and a few words."""
    _, characters, words = KINDS[kind]
    return list(dict.fromkeys([*SPECIAL, *characters, *(f"##{c}" for c in characters), *words.split()]))


def write_folder(kind: str, folder: Path) -> None:
    """A folder with a vocab.txt alone."""
    folder.joinpath("vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary(kind)), encoding="utf-8")


def theirs(kind: str, folder: Path) -> Any:
    """Hugging Face's tokenizer, told whether it is lower-cased."""
    import transformers

    write_folder(kind, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.BertTokenizerFast.from_pretrained(folder, do_lower_case=KINDS[kind][0])


def facts(batch: Any) -> list[list[Any]]:
    """[ids, type ids, offsets, word ids, sequence ids] of each row of a BatchEncoding."""
    return [
        [
            batch["input_ids"][row],
            batch["token_type_ids"][row],
            [list(pair) for pair in batch["offset_mapping"][row]],
            batch.word_ids(row),
            batch.sequence_ids(row),
        ]
        for row in range(len(batch["input_ids"]))
    ]


def their_facts(tokenizer: Any, texts: list[str], words: list[list[str]], windows: tuple[str, str, int, int]) -> Any:
    question, context, max_length, stride = windows
    options: dict[str, Any] = {"return_offsets_mapping": True}
    cut: dict[str, Any] = {"truncation": "only_second", "max_length": max_length, "stride": stride}
    return {
        "texts": facts(tokenizer(texts, **options)),
        "words": facts(tokenizer(words, is_split_into_words=True, **options)),
        "windows": facts(tokenizer([question], [context], return_overflowing_tokens=True, **cut, **options)),
    }


if __name__ == "__main__":
    golden = {}
    for name in KINDS:
        with tempfile.TemporaryDirectory() as made:
            golden[name] = their_facts(theirs(name, Path(made)), TEXTS, WORDS, (QUESTION, CONTEXT, MAX_LENGTH, STRIDE))
    PATH.write_text(json.dumps(golden, separators=(",", ":")) + "\n")

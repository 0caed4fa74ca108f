"""A Marian folder that we wrote, text to text: here, in transformers on PyTorch, and converted by CTranslate2.

    python benchmarks/served_elsewhere.py --model FOLDER --data pairs.tsv --out result.json

FOLDER is what `transformer_jax.save_marian` wrote of a trained model. Each side uses its own tokenizer and its own
search, greedy and with --num-beams under the same length penalty, on the same lines. What differs is written down with
both texts, and counted apart where one begins with the other: the three end an output at its limit in different places.
CTranslate2 also stops a beam search by a rule of its own.
Needs `pip install -e '.[parity]' ctranslate2`.
"""

import dataclasses
import gzip
import itertools
import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ctranslate2
import torch
import transformers
import tyro
from record import about

from transformer_jax import Translator

Translate = Callable[[Sequence[str], int], list[str]]  # sentences, beams -> texts


@dataclasses.dataclass(frozen=True)
class Options:
    model: Path
    data: Path
    out: Path
    sentences: int = 500
    num_beams: int = 4
    length_penalty: float = 1.0
    max_tokens: int = 64
    """Tokens of an output at most."""


def read_sentences(options: Options) -> list[str]:
    opened = gzip.open if options.data.suffix == ".gz" else open
    with opened(options.data, "rt", encoding="utf-8") as file:
        return [line.split("\t")[0].strip() for line in itertools.islice(file, options.sentences)]


def ours(options: Options) -> Translate:
    def translate(sentences: Sequence[str], beams: int) -> list[str]:
        how: dict[str, Any] = {"num_beams": beams, "length_penalty": options.length_penalty, "early_stopping": False}
        translator = Translator.from_pretrained(options.model, max_output_length=options.max_tokens, **how)
        return translator(sentences)

    return translate


def on_pytorch(options: Options) -> Translate:
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(options.model).eval()

    def translate(sentences: Sequence[str], beams: int) -> list[str]:
        texts = []
        how = {"length_penalty": options.length_penalty, "early_stopping": False} if beams > 1 else {}
        for start in range(0, len(sentences), 32):
            batch = tokenizer(list(sentences[start : start + 32]), return_tensors="pt", padding=True)
            with torch.inference_mode():
                ids = model.generate(**batch, num_beams=beams, max_length=options.max_tokens, **how)
            texts += tokenizer.batch_decode(ids, skip_special_tokens=True)
        return texts

    return translate


def in_ctranslate2(options: Options, folder: Path) -> Translate:
    ctranslate2.converters.TransformersConverter(str(options.model)).convert(str(folder))
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    translator = ctranslate2.Translator(str(folder), "cpu", intra_threads=2)

    def translate(sentences: Sequence[str], beams: int) -> list[str]:
        sources = [tokenizer.convert_ids_to_tokens(tokenizer(sentence)["input_ids"]) for sentence in sentences]
        found = translator.translate_batch(
            sources, beam_size=beams, length_penalty=options.length_penalty, max_decoding_length=options.max_tokens - 1
        )
        ids = [tokenizer.convert_tokens_to_ids(result.hypotheses[0]) for result in found]
        return tokenizer.batch_decode(ids, skip_special_tokens=True)

    return translate


def main(options: Options) -> None:
    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    sentences = read_sentences(options)
    searches = {"greedy": 1, f"beam {options.num_beams}": options.num_beams}
    table = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        systems = {"PyTorch": on_pytorch(options), "CTranslate2": in_ctranslate2(options, Path(folder) / "model")}
        for name, beams in searches.items():
            own = ours(options)(sentences, beams)
            for system, translate in systems.items():
                pairs = zip(sentences, own, translate(sentences, beams), strict=True)
                others = [{"source": s, "ours": a, "theirs": b} for s, a, b in pairs if a != b]
                cut = sum(o["ours"].startswith(o["theirs"]) or o["theirs"].startswith(o["ours"]) for o in others)
                row = {"search": name, "system": system, "equal": len(sentences) - len(others), "cut_elsewhere": cut}
                table.append({**row, "different_texts": len(set(own)), "others": others})
                counts = f"{row['equal']:,} of {len(sentences):,} translations are equal, {cut:,} cut elsewhere"
                print(f"{name}, {system}: {counts}", flush=True)
    result = {
        **about("jax", "torch", "transformers", "ctranslate2"),
        "sentences": len(sentences),
        "searches": table,
    }
    options.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))

"""Tokens a second of decoding on a CPU, beside transformers on PyTorch and CTranslate2: same weights, same output.

    python benchmarks/decode.py --out result.json

A base model of random weights whose end is never likely, so that each output is exactly as long as asked. Every system
gets the same ids and threads; they run in turns, and a figure is the median of the rounds behind one that warms up.
Outputs are compared token for token with ours in float32. The row with a short list computes the logits of a few random
words and of those outputs' own, which it gathers once in each run, as a Translator does for each batch; greedy search
then gives the same, a beam may not, as probabilities are shared among these words alone. Needs `pip install -e
'.[parity]' ctranslate2`; a system that is not installed is left out, and the result says so.
"""

import dataclasses
import importlib.metadata
import importlib.util
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece
import tyro
from record import about

from transformer_jax import SearchOptions, Transformer, TransformerConfig, save_marian
from transformer_jax.chunks import ShortLists, cast_matrices, decode
from transformer_jax.decoding import BeamSearch, GreedySearch
from transformer_jax.decoding_defaults import DecodingDefaults
from transformer_jax.tokenizer import MarianTokenizer

Run = Callable[[int], np.ndarray]  # beams -> the best outputs' ids [B, T], without the start token


@dataclasses.dataclass(frozen=True)
class Options:
    """Sizes are those of the paper's base model and of a common sentence."""

    out: Path
    rounds: int = 5
    vocab_size: int = 32_000
    rows: int = 32
    source_tokens: int = 24
    target_tokens: int = 40
    beams: tuple[int, ...] = (1, 4)
    threads: int = 2
    short_words: int = 400
    systems: tuple[str, ...] = (
        "ours float32",
        "ours-shortlist float32",
        "ours bfloat16",
        "torch float32",
        "torch bfloat16",
        "ctranslate2 float32",
        "ctranslate2 int8",
    )


def make_folder(options: Options, folder: Path) -> np.ndarray:
    """Writes a Marian whose end and padding have embeddings of zeros; the sources [B, S]."""
    V = options.vocab_size
    ids = {"eos_id": 0, "pad_id": V - 1, "decoder_start_id": V - 1}
    config = TransformerConfig.base(V, positions="halves", norm_epsilon=1e-5, max_length=128, **ids)
    model = Transformer(config)
    dummy = jnp.ones((1, 1), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), dummy, dummy)["params"]
    table_VD = params["embedding"]["embedding"]
    params["embedding"]["embedding"] = table_VD.at[jnp.array([0, V - 1])].set(0.0)
    pieces = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d"] * 9), model_writer=pieces, vocab_size=8, minloglevel=3
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=pieces.getvalue())
    vocab = {"</s>": 0, "<unk>": 1, **{f"w{i}": i for i in range(2, V - 1)}, "<pad>": V - 1}
    save_marian(folder, model, params, MarianTokenizer(processor, processor, vocab), DecodingDefaults())
    sources_BS = np.random.default_rng(0).integers(2, V - 1, (options.rows, options.source_tokens)).astype(np.int32)
    sources_BS[:, -1] = 0
    return sources_BS


# --- systems -----------------------------------------------------------------------------------------------------


def ours(options: Options, folder: Path, sources_BS: np.ndarray, dtype: str, short: ShortLists | None = None) -> Run:
    model, params = Transformer.from_pretrained(folder, jnp.dtype(dtype))
    params = cast_matrices(params, model.dtype)  # as a Translator does it, once
    c = model.config
    ids, mask = jnp.asarray(sources_BS), jnp.ones(sources_BS.shape, bool)
    limit_B = jnp.full(len(ids), options.target_tokens + 1, jnp.int32)

    def run(beams: int) -> np.ndarray:
        asked = SearchOptions(options.target_tokens + 1, c.decoder_start_id, c.eos_id, c.pad_id, beams)
        search = GreedySearch(asked) if beams == 1 else BeamSearch(asked)
        return decode((model,), search, (params,), ids, mask, limit_B, short=short)[0][:, 0, 1:]

    return run


def ours_with_few_words(options: Options, folder: Path, sources_BS: np.ndarray, dtype: str) -> Run:
    whole = ours(options, folder, sources_BS, dtype)
    said = [whole(beams).ravel() for beams in options.beams]
    others = np.random.default_rng(1).choice(options.vocab_size, options.short_words, replace=False)
    words = np.unique(np.concatenate([*said, others])).astype(np.int32)
    return ours(options, folder, sources_BS, dtype, ShortLists(words, jnp.ones((len(sources_BS), len(words)), bool)))


def torch(options: Options, folder: Path, sources_BS: np.ndarray, dtype: str) -> Run:
    import torch
    import transformers

    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.MarianMTModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    ids = torch.from_numpy(sources_BS.astype(np.int64))

    def run(beams: int) -> np.ndarray:
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_length=options.target_tokens + 1,
                num_beams=beams,
                do_sample=False,
            )
        return out.numpy()[:, 1:]

    return run


def ctranslate2(options: Options, folder: Path, sources_BS: np.ndarray, dtype: str) -> Run:
    import ctranslate2

    converted = folder / "ctranslate2"
    if not converted.exists():
        # Its own tool, in a process of its own: it sets PyTorch's options.
        tool = "from ctranslate2.converters.transformers import main; main()"
        subprocess.run(
            [sys.executable, "-c", tool, "--model", str(folder), "--output_dir", str(converted)],
            check=True,
            capture_output=True,
        )
    translator = ctranslate2.Translator(
        str(converted), "cpu", compute_type=dtype, intra_threads=options.threads, inter_threads=1
    )
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    names = {id_: name for name, id_ in vocab.items()}
    sources = [[names[id_] for id_ in row] for row in sources_BS.tolist()]

    def run(beams: int) -> np.ndarray:
        found = translator.translate_batch(
            sources,
            beam_size=beams,
            max_decoding_length=options.target_tokens,
            min_decoding_length=options.target_tokens,
            max_batch_size=len(sources),
        )
        return np.array([[vocab[name] for name in each.hypotheses[0]] for each in found])

    return run


SYSTEMS = {"ours": ours, "ours-shortlist": ours_with_few_words, "torch": torch, "ctranslate2": ctranslate2}


# --- the measurement ---------------------------------------------------------------------------------------------


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources_BS = make_folder(options, folder)
        runs: dict[str, Run] = {}
        for system in options.systems:
            kind, dtype = system.split()
            if not kind.startswith("ours") and importlib.util.find_spec(kind) is None:
                print(f"{system}: not installed")
                continue
            runs[system] = SYSTEMS[kind](options, folder, sources_BS, dtype)
        rows = [row for beams in options.beams for row in measure(options, runs, beams)]
    result = {
        **about("jax", "torch", "transformers", "ctranslate2"),
        "options": {**dataclasses.asdict(options), "out": str(options.out)},
        "rows": rows,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


def measure(options: Options, runs: dict[str, Run], beams: int) -> Iterator[dict[str, Any]]:
    """A row for each system: tokens a second, and how many outputs are those of the first."""
    outputs = {system: run(beams) for system, run in runs.items()}
    seconds: dict[str, list[float]] = {system: [] for system in runs}
    for _ in range(options.rounds):
        for system, run in runs.items():
            begin = time.perf_counter()
            run(beams)
            seconds[system].append(time.perf_counter() - begin)
    first = next(iter(outputs.values()))
    tokens = options.rows * options.target_tokens
    for system, found in outputs.items():
        equal = sum(np.array_equal(a, b) for a, b in zip(found, first, strict=True))
        rate = tokens / statistics.median(seconds[system])
        print(f"beam {beams}  {system:20} {rate:8.0f} tokens/s  {equal} of {options.rows} outputs equal", flush=True)
        yield {
            "system": system,
            "beams": beams,
            "tokens_per_second": rate,
            "shape": found.shape,
            "equal_outputs": equal,
            "seconds": seconds[system],
        }


if __name__ == "__main__":
    main(tyro.cli(Options))

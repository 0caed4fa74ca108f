"""Sends a million lines through `python -m transformer_jax translate` and watches its memory and its answers.

    python tests/soak/million_lines.py --lines 1000000 --out result.json

The model is tiny and random. The lines are the same 997 again and again, among them empty ones, bytes that are no
UTF-8, control characters and a line of 10,000 words; what each must become is computed beforehand, in other batches.
A line that is lost, added or shifted makes nearly all lines behind it wrong, while rounding may make a few outputs
others than in another batch. Written are the numbers of both and the resident memory of the program over its run; the
exit code is 1 where lines are lost or more than one in 10,000 is wrong. Not collected by pytest.
"""

import argparse
import datetime
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.transformer_jax.marian_folders import own_model, processor  # noqa: E402
from transformer_jax import Transformer, Translator  # noqa: E402
from transformer_jax.tokenizer import save_tokenizer  # noqa: E402

PERIOD, BATCH = 997, 256
HOW = {"num_beams": 1, "max_length": 32, "max_output_length": 8}


def make_lines() -> list[bytes]:
    rng = random.Random(0)
    words = ["the", "quick", "brown", "fox", "a", "lazy", "dog", "über", "die", "Brücke", "and", "more"]
    lines = [" ".join(rng.choices(words, k=rng.randint(1, 12))).encode() for _ in range(PERIOD)]
    odd = [b"", b"   ", b"\xff\xfe", b"a \xc3 dog", "a\u2028dog\x0b\x1cthe".encode(), b"\t", b"dog " * 10_000, b"\x00"]
    for place, line in zip(rng.sample(range(PERIOD), len(odd)), odd, strict=True):
        lines[place] = line
    return lines


def make_model() -> tuple[Transformer, Any]:
    """A model whose outputs depend on their sources; with norms at random its biases alone would decide."""

    def parameter(path: tuple[Any, ...], x: np.ndarray) -> np.ndarray:
        kind = path[-1].key
        return np.full_like(x, kind == "scale") if kind in ("scale", "bias") else 2 * x

    model, params = own_model(32)
    return model, jax.tree_util.tree_map_with_path(parameter, params)


def memory_kb(pid: int) -> int:
    """The resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    lines = make_lines()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, params = make_model()
        model.save_pretrained(folder, params)
        save_tokenizer(folder, processor())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            texts = Translator.from_pretrained(folder, batch_size=64, **HOW)(
                [line.decode("utf-8", "replace") for line in lines]
            )
        expected = [" ".join(text.split()) for text in texts]
        told = [word for name, value in HOW.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        command = [sys.executable, "-m", "transformer_jax", "translate", name, "--batch-size", str(BATCH), *told]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        begin = time.perf_counter()
        with (folder / "stderr").open("wb") as errors:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )
            assert process.stdin and process.stdout

            def feed(sink) -> None:
                for start in range(0, options.lines, PERIOD):
                    sink.write(b"".join(line + b"\n" for line in lines[: options.lines - start]))
                sink.close()

            threading.Thread(target=feed, args=(process.stdin,), daemon=True).start()
            count = wrong = 0
            memory: list[int] = []
            for line in process.stdout:
                wrong += line.decode() != f"{expected[count % PERIOD]}\n"
                count += 1
                if count % max(1, options.lines // 20) == 0:
                    memory.append(memory_kb(process.pid) // 1024)
                    print(f"{count:,} lines, {memory[-1]:,} MiB, {wrong} other outputs", flush=True)
            code = process.wait()
        seconds = time.perf_counter() - begin
        warned = (folder / "stderr").read_bytes().count(b"\n")
    result = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "lines": options.lines,
        "answers": count,
        "other_outputs": wrong,
        "different_outputs": len(set(expected)),
        "warnings": warned,
        "exit_code": code,
        "seconds": round(seconds, 1),
        "resident_mib_at_each_twentieth": memory,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return int(code != 0 or count != options.lines or wrong * 10_000 > count)


if __name__ == "__main__":
    sys.exit(main())

"""Memory and time of a BERT encoder on long texts: attention in blocks of queries against all scores at once.

    python benchmarks/long_text.py [--lengths 2048 4096 8192] [--out results.json]

A BERT of mini's width with two layers reads one text a row, of which the last tenth is padding; a training step is the
loss and its gradient with dropout. Each case has a process of its own, which reports what the compiler set aside for
temporaries (`memory_analysis().temp_size_in_bytes`), the largest resident set of the process before and after it ran,
and the median time of a few runs. `xla` materialises [heads, length, length]; `blocked` is what `auto` takes here.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from record import about

HERE = Path(__file__).parents[1]
CASES = ("forward", "training step")

WORKER = """
import json, resource, statistics, sys, time
import jax, jax.numpy as jnp, numpy as np
from bert_jax import BertConfig, BertModel
from transformer_jax import attention

length, implementation, case, repeats = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
if implementation == "xla":
    attention.BLOCKED_FROM = float("inf")
config = BertConfig.mini(num_hidden_layers=2, vocab_size=1000, max_position_embeddings=length)
model = BertModel(config, add_pooling_layer=False)
ids = np.random.default_rng(0).integers(5, 1000, (1, length)).astype(np.int32)
mask = (np.arange(length) < 0.9 * length).astype(np.int32)[None]
params = jax.jit(model.init)(jax.random.key(0), ids[:, :8])["params"]

def forward(params, ids, mask):
    return model.apply({"params": params}, ids, attention_mask=mask).last_hidden_state

def loss(params, ids, mask):
    rngs = {"dropout": jax.random.key(1)}
    out = model.apply({"params": params}, ids, attention_mask=mask, deterministic=False, rngs=rngs)
    return jnp.mean(jnp.square(out.last_hidden_state[:, :, 0] - 1.0))

step = jax.jit(forward if case == "forward" else jax.value_and_grad(loss))
chosen = []
attention._log_choice = lambda name, reason: chosen.append(name)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
compiled = step.lower(params, ids, mask).compile()
before, seconds = peak(), []
for _ in range(repeats):
    begin = time.perf_counter()
    jax.block_until_ready(compiled(params, ids, mask))
    seconds.append(time.perf_counter() - begin)
assert set(chosen) == {implementation}, chosen
print(json.dumps({
    "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
    "peak_rss_bytes_before": before,
    "peak_rss_bytes": peak(),
    "median_seconds": statistics.median(seconds),
}))
"""


def measure(length: int, implementation: str, case: str, repeats: int) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(HERE), "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # a program that is read takes less memory than one compiled
    command = [sys.executable, "-c", WORKER, str(length), implementation, case, str(repeats)]
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{case} of {length} tokens, {implementation}: {done.stderr[-2000:]}")
    return {"length": length, "implementation": implementation, "case": case, **json.loads(done.stdout)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    rows = []
    for case in CASES:
        for length in options.lengths:
            for implementation in ("blocked", "xla"):
                rows.append(row := measure(length, implementation, case, options.repeats))
                print(
                    f"{case:14} {length:6,} tokens {implementation:8} temporaries {row['temp_bytes'] / 2**20:8,.0f} MiB"
                    f", resident {row['peak_rss_bytes'] / 2**20:7,.0f} MiB"
                    f" ({row['peak_rss_bytes_before'] / 2**20:,.0f} before), {row['median_seconds']:.2f} s",
                    flush=True,
                )
    result = {
        **about("jax", "jaxlib", "flax", "numpy"),
        "load_average_before": load,
        "model": "BERT of width 256 with 4 heads and 2 layers, one row, float32",
        "rows": rows,
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

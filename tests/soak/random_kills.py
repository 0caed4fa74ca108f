"""Kills short runs of both jobs at random moments, damages checkpoints, and compares what comes out at the end.

    python tests/soak/random_kills.py --kills 100 --seed 0 --out /tmp/kills

Each run is killed a few times (SIGKILL or SIGTERM, while it starts, trains, saves, deletes or exports), its newest
checkpoint is damaged after half of the kills, and the same command is given again; at last it is left to end. Its
exported weights and its logged losses must be those of a run that was never stopped, bit for bit; every damaged
checkpoint must have been set aside, and no output may hold a traceback. What was done and what came of it is written
to OUT/random_kills.json; the exit code is 1 if anything was wrong. The seed fixes every choice but not the machine's
speed: the moments differ from one run of this script to the next. Not collected by pytest.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import safetensors.numpy

ROOT = Path(__file__).parents[2]
STEPS = 40
COMMON = f"--steps {STEPS} --log.every 1 --eval.every 20 --checkpoint.every 4 --optimizer.warmup-steps 4".split()
KILLS_A_RUN = 5


def make_commands(folder: Path) -> dict[str, list[str]]:
    """The command of each job, on small text of its own."""
    rng = random.Random(0)
    words = [f"word{i}" for i in range(80)]
    sentences = [" ".join(rng.choices(words, k=rng.randint(4, 8))) for _ in range(600)]
    text, pairs = folder / "text.txt", folder / "pairs.tsv"
    text.write_text("\n\n".join("\n".join(f"{s}." for s in sentences[i : i + 10]) for i in range(0, 600, 10)))
    pairs.write_text("".join(f"{s}\t{s.upper()}\n" for s in sentences[:300]))
    pretrain = f"pretrain --data {text} --vocab-size 150 --batch-size 8 --max-length 32"
    translate = f"translate --data {pairs} --vocab-size 24 --batch-size 512 --held-out 40 --average 2"
    return {
        "pretrain": [*pretrain.split(), *COMMON],
        "translate": [*translate.split(), "--max-length", "64", "--bleu-sentences", "4", *COMMON],
    }


class Run:
    """A run folder and what was done to it."""

    def __init__(self, command: list[str], folder: Path, cache: Path) -> None:
        self.folder, self.log = folder, folder.with_suffix(".log")
        self.command = [sys.executable, "-m", "train", *command, "--run", str(folder)]
        self.environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1", "JAX_COMPILATION_CACHE_DIR": str(cache),
        }  # fmt: skip
        self.damaged: set[int] = set()

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as output:
            return subprocess.Popen(self.command, env=self.environment, stdout=output, stderr=output)

    def finish(self) -> int:
        return self.start().wait(timeout=600)

    def losses(self) -> dict[int, float]:
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return {row["step"]: row["loss"] for row in map(json.loads, lines) if "loss" in row}

    def weights(self) -> dict[str, bytes]:
        tensors = safetensors.numpy.load_file(self.folder / "export" / "model.safetensors")
        return {name: tensor.tobytes() for name, tensor in tensors.items()}

    def kill(self, rng: random.Random, seconds: float) -> dict[str, Any]:
        """Starts the run and kills it at a random moment; a run that ends before that has not been killed."""
        number = rng.choice([signal.SIGKILL, signal.SIGTERM])
        # A quarter of the moments are anywhere in the run, most in its training: it is short beside start and end.
        step: int | None = rng.randint(1, STEPS - 2)
        if rng.random() < 0.25 or max(self.losses(), default=0) >= STEPS - 2:
            step = None
        since, delay = time.monotonic(), rng.uniform(0, 0.1 if step else seconds)
        process = self.start()
        if step is None:
            wait_until(process, since + delay)
        else:
            step = max(step, max(self.losses(), default=0) + 1)  # it has to get on
            while process.poll() is None and max(self.losses(), default=0) < step:
                time.sleep(0.01)
            wait_until(process, time.monotonic() + delay)
        process.send_signal(number)
        code = process.wait(timeout=600)
        # A SIGTERM ends the process as such while Python still starts; at the very end it comes too late for both.
        expected = {-number, 0} if number == signal.SIGKILL else {-number, 128 + number, 0}
        return {
            "signal": number.name, "after": round(time.monotonic() - since, 2), "code": code, "killed": code != 0,
            "step": max(self.losses(), default=0), "right": code in expected,
        }  # fmt: skip

    def damage(self, rng: random.Random) -> str | None:
        """Damages the newest checkpoint in a random way; returns how, None where there is none."""
        folders = self.folder / "checkpoints"
        steps = [int(path.name) for path in folders.iterdir() if path.name.isdigit()] if folders.is_dir() else []
        if not steps:
            return None
        newest = folders / str(max(steps))
        self.damaged.add(newest.stat().st_ino)  # renaming keeps it
        files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
        how = rng.choice(["flip", "cut", "remove", "empty"])
        if how == "empty" or not files:
            for path in newest.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            return f"{newest.name} emptied"
        path = rng.choice(files)
        content = bytearray(path.read_bytes())
        if how == "remove":
            path.unlink()
        elif how == "cut":
            path.write_bytes(content[: rng.randrange(len(content))])
        else:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(content)
        return f"{newest.name}/{path.relative_to(newest)}: {how}"

    def set_aside(self) -> set[int]:
        return {path.stat().st_ino for path in (self.folder / "checkpoints").glob("*.damaged*")}


def wait_until(process: subprocess.Popen[bytes], moment: float) -> None:
    while process.poll() is None and time.monotonic() < moment:
        time.sleep(0.002)


def soak_run(run: Run, whole: Run, rng: random.Random, seconds: float, kills: int) -> dict[str, Any]:
    """Kills a run up to `kills` times, lets it end, and compares it with the one that was never stopped."""
    events: list[dict[str, Any]] = []
    while len(events) < kills:
        event = run.kill(rng, seconds)
        if not event["killed"]:
            break
        event["damage"] = run.damage(rng) if rng.random() < 0.5 else None
        events.append(event)
        print(f"  {run.folder.name}: {event}", flush=True)
    wrong = [f"exit code {event['code']} after {event['signal']}" for event in events if not event["right"]]
    code = run.finish()
    if code != 0:
        wrong.append(f"exit code {code} of the last start")
    elif run.weights() != whole.weights():
        wrong.append("other weights")
    if run.losses() != whole.losses():
        wrong.append("other losses")
    if run.set_aside() != run.damaged:
        wrong.append(f"{len(run.damaged)} checkpoints were damaged, {len(run.set_aside())} set aside")
    if "Traceback" in run.log.read_text(errors="replace"):
        wrong.append("a traceback")
    print(f"{run.folder.name}: {len(events)} kills, {', '.join(wrong) or 'bit-equal'}", flush=True)
    return {"run": run.folder.name, "kills": events, "wrong": wrong}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    out, rng = options.out.absolute(), random.Random(options.seed)
    wholes: dict[str, Run] = {}
    seconds: dict[str, float] = {}
    commands = make_commands(out)
    for job, command in commands.items():
        Run(command, out / f"{job}-warm", out / "cache").finish()  # compiles
        wholes[job] = Run(command, out / f"{job}-whole", out / "cache")
        since = time.monotonic()
        if wholes[job].finish() != 0:
            print(wholes[job].log.read_text(), file=sys.stderr)
            return 1
        seconds[job] = time.monotonic() - since
        print(f"{job}: {seconds[job]:.1f} s when it is not stopped", flush=True)
    runs: list[dict[str, Any]] = []
    killed = 0
    while killed < options.kills:
        job = list(commands)[len(runs) % len(commands)]
        run = Run(commands[job], out / f"{job}-{len(runs)}", out / "cache")
        runs.append(soak_run(run, wholes[job], rng, seconds[job], min(KILLS_A_RUN, options.kills - killed)))
        killed += len(runs[-1]["kills"])
        if not runs[-1]["wrong"]:
            shutil.rmtree(run.folder)
    kills = [kill for run in runs for kill in run["kills"]]
    summary = {
        "kills": dict(Counter(kill["signal"] for kill in kills)),
        "damaged": sum(kill["damage"] is not None for kill in kills),
        "before_the_first_step": sum(kill["step"] == 0 for kill in kills),
        "runs": len(runs),
        "wrong": sum(bool(run["wrong"]) for run in runs),
    }
    record = {"seed": options.seed, "seconds": seconds, "summary": summary, "runs": runs}
    (out / "random_kills.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(summary))
    return 1 if summary["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())

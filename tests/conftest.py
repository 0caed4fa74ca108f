"""Eight fake CPU devices, strict promotion, and quick compilation; the PyTorch peers, where they are installed."""

import os
import signal
import warnings
from pathlib import Path

# Before jax starts its backend: the sharding tests need several devices on a machine that has one.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# Compiling is nearly all of what these tests take; without optimisation it takes a third.
jax.config.update("jax_disable_most_optimizations", True)

# What a shell runs in the background ignores Ctrl-C, and nohup the end of a terminal; so would every program that a
# test starts and interrupts.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.fixture(scope="module", autouse=True)
def few_mappings():
    """Every compiled program maps some pages, and Linux kills a process that has 65,530 mappings."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > 25_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def peers():
    """(torch, transformers); their import may warn, which is none of our business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch = pytest.importorskip("torch", reason="torch, the parity peer, is not installed")
        transformers = pytest.importorskip("transformers", reason="transformers, the parity peer, is not installed")
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
    return torch, transformers

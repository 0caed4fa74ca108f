"""Eight fake CPU devices, strict promotion, and a compilation cache that the runs of one checkout share."""

import os

# Before jax starts its backend: the sharding tests need several devices on a machine that has one.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")

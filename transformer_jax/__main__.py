"""`python -m transformer_jax JOB FOLDER < in > out`, see `transformer_jax.lines`."""

import sys

from transformer_jax import command
from transformer_jax.jobs import JOBS
from transformer_jax.lines import run

if __name__ == "__main__":
    sys.exit(command.end(run("transformer_jax", JOBS, sys.argv[1:])))

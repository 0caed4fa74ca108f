"""`python -m bert_jax JOB FOLDER < in > out`, see `transformer_jax.lines`."""

import sys

from bert_jax.jobs import JOBS
from transformer_jax import command
from transformer_jax.lines import run

if __name__ == "__main__":
    sys.exit(command.end(run("bert_jax", JOBS, sys.argv[1:])))

"""Every output of beam search, greedy search and their n-best lists beside those of transformers on PyTorch.

    python benchmarks/search_parity.py --model FOLDER --data pairs.tsv --out result.json

FOLDER is a Marian in Hugging Face's layout, as `transformer_jax.save_marian` writes it. Both sides get the same ids of
the first sentences of --data, in float32. Compared are greedy search, and each number of beams with each length penalty
and each kind of early stopping: all outputs of a sentence token for token, and their scores. Where outputs differ, the
gap between the scores of the two sides at the first rank that differs says whether it is a tie that rounding decides.
Needs `pip install -e '.[parity]'`.
"""

import dataclasses
import gzip
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import torch
import transformers
import tyro
from record import about
from rich.progress import track

from transformer_jax import SearchOptions, Transformer
from transformer_jax.chunks import decode
from transformer_jax.decoding import BeamSearch, Constraint, GreedySearch
from transformer_jax.decoding_defaults import constraints_of, read_decoding_defaults
from transformer_jax.tokenizer import load_tokenizer

TIE = 1e-5  # of scores a token: two sums of some tens of float32 numbers


@dataclasses.dataclass(frozen=True)
class Options:
    model: Path
    data: Path
    out: Path
    sentences: int = 200
    max_length: int = 48
    batch_size: int = 40
    beams: tuple[int, ...] = (2, 4, 5)
    length_penalties: tuple[float, ...] = (0.0, 0.6, 1.0, 2.0)


def read_sources(options: Options, tokenizer: Any, eos_id: int) -> list[list[int]]:
    """The ids of the first sentences that have room for an output."""
    opened = gzip.open if options.data.suffix == ".gz" else open
    with opened(options.data, "rt", encoding="utf-8") as file:
        texts = (line.split("\t")[0].strip() for line in file)
        sources = ([*tokenizer.encode(text), eos_id] for text in texts)
        return list(itertools.islice((ids for ids in sources if 1 < len(ids) < options.max_length), options.sentences))


def padded(sources: list[list[int]], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask [B, S]."""
    width = max(map(len, sources))
    ids = np.array([[*row, *[pad_id] * (width - len(row))] for row in sources], np.int32)
    mask = np.arange(width)[None, :] < np.array([[len(row)] for row in sources])
    return ids, mask


def rows_of(ids_T: np.ndarray, eos_id: int) -> tuple[int, ...]:
    """An output without its start and what is behind its end."""
    row = ids_T[1:].tolist()
    return tuple(row[: row.index(eos_id) + 1] if eos_id in row else row)


class Peers(NamedTuple):
    """Both sides."""

    ours: Transformer
    params: dict[str, Any]
    theirs: Any
    constraints: tuple[Constraint, ...]


def compare(
    peers: Peers, batches: list[Any], max_length: int, beams: int, penalty: float, early: Any
) -> dict[str, Any]:
    """One kind of search on all sentences: how many outputs are equal, and where they differ."""
    c = peers.ours.config
    asked = SearchOptions(max_length, c.decoder_start_id, c.eos_id, c.pad_id, beams, penalty, early)
    search = GreedySearch(asked) if beams == 1 else BeamSearch(asked)
    options = {"length_penalty": penalty, "early_stopping": early, "num_return_sequences": beams}
    outputs = equal = number = 0
    largest, differences = 0.0, []
    for ids, mask in batches:
        limit_B = jnp.full(len(ids), max_length, jnp.int32)
        found, scores_BW = decode(
            (peers.ours,), search, (peers.params,), jnp.asarray(ids), jnp.asarray(mask), limit_B, peers.constraints
        )
        with torch.inference_mode():
            out = peers.theirs.generate(
                input_ids=torch.from_numpy(ids.astype(np.int64)),
                attention_mask=torch.from_numpy(mask.astype(np.int64)),
                max_length=max_length,
                num_beams=beams,
                do_sample=False,
                return_dict_in_generate=True,
                output_scores=True,
                **(options if beams > 1 else {}),
            )
        expected = out.sequences.numpy().reshape(len(ids), beams, -1)
        # transformers scores no greedy search
        gaps_BW = np.abs(scores_BW - out.sequences_scores.numpy().reshape(len(ids), beams)) if beams > 1 else None
        for row, both in enumerate(zip(found, expected, strict=True)):
            a, b = ([rows_of(each, c.eos_id) for each in side] for side in both)
            same = np.array([x == y for x, y in zip(a, b, strict=True)])
            outputs, equal = outputs + beams, equal + int(same.sum())
            if gaps_BW is not None:
                largest = max(largest, float(gaps_BW[row][same].max(initial=0.0)))
            if not same.all():
                rank = int(same.argmin())
                gap = None if gaps_BW is None else float(gaps_BW[row][rank])
                differences.append({"sentence": number, "rank": rank, "gap": gap})
            number += 1
    return {
        **{"beams": beams, "length_penalty": penalty, "early_stopping": early},
        **{"outputs": outputs, "equal": equal, "largest_score_difference": largest, "differences": differences},
    }


def main(options: Options) -> None:
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(2)
    model, params = Transformer.from_pretrained(options.model)
    theirs = transformers.MarianMTModel.from_pretrained(options.model).eval()
    c = model.config
    peers = Peers(model, params, theirs, constraints_of(read_decoding_defaults(options.model), c.eos_id))
    sources = read_sources(options, load_tokenizer(options.model), c.eos_id)
    size = options.batch_size
    batches = [padded(sources[i : i + size], c.pad_id) for i in range(0, len(sources), size)]
    cases: list[tuple[int, float, Any]] = [(1, 1.0, False)]
    cases += itertools.product(options.beams, options.length_penalties, (False, True, "never"))
    table = [compare(peers, batches, options.max_length, *case) for case in track(cases, "searches")]
    result = {
        **about("jax", "torch", "transformers"),
        "sentences": len(sources),
        "searches": table,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    outputs, equal = (sum(case[name] for case in table) for name in ("outputs", "equal"))
    differences = [each for case in table for each in case["differences"]]
    ties = [each for each in differences if each["gap"] is not None and each["gap"] < TIE]
    print(f"{equal:,} of {outputs:,} outputs are equal; {len(differences)} lists differ, {len(ties)} of them by a tie")
    print("largest difference of two scores of one output:", max(case["largest_score_difference"] for case in table))


if __name__ == "__main__":
    main(tyro.cli(Options))

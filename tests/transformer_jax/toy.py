"""A toy model, and searches over it written down: Python loops, float64, no cache, everything sorted.

The model is a table of logits: a hash of the whole prefix, and of the sentence, chooses the row.
"""

import functools

import numpy as np

ROWS, V, B = 499, 7, 3
START, PAD, EOS = 2, 3, 1


def make_table(seed, vocab=V):
    """Logits [ROWS, V] that end a sentence after a few tokens, sometimes sooner and sometimes never."""
    table = np.random.default_rng(seed).normal(size=(ROWS, vocab)) * 2
    table[:, EOS] += 1.0
    return table.astype(np.float32)


def next_hash(state, token):
    return (state * 31 + token + 1) % ROWS


def toy_step(table, ids_R, hash_R):
    hash_R = next_hash(hash_R, ids_R)
    return table[hash_R], hash_R


def toy_log_probs(table, sentence):
    """prefix -> float64 log-probabilities of the next token."""
    table = table.astype(np.float64)

    def log_probs(prefix):
        logits = table[functools.reduce(next_hash, prefix, sentence)]
        return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())

    return log_probs


def penalty(length, options):
    base = (5 + length) / 6 if options.preset == "paper" else length
    return base**options.length_penalty


def padded(prefix, options):
    return [*prefix, *[options.pad_id] * (options.max_length - len(prefix))]


def greedy_oracle(log_probs, options):
    prefix = [options.start_id]
    while len(prefix) < options.max_length and prefix[-1] != options.eos_id:
        prefix.append(int(np.argmax(log_probs(tuple(prefix)))))
    return padded(prefix, options)


def by_score(candidates):
    return sorted(candidates, key=lambda c: -c[0])


def beam_oracle(log_probs, options, rank=by_score):
    """One sentence; [(score, ids)] of the finished hypotheses, best first. `rank` leaves out what cannot be."""
    if options.preset == "marian":
        return marian_oracle(log_probs, options, rank)
    W, running, finished = options.num_beams, [(0.0, (options.start_id,))], []
    for generated in range(1, options.max_length):
        candidates = [(p + q, (*ids, v)) for p, ids in running for v, q in enumerate(log_probs(ids))]
        candidates = rank(candidates)[: 2 * W]
        ended = [ids[-1] == options.eos_id or len(ids) == options.max_length for _, ids in candidates]
        finished += [
            (p / penalty(generated, options), ids) for (p, ids), e in zip(candidates[:W], ended, strict=False) if e
        ]
        finished = by_score(finished)[:W]
        running = [c for c, e in zip(candidates, ended, strict=True) if not e][:W]
        if not running:
            break
        if len(finished) < W:
            continue
        if options.early_stopping is True:
            break
        hopeful = options.early_stopping == "never" and options.length_penalty > 0
        best_length = options.max_length - 1 if hopeful else generated
        if max(running)[0] / penalty(best_length, options) <= finished[-1][0]:
            break
    return finished


def marian_oracle(log_probs, options, rank=by_score):
    """As marian-dev's beam_search.cpp and history.h: a beam takes as many continuations as it has hypotheses left."""
    width, running, finished = options.num_beams, [(0.0, (options.start_id,))], []
    for generated in range(1, options.max_length):
        candidates = [(p + q, (*ids, v)) for p, ids in running for v, q in enumerate(log_probs(ids))]
        candidates = rank(candidates)[:width]
        is_last = generated == options.max_length - 1
        ended = [is_last or ids[-1] == options.eos_id for _, ids in candidates]
        finished += [(p / penalty(generated, options), ids) for (p, ids), e in zip(candidates, ended, strict=True) if e]
        running = [c for c, e in zip(candidates, ended, strict=True) if not e]
        width -= sum(ended)
    return by_score(finished)

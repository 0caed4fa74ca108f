"""Sentences into batches of ids."""

from transformer_jax import batches


def test_widths_are_few_and_hold_their_sources():
    widths = [batches.bucket(n) for n in range(1, 513)]
    assert sorted(set(widths)) == [16, 32, 64, 128, 256, 512]
    assert all(n <= width <= max(16, 2 * n) for n, width in enumerate(widths, 1))

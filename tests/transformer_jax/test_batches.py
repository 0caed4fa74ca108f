"""Sentences into batches of ids."""

import numpy as np

from transformer_jax import TransformerConfig, batches


def test_widths_are_few_and_hold_their_sources():
    widths = [batches.bucket(n) for n in range(1, 513)]
    assert sorted(set(widths)) == [16, 32, 64, 128, 256, 512]
    assert all(n <= width <= max(16, 2 * n) for n, width in enumerate(widths, 1))


def test_a_decoder_reads_the_start_and_all_but_the_last():
    config = TransformerConfig(20, pad_id=3, decoder_start_id=2)
    found = batches.shifted([[5, 6, 7], [8], []], 4, 4, config)
    np.testing.assert_array_equal(found, [[2, 5, 6, 3], [2, 3, 3, 3], [2, 3, 3, 3], [2, 3, 3, 3]])

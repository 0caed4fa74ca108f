"""Side by side with PyTorch's models, both ways through files: every head, its labels, hidden states and attentions."""

import dataclasses
import warnings

import jax
import numpy as np
import pytest

import bert_jax
from bert_jax import BertConfig
from tests.bert_jax.folders import random_params, same

CONFIG = BertConfig.tiny(
    vocab_size=40,
    hidden_size=18,
    num_attention_heads=3,
    intermediate_size=24,
    max_position_embeddings=32,
    id2label=("O", "B-PER", "I-PER"),
    problem_type="multi_label_classification",
    classifier_dropout=0.25,
)
TWO = dataclasses.replace(CONFIG, id2label=("LABEL_0", "LABEL_1"), problem_type=None, classifier_dropout=None)
UNTIED = dataclasses.replace(TWO, tie_word_embeddings=False, hidden_act="gelu_new")
CASES = {
    "BertModel": (TWO,),
    "BertForPreTraining": (TWO, UNTIED),
    "BertForMaskedLM": (TWO, UNTIED),
    "BertForNextSentencePrediction": (TWO,),
    "BertForSequenceClassification": (CONFIG,),
    "BertForTokenClassification": (CONFIG,),
    "BertForQuestionAnswering": (TWO,),
    "BertForMultipleChoice": (TWO,),
}


def quiet(call, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*args, **kwargs)


def inputs(model):
    shape = (2, 3, 12) if model.input_rank == 3 else (2, 12)
    rng = np.random.default_rng(0)
    mask = np.broadcast_to(np.arange(12) < 12, shape).copy()
    mask[0, ..., 7:] = mask[1, ..., :2] = False
    ids = {"input_ids": rng.integers(0, 40, shape), "token_type_ids": rng.integers(0, 2, shape)}
    return ids | {"attention_mask": mask.astype(np.int64)}


@pytest.mark.parametrize(
    ("name", "config"), [(name, config) for name, configs in CASES.items() for config in configs],
    ids=[f"{name}-{config.hidden_act}" for name, configs in CASES.items() for config in configs],
)  # fmt: skip
def test_pytorch_loads_what_we_save_and_we_what_it_saves(name, config, tmp_path, peers):
    torch, transformers = peers
    model = getattr(bert_jax, name)(config)
    params = random_params(model)
    model.save_pretrained(tmp_path, params)
    options = {"output_loading_info": True, "attn_implementation": "eager"}
    theirs, report = quiet(getattr(transformers, name).from_pretrained, tmp_path, **options)
    assert not any(report.values()), report
    assert theirs.config.id2label == dict(enumerate(config.id2label))
    assert theirs.config.label2id == {label: index for index, label in enumerate(config.id2label)}
    for field in ("problem_type", "classifier_dropout", "tie_word_embeddings"):
        assert getattr(theirs.config, field) == getattr(config, field)
    batch = inputs(model)
    states = {"output_hidden_states": True, "output_attentions": True}
    with torch.inference_mode():
        expected = theirs.eval()(**{name: torch.tensor(value) for name, value in batch.items()}, **states)
    out = jax.jit(lambda p, b: model.apply({"params": p}, **b, **states))(params, batch)
    for field in out._fields[:-2]:
        np.testing.assert_allclose(getattr(out, field), getattr(expected, field).numpy(), atol=2e-4)
    for field in ("hidden_states", "attentions"):
        for ours, other in zip(getattr(out, field), getattr(expected, field), strict=True):
            np.testing.assert_allclose(ours, other.numpy(), atol=2e-4)
    # And the other way, in one file and in several: what PyTorch writes we read, bit for bit.
    for folder, size in (("whole", "1GB"), ("split", "8KB")):
        quiet(theirs.save_pretrained, tmp_path / folder, max_shard_size=size)
        assert len([*(tmp_path / folder).glob("*.safetensors")]) > 1 or folder == "whole"
        again, loaded = type(model).from_pretrained(tmp_path / folder)
        same(loaded, params)
        assert again == model


def test_an_extended_table_is_one_for_pytorch(tmp_path, peers):
    torch, transformers = peers
    small = bert_jax.BertModel(dataclasses.replace(TWO, max_position_embeddings=5))
    small.save_pretrained(tmp_path / "small", random_params(small))
    model, params = bert_jax.BertModel.from_pretrained(tmp_path / "small", max_position_embeddings=12)
    model.save_pretrained(tmp_path / "long", params)
    theirs, report = quiet(transformers.BertModel.from_pretrained, tmp_path / "long", output_loading_info=True)
    assert not any(report.values()) and theirs.config.max_position_embeddings == 12
    batch = inputs(model)
    with torch.inference_mode():
        expected = theirs.eval()(**{name: torch.tensor(value) for name, value in batch.items()})
    out = jax.jit(model.apply)({"params": params}, **batch)
    np.testing.assert_allclose(out.last_hidden_state, expected.last_hidden_state.numpy(), atol=2e-4)

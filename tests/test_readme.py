"""The README's examples run as they stand, in a folder where its commands have run."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from bert_jax import (
    BertConfig,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertTokenizer,
)
from train.data.parallel import train_sentencepiece
from transformer_jax import Transformer, TransformerConfig

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Small models where `make demo` and `python -m train translate` leave theirs."""
    folder = tmp_path_factory.mktemp("readme")
    ids = jnp.zeros((1, 4), jnp.int32)
    tokenizer = BertTokenizer.train(["This is a piece of text, a sentence; another one, which is longer."] * 9, 100)
    bert = BertForPreTraining(BertConfig.tiny(vocab_size=tokenizer.vocab_size))
    bert.save_pretrained(folder / "runs/demo/export", bert.init(jax.random.key(0), ids)["params"])
    tokenizer.save_pretrained(folder / "runs/demo/export")
    for name, cls, labels in (
        ("finetune", BertForSequenceClassification, ("set_alarm", "convert_money")),
        ("answers", BertForQuestionAnswering, ("LABEL_0", "LABEL_1")),
    ):
        model = cls(BertConfig.tiny(vocab_size=tokenizer.vocab_size, id2label=labels))
        model.save_pretrained(folder / "runs" / name / "export", model.init(jax.random.key(0), ids)["params"])
        tokenizer.save_pretrained(folder / "runs" / name / "export")
    words = train_sentencepiece([("Monday, 4 May 2015", "Montag, 4. Mai 2015"), ("three weeks", "drei Wochen")], 32)
    model = Transformer(TransformerConfig.tiny(words.processor.vocab_size()))
    model.save_pretrained(folder / "runs/translate/export", model.init(jax.random.key(0), ids, ids)["params"])
    (folder / "runs/translate/export/spm.model").write_bytes(words.processor.serialized_model_proto())
    return folder


@pytest.mark.parametrize("example", EXAMPLES, ids=[re.findall(r"import (\w+)", e)[-1] for e in EXAMPLES])
def test_example(example, folder, monkeypatch):
    monkeypatch.chdir(folder)
    exec(compile(example, "README.md", "exec"), {})


def test_there_are_examples():
    assert len(EXAMPLES) == 8

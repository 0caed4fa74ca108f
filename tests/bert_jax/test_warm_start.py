"""BERT2BERT: what the Transformer has of the BERT, and what it makes of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax import BertConfig, BertForMaskedLM, BertModel, BertTokenizer, warm_start
from transformer_jax import Transformer, cross_entropy, generate, shift_right

WORDS = ["the", "cat", "sat", "on", "a", "mat", "while", "dogs", "ran", "over", "green", "hills"]
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
    "initializer_range": 0.3,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT with the head of masked language models only, whose every parameter is drawn, and its tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = BertTokenizer.train([" ".join(WORDS)] * 3, 100)
    model = BertForMaskedLM(BertConfig(vocab_size=tokenizer.vocab_size + 3, **SIZES))
    leaves, tree = jax.tree.flatten(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])
    draw = np.random.default_rng(1)
    params = tree.unflatten([x + 0.2 * draw.normal(size=x.shape).astype(np.float32) for x in leaves])
    model.save_pretrained(folder, params)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def started(folder):
    return warm_start(folder)


@pytest.fixture(scope="module")
def bert(folder):
    with pytest.warns(UserWarning, match="no pooler"):
        return BertModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def sources(folder):
    tokenizer = BertTokenizer.from_pretrained(folder)
    return tokenizer(["the cat sat on a mat", "green hills", "dogs ran over the mat while a cat sat"])


def test_the_encoder_is_the_bert(started, bert, sources):
    ids, mask = sources["input_ids"], sources["attention_mask"]
    encoded = started[0].apply({"params": started[1]}, ids, mask, method="encode")
    expected = bert[0].apply({"params": bert[1]}, ids, attention_mask=mask).last_hidden_state
    np.testing.assert_allclose(encoded, expected, atol=1e-5)


@pytest.mark.parametrize("count", [None, 2])
def test_the_decoder_begins_as_the_first_layers(folder, bert, count):
    model, params = warm_start(folder, count)
    assert model.config.decoder_layers == len(params["decoder"]) == (count or 3)
    for i in range(count or 3):
        own, layer = bert[1]["encoder"][f"layer_{i}"], params["decoder"][f"layer_{i}"]
        for name, of_bert in (
            ("self_attention", "attention"),
            ("self_attention_norm", "attention_norm"),
            ("mlp", "mlp"),
            ("mlp_norm", "mlp_norm"),
        ):
            jax.tree.map(np.testing.assert_array_equal, layer[name], own[of_bert])
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, model.parameter_shapes())
    new = [np.asarray(params["decoder"][f"layer_{i}"]["cross_attention"]["query"]["kernel"]) for i in (0, 1)]
    assert np.abs(new[0] - new[1]).max() > 0.1
    arrays = [id(leaf) for leaf in jax.tree.leaves(params)]
    assert len(set(arrays)) == len(arrays), "an array is there twice: donating it would fail"


def test_the_whole_is_that_of_hugging_face(started, folder, sources, peers, tmp_path):
    """Its BERT as a decoder, given our attention to the encoder; the softmax of both is the word table."""
    torch, transformers = peers
    model, params = started
    decoder = transformers.BertModel.from_pretrained(
        folder, is_decoder=True, add_cross_attention=True, add_pooling_layer=False, attn_implementation="eager"
    ).eval()
    encoder = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    D = model.config.features
    with torch.no_grad():
        for i, layer in enumerate(decoder.encoder.layer):
            cross = params["decoder"][f"layer_{i}"]["cross_attention"]
            parts = layer.crossattention
            key_value = np.asarray(cross["key_value"]["kernel"]).reshape(D, 2, D)
            for linear, kernel in (
                (parts.self.query, np.asarray(cross["query"]["kernel"]).reshape(D, D)),
                (parts.self.key, key_value[:, 0]),
                (parts.self.value, key_value[:, 1]),
                (parts.output.dense, np.asarray(cross["out"]["kernel"]).reshape(D, D)),
            ):
                linear.weight.copy_(torch.tensor(kernel.T.copy()))
                linear.bias.zero_()
            parts.output.LayerNorm.weight.fill_(1.0)
            parts.output.LayerNorm.bias.zero_()
        ids, mask = (torch.tensor(sources[name], dtype=torch.long) for name in ("input_ids", "attention_mask"))
        targets = torch.tensor(np.random.default_rng(2).integers(5, 20, (3, 6)))
        memory = encoder(ids, attention_mask=mask).last_hidden_state
        hidden = decoder(targets, encoder_hidden_states=memory, encoder_attention_mask=mask).last_hidden_state
        expected = hidden @ decoder.embeddings.word_embeddings.weight.T
    out = jax.jit(model.apply)({"params": params}, sources["input_ids"], targets.numpy(), sources["attention_mask"])
    np.testing.assert_allclose(out.logits, expected.numpy(), atol=2e-4)


def test_the_ids_are_those_of_the_tokenizer(started, folder):
    tokenizer, c = BertTokenizer.from_pretrained(folder), started[0].config
    assert (c.pad_id, c.eos_id, c.encoder_start_id, c.decoder_start_id) == (
        tokenizer.pad_id,
        tokenizer.sep_id,
        tokenizer.cls_id,
        tokenizer.cls_id,
    )


def test_it_learns_three_rewritings_and_keeps_them_in_a_folder(started, sources, tmp_path):
    """Each text is rewritten as its words in reverse; a folder gives the same model again."""
    model, params = started
    ids = sources["input_ids"]
    model = Transformer(dataclasses.replace(model.config, dropout_rate=0.0, attention_dropout_rate=0.0))
    lengths = sources["attention_mask"].sum(1)
    labels = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        labels[row, : length - 1] = [*ids[row, 1 : length - 1][::-1], model.config.eos_id]

    def loss(params):
        shifted = shift_right(jnp.asarray(labels), model.config.decoder_start_id)
        out = model.apply({"params": params}, ids, shifted, sources["attention_mask"])
        total, weight = cross_entropy(out.logits, jnp.asarray(labels), jnp.asarray(labels != 0, jnp.float32))
        return total / weight

    adam = optax.adam(1e-2)

    @jax.jit
    def update(params, state):
        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = adam.update(gradients, state)
        return optax.apply_updates(params, updates), state, value

    state, losses = adam.init(params), []
    for _ in range(80):
        params, state, value = update(params, state)
        losses.append(float(value))
    assert losses[-1] < 0.1 < losses[0]

    model.save_pretrained(tmp_path, params)
    again, read = Transformer.from_pretrained(tmp_path)
    assert again.config == model.config
    out = np.asarray(generate(again, read, ids, num_beams=1, max_length=ids.shape[1]))
    for row, length in enumerate(lengths):
        np.testing.assert_array_equal(out[row, 1:length], labels[row, : length - 1])


@pytest.mark.parametrize("count", [0, 4, "2"])
def test_other_numbers_of_layers_are_refused(folder, count):
    with pytest.raises(ValueError, match="num_decoder_layers must be an integer from 1 to 3, not"):
        warm_start(folder, count)


def test_folders_that_hold_no_bert_or_no_tokenizer_are_refused(folder, started, tmp_path):
    with pytest.raises(ValueError, match=r"config.json does not exist"):
        warm_start(tmp_path)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(ValueError, match="holds neither tokenizer.json nor vocab.txt"):
        warm_start(tmp_path)
    started[0].save_pretrained(tmp_path, started[1])
    with pytest.raises(ValueError, match="model_type 'transformer_jax' is not supported"):
        warm_start(tmp_path)


def test_a_tokenizer_of_more_tokens_is_refused(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tokenizer = BertTokenizer.train([" ".join(WORDS) + " and more words than before"] * 3, 150)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"the tokenizer has {tokenizer.vocab_size} tokens, but vocab_size"):
        warm_start(tmp_path)

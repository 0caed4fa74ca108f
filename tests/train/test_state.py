"""The train step: equal on every mesh, exact under accumulation, reproducible; for both objectives."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bert_jax import BertConfig, BertForPreTraining, BertTokenizer
from train.objectives import PretrainObjective, TranslateObjective
from train.optimizer import OptimizerConfig, make_optimizer, make_schedule
from train.sharding import MeshConfig, make_mesh, put_batch
from train.state import abstract_state, init_state, make_train_step
from transformer_jax import Transformer, TransformerConfig

ROWS, LENGTH, VOCAB, STEPS = 16, 16, 128, 6
OPTIMIZER = OptimizerConfig(learning_rate=1e-3)

MESHES = {
    "data 8": MeshConfig(data=8),
    "fsdp 8": MeshConfig(data=1, fsdp=8),
    "data 2, fsdp 2, tensor 2": MeshConfig(data=2, fsdp=2, tensor=2),
}


def small_tokenizer():
    words = [f"w{i} w{i}ing" for i in range(60)]
    return BertTokenizer.train(words * 3, VOCAB)


def pretraining(dropout=0.1, dtype=jnp.float32):
    tokenizer = small_tokenizer()
    config = BertConfig.tiny(
        vocab_size=VOCAB, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, num_hidden_layers=1
    )
    model = BertForPreTraining(config, dtype)
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(STEPS):
        lengths = rng.integers(6, LENGTH + 1, ROWS)
        attention_mask = np.arange(LENGTH) < lengths[:, None]
        input_ids = np.where(attention_mask, rng.integers(5, tokenizer.vocab_size, (ROWS, LENGTH)), 0)
        batches.append(
            {
                "input_ids": input_ids.astype(np.int32),
                "token_type_ids": (np.arange(LENGTH) > 5).astype(np.int32)[None].repeat(ROWS, 0),
                "attention_mask": attention_mask,
                "next_sentence_label": rng.integers(0, 2, ROWS).astype(np.int32),
            }
        )
    return model, 1, PretrainObjective(model, tokenizer, LENGTH, whole_word=False), batches


def translation(dropout=0.1, dtype=jnp.float32):
    config = TransformerConfig.tiny(VOCAB, encoder_layers=1, decoder_layers=1, dropout_rate=dropout)
    model = Transformer(config, dtype)
    rng = np.random.default_rng(1)

    def side(ids, prefix):
        """Rows of two segments, some of them without any token of the second."""
        cut, end = rng.integers(3, LENGTH - 3, (ROWS, 1)), rng.integers(3, LENGTH + 1, (ROWS, 1))
        second, real = np.arange(LENGTH) >= cut, np.arange(LENGTH) < end
        arrays = {
            ids: rng.integers(2, VOCAB, (ROWS, LENGTH)),
            f"{prefix}segment_ids": 1 + second,
            f"{prefix}position_ids": np.arange(LENGTH) - second * cut,
        }
        return {name: np.where(real, array, 0).astype(np.int32) for name, array in arrays.items()}

    batches = [side("input_ids", "") | side("labels", "decoder_") for _ in range(STEPS)]
    return model, 2, TranslateObjective(model, label_smoothing=0.1), batches


def remembering(optimizer):
    """The optimizer, with the gradients that it was last given in its state."""

    def update(grads, state, params):
        updates, inner = optimizer.update(grads, state[0], params)
        return updates, (inner, grads)

    return optax.GradientTransformation(lambda p: (optimizer.init(p), jax.tree.map(jnp.zeros_like, p)), update)


def run(job, config=None, accumulate=1, seed=0, steps=STEPS):
    """Losses of the first steps, and the gradients of the first, on one device or on eight."""
    model, inputs, objective, batches = job
    ids = (jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32),) * inputs
    mesh = make_mesh(config or MeshConfig(), None if config else jax.devices()[:1])
    shapes = jax.eval_shape(model.init, jax.random.key(0), *ids)["params"]
    optimizer = remembering(make_optimizer(OPTIMIZER, 100, shapes))
    with jax.set_mesh(mesh):
        abstract = abstract_state(model, ids, optimizer, mesh)
        state = init_state(model, ids, optimizer, abstract, seed=0)
        step = make_train_step(objective, optimizer, make_schedule(OPTIMIZER, 100), abstract, accumulate=accumulate)
        losses, grads = [], None
        for batch in itertools.islice(itertools.cycle(batches), steps):
            state, metrics = step(state, put_batch(batch, mesh), seed)
            losses.append(float(metrics["loss"]))
            grads = jax.tree.map(np.asarray, state.opt_state[1]) if grads is None else grads
    return np.array(losses), grads, metrics


JOBS = {"pretrain": pretraining, "translate": translation}


@pytest.fixture(scope="module")
def on_one_device():
    return {name: run(make()) for name, make in JOBS.items()}


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("job", JOBS)
def test_losses_and_gradients_are_those_of_one_device(job, mesh, on_one_device):
    losses, grads, _ = run(JOBS[job](), MESHES[mesh])
    # float32 sums in another order; masks and dropout are the same bits, or the losses would differ in the digits.
    np.testing.assert_allclose(losses, on_one_device[job][0], atol=2e-4, rtol=0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=0), grads, on_one_device[job][1])
    assert np.ptp(losses) > 0.05  # it moves: equal constants would prove nothing


@pytest.mark.parametrize("job", JOBS)
def test_accumulation_gives_the_gradient_of_the_whole_batch(job):
    whole_losses, whole, _ = run(JOBS[job](dropout=0.0), steps=1)
    losses, parts, _ = run(JOBS[job](dropout=0.0), accumulate=4, steps=1)
    np.testing.assert_allclose(losses, whole_losses, rtol=1e-6)
    # The parts have unlike numbers of tokens: only sums divided by the whole batch's weights agree.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4), parts, whole)


def test_randomness_is_a_function_of_the_seed(on_one_device):
    again = run(translation(), steps=3)[0]
    np.testing.assert_array_equal(again, on_one_device["translate"][0][:3])
    other = run(translation(), seed=1, steps=3)[0]
    assert np.abs(other - again).max() > 1e-3


@pytest.mark.parametrize("job", JOBS)
def test_bfloat16_follows_float32_for_50_steps(job):
    model, *rest = JOBS[job](dtype=jnp.bfloat16)
    half, _, _ = run((model, *rest), steps=50)
    whole, _, _ = run(JOBS[job](), steps=50)
    # bfloat16 has 8 bits of mantissa; the parameters stay float32.
    np.testing.assert_allclose(half, whole, rtol=0.02)
    assert not np.array_equal(half, whole)
    params = jax.eval_shape(model.init, jax.random.key(0), *[jnp.zeros((1, 4), jnp.int32)] * rest[0])["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


def test_metrics(on_one_device):
    _, grads, _ = on_one_device["translate"]
    metrics = run(translation(), steps=1)[2]
    norm = np.sqrt(sum(np.square(g, dtype=np.float64).sum() for g in jax.tree.leaves(grads)))
    assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=1e-5)
    assert float(metrics["weight/tokens"]) == np.count_nonzero(translation()[3][0]["labels"])
    assert float(metrics["learning_rate"]) == pytest.approx(1e-3)
    assert float(metrics["loss"]) == float(metrics["smoothed_loss"])

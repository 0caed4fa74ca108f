"""The searches against straightforward ones: Python loops, float64, no cache, everything sorted."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transformer_jax.toy import (
    EOS,
    PAD,
    START,
    B,
    V,
    beam_oracle,
    greedy_oracle,
    make_table,
    next_hash,
    padded,
    penalty,
    toy_log_probs,
    toy_step,
)
from transformer_jax import SearchOptions, beam_search, generate, greedy_search, stack_layers
from transformer_jax.decoding import reordering


@functools.partial(jax.jit, static_argnums=2)
def search(table, sentences, options):
    step = reordering(functools.partial(toy_step, table))
    if options.num_beams == 1:
        return greedy_search(step, sentences, len(sentences), options)
    return beam_search(step, jnp.repeat(sentences, options.num_beams), len(sentences), options)


seeds = st.integers(0, 2**31)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(seeds)
def test_greedy_search_takes_the_best_token_each_time(seed):
    table, options = make_table(seed), SearchOptions(9, START, EOS, PAD, num_beams=1)
    ids = np.asarray(search(table, jnp.arange(B), options))
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, [greedy_oracle(toy_log_probs(table, s), options) for s in range(B)])


CASES = [
    SearchOptions(8, START, EOS, PAD, 3, length_penalty, early_stopping, score)
    for score, early_stopping, length_penalty in [
        *itertools.product(("hf", "paper"), (True, False, "never"), (1.0,)),
        ("marian", False, 1.0),
        ("marian", True, 0.6),
        ("hf", "never", 0.0),
        ("hf", "never", -1.0),
        ("hf", False, -5.0),
        ("hf", False, 2.0),
        ("paper", False, 0.6),
    ]
]


@pytest.mark.parametrize("options", CASES, ids=lambda o: f"{o.preset}-{o.early_stopping}-{o.length_penalty}")
@settings(deadline=None, max_examples=40, derandomize=True)
@given(seeds)
def test_beam_search_is_the_search_written_down(options, seed):
    table = make_table(seed)
    ids, scores = search(table, jnp.arange(B), options)
    assert ids.dtype == jnp.int32 and scores.dtype == jnp.float32
    for sentence in range(B):
        expected = beam_oracle(toy_log_probs(table, sentence), options)
        np.testing.assert_array_equal(ids[sentence], [padded(ids, options) for _, ids in expected])
        np.testing.assert_allclose(scores[sentence], [score for score, _ in expected], rtol=1e-5, atol=1e-5)


def test_these_cases_tell_the_options_apart():
    """Otherwise the test above could not fail where one option is taken for another."""
    seen = {
        options: tuple(str(beam_oracle(toy_log_probs(make_table(s), 0), options)[0][1]) for s in range(60))
        for options in CASES
    }
    same = [pair for pair in itertools.combinations(CASES, 2) if seen[pair[0]] == seen[pair[1]]]
    # "never" with a negative exponent looks at the present length, and a paper's exponent may matter to few.
    assert len(same) <= 1, same


@settings(deadline=None, max_examples=15, derandomize=True)
@given(seeds, st.sampled_from(["hf", "paper"]))
def test_a_beam_as_wide_as_everything_finds_the_best(seed, score):
    table = make_table(seed, vocab=3)
    options = SearchOptions(5, START, EOS, PAD, 32, 0.7, "never", score)
    every = []
    log_probs = toy_log_probs(table, 0)

    def grow(prefix, total):
        if len(prefix) > 1 and (prefix[-1] == EOS or len(prefix) == options.max_length):
            every.append((total / penalty(len(prefix) - 1, options), prefix))
        else:
            for token, p in enumerate(log_probs(prefix)):
                grow((*prefix, token), total + p)

    grow((START,), 0.0)
    assert len(every) == 1 + 2 + 4 + 24
    best_score, best = max(every)
    ids, scores = search(table, jnp.zeros(1, int), options)
    np.testing.assert_array_equal(ids[0, 0], padded(best, options))
    np.testing.assert_allclose(scores[0, 0], best_score, rtol=1e-5, atol=1e-5)


def test_sentences_of_a_batch_do_not_touch_each_other():
    options = CASES[0]._replace(early_stopping=True)
    for seed in range(10):
        table = make_table(seed)
        together = search(table, jnp.arange(8), options)
        for half in (slice(0, 4), slice(4, 8)):
            for a, b in zip(together, search(table, jnp.arange(8)[half], options), strict=True):
                np.testing.assert_array_equal(a[half], b)


def test_penalties_are_those_of_the_papers():
    hf, paper = (SearchOptions(9, START, EOS, PAD, length_penalty=0.6, preset=preset) for preset in ("hf", "paper"))
    np.testing.assert_allclose(hf.penalty(7), 7**0.6, rtol=1e-6)
    np.testing.assert_allclose(paper.penalty(7), 2**0.6, rtol=1e-6)
    assert paper.penalty(1) == 1.0


# --- Hugging Face ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hugging_face():
    """(table, sentence, options) -> (ids [W, <= max_length], scores [W]) of transformers' own search over the table."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")

    class TableModel(transformers.PreTrainedModel, transformers.GenerationMixin):
        config_class = transformers.PretrainedConfig

        def __init__(self, config):
            super().__init__(config)
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.post_init()

        def prepare_inputs_for_generation(self, input_ids, **kwargs):
            return {"input_ids": input_ids}

        def forward(self, input_ids, attention_mask=None, return_dict=True):
            rows = [functools.reduce(next_hash, prefix, self.sentence) for prefix in input_ids.tolist()]
            logits = torch.from_numpy(self.table[rows])[:, None]
            return transformers.modeling_outputs.CausalLMOutput(logits=logits)

    model = TableModel(transformers.PretrainedConfig(vocab_size=V, pad_token_id=PAD, eos_token_id=EOS))

    def run(table, sentence, options):
        model.table, model.sentence = table, sentence
        beams = {
            "num_return_sequences": options.num_beams,
            "length_penalty": float(options.length_penalty),
            "early_stopping": options.early_stopping,
        }
        config = transformers.GenerationConfig(
            max_length=options.max_length,
            num_beams=options.num_beams,
            do_sample=False,
            use_cache=False,
            pad_token_id=PAD,
            eos_token_id=EOS,
            return_dict_in_generate=True,
            output_scores=True,
            **(beams if options.num_beams > 1 else {}),
        )
        prompt = torch.tensor([[START]])
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
        return out.sequences.numpy(), None if options.num_beams == 1 else out.sequences_scores.numpy()

    return run


HF_CASES = [SearchOptions(9, START, EOS, PAD, num_beams=1), *(case for case in CASES if case.preset == "hf")]


@pytest.mark.parametrize("options", HF_CASES, ids=lambda o: f"{o.num_beams}-{o.early_stopping}-{o.length_penalty}")
def test_the_search_is_that_of_hugging_face(hugging_face, options):
    for seed in range(6):
        table = make_table(1000 + seed)
        found = search(table, jnp.arange(B), options)
        for sentence in range(B):
            ids, scores = hugging_face(table, sentence, options)
            ours = found[sentence][None] if options.num_beams == 1 else found[0][sentence]
            np.testing.assert_array_equal(ours[:, : ids.shape[1]], ids)
            assert (np.asarray(ours)[:, ids.shape[1] :] == PAD).all()
            if scores is not None:
                np.testing.assert_allclose(found[1][sentence], scores, rtol=1e-5, atol=1e-5)


# --- a Transformer -----------------------------------------------------------------------------------------------

SOURCES = np.array([[5, 6, 9, 7], [8, 4, 0, 0], [3, 0, 0, 0]])


def draw(params, seed):
    """Parameters by which a prefix decides what follows: signs in the norms keep words from repeating themselves."""
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        x = rng.normal(size=leaf.shape)
        x = {"kernel": x, "bias": 0 * x, "scale": 2 * np.sign(x), "embedding": 0.5 * x}[path[-1].key]
        return jnp.asarray(x, jnp.float32)

    return jax.tree_util.tree_map_with_path(one, params)


@pytest.fixture(scope="module")
def wordy(make_transformer):
    """A model, and several sets of parameters."""
    model, params = make_transformer(encoder_layers=2, decoder_layers=2)
    return model, [draw(params, seed) for seed in (4, 9, 12)]


@pytest.fixture(scope="module")
def log_probs_of(wordy):
    """(parameters, sentence) -> what the oracles ask, from the whole prefix and without a cache."""
    apply = jax.jit(wordy[0].apply)

    def of(params, sentence):
        source = SOURCES[sentence : sentence + 1]

        @functools.cache
        def log_probs(prefix):
            ids = np.zeros((1, 10), np.int32)
            ids[0, : len(prefix)] = prefix
            logits = np.asarray(
                apply({"params": params}, source, ids, source != 0).logits[0, len(prefix) - 1], np.float64
            )
            return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())

        return log_probs

    return of


@pytest.mark.parametrize(
    ("num_beams", "preset", "length_penalty", "early_stopping"),
    [(1, "hf", 1.0, False), (3, "hf", 1.0, False), (3, "paper", 0.6, "never")],
)
def test_generating_with_a_cache_is_searching_without_one(
    wordy, log_probs_of, num_beams, preset, length_penalty, early_stopping
):
    model, drawn = wordy
    options = {"length_penalty": length_penalty, "early_stopping": early_stopping, "max_length": 10, "preset": preset}
    search_options = SearchOptions(10, 0, 1, 0, num_beams, length_penalty, early_stopping, preset)
    seen = []
    for params in drawn:
        ids = np.asarray(generate(model, params, SOURCES, num_beams=num_beams, **options))
        seen.append(ids)
        for sentence in range(len(SOURCES)):
            log_probs = log_probs_of(params, sentence)
            if num_beams == 1:
                expected = greedy_oracle(log_probs, search_options)
            else:
                expected = padded(beam_oracle(log_probs, search_options)[0][1], search_options)
            np.testing.assert_array_equal(ids[sentence], expected)
    assert len(np.unique(seen)) > 5 and (np.array(seen) == 1).any()  # not one word over and over, and some ends


def test_beams_find_what_greedy_search_does_not(wordy):
    model, drawn = wordy
    pairs = [[generate(model, p, SOURCES, num_beams=n, max_length=10) for n in (1, 3)] for p in drawn]
    assert any((greedy != beam).any() for greedy, beam in pairs)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_scanned_layers_generate_the_same(wordy, make_transformer, num_beams):
    model, drawn = wordy
    scanned, _ = make_transformer(encoder_layers=2, decoder_layers=2, scan_layers=True)
    for params in drawn:
        ids = generate(scanned, stack_layers(params), SOURCES, num_beams=num_beams, max_length=10)
        np.testing.assert_array_equal(ids, generate(model, params, SOURCES, num_beams=num_beams, max_length=10))


def test_a_mask_of_ones_and_zeros_is_the_padding_by_default(wordy):
    model, drawn = wordy
    for params in drawn:
        by_default = generate(model, params, SOURCES, num_beams=3, max_length=10)
        given = generate(model, params, SOURCES, (SOURCES != 0).astype(int), num_beams=3, max_length=10)
        np.testing.assert_array_equal(given, by_default)
        noise = np.where(SOURCES == 0, 9, SOURCES)
        masked = generate(model, params, noise, SOURCES != 0, num_beams=3, max_length=10)
        np.testing.assert_array_equal(masked, by_default)


def test_outputs_begin_with_the_start_token_and_are_padded_behind_their_end(make_transformer):
    model, params = make_transformer(pad_id=3, eos_id=5, decoder_start_id=2)
    ended = 0
    for seed in range(4):
        drawn = draw(params, seed)
        drawn["embedding"]["embedding"] = drawn["embedding"]["embedding"].at[5].multiply(4.0)  # ends are frequent
        for num_beams in (1, 3):
            ids = np.asarray(generate(model, drawn, SOURCES + 1, num_beams=num_beams, max_length=10))
            assert ids.shape == (3, 10) and ids.dtype == np.int32 and (ids[:, 0] == 2).all()
            for row in ids[:, 1:].tolist():
                if 5 in row:
                    ended += 1
                    assert set(row[row.index(5) + 1 :]) <= {3}
    assert ended > 3


def test_bfloat16_generates(make_transformer):
    model, params = make_transformer(dtype=jnp.bfloat16)
    assert generate(model, params, SOURCES, num_beams=2, max_length=6).shape == (3, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "fairseq"}, "preset must be 'hf', 'paper' or 'marian', not 'fairseq'"),
        ({"num_beams": 0}, "num_beams must be an integer from 1 to 1024, not 0"),
        ({"max_length": 1}, "max_length must be an integer from 2 to .*, not 1"),
        ({"early_stopping": "nevr"}, "early_stopping must be True or False or 'never', not 'nevr'"),
    ],
)
def test_generate_refuses_what_cannot_be(tiny, options, message):
    model, params = tiny
    with pytest.raises(ValueError, match=message):
        generate(model, params, SOURCES, **options)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_sinusoids_reach_as_far_as_the_output(wordy, make_transformer, num_beams):
    model, drawn = wordy
    short, _ = make_transformer(encoder_layers=2, decoder_layers=2, max_length=3)
    for params in drawn:
        ids = generate(short, params, SOURCES, num_beams=num_beams, max_length=10)
        np.testing.assert_array_equal(ids, generate(model, params, SOURCES, num_beams=num_beams, max_length=10))


def test_learned_positions_end_with_their_table_when_decoding(make_transformer):
    model, params = make_transformer(positions="learned", max_length=6)
    assert generate(model, params, SOURCES, num_beams=1, max_length=6).shape == (3, 6)
    with pytest.raises(ValueError, match="the position table has 6 rows"):
        generate(model, params, SOURCES, num_beams=1, max_length=7)

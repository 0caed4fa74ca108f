"""Runs of translate with several directions, two vocabularies and a Marian to go on from; and what comes of them."""

import contextlib
import io
import json

import numpy as np
import pytest
import safetensors.numpy

from tests.transformer_jax.marian_folders import own_model, processor
from train.__main__ import run
from train.data.parallel import train_sentencepiece
from train.translate_start import load_start, unspoken, with_allowed, with_forbidden
from transformer_jax import Transformer, Translator, save_marian
from transformer_jax.decoding_defaults import DecodingDefaults, decoding_of, read_decoding_defaults
from transformer_jax.marian import FORBIDDEN
from transformer_jax.tokenizer import MarianTokenizer, load_tokenizer, serialized

OPTIONS = (
    "--steps 2 --eval.every 1 --checkpoint.every 1 --optimizer.warmup-steps 1 --average 1 --label-smoothing 0 "
    "--batch-size 128 --max-length 16 --bleu-sentences 8"
)
SMALL = "--architecture.features 16 --architecture.num-heads 2 --architecture.mlp-dim 24 --architecture.layers 1"


def go(folder, *command):
    return run(["translate", *command, *OPTIONS.split(), "--run", str(folder)])


def tensors(path):
    return safetensors.numpy.load_file(path / "model.safetensors")


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two languages into a third, with a vocabulary on each side, some of it translated back."""
    folder = tmp_path_factory.mktemp("two")
    words = [f"{a}{b}" for a in "abcd" for b in "efgh"]
    real = [f"{one} {other}\t{other} {one.upper()}" for one in words for other in words[:6]]
    (folder / "de.tsv").write_text("\n".join(real) + "\n")
    (folder / "fr.tsv").write_text("\n".join(row.replace("a", "i") for row in real) + "\n")
    (folder / "bt.tsv").write_text("\n".join(f"<BT> {row}" for row in real[:20]) + "\n")
    data = [f"{pair}={folder}/{name}.tsv" for pair, name in (("de-en", "de"), ("fr-en", "fr"), ("de-en", "bt"))]
    command = ["--data", *data, "--held-out", "4", "--vocab-size", "22", "--target-vocab-size", "26"]
    command += ["--architecture.norm", "post", *SMALL.split()]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert go(folder / "run", *command) == 0
    return folder, command, said.getvalue()


def test_each_direction_has_a_score(trained):
    folder, _, said = trained
    scores = [row for row in rows(folder / "run") if "eval/bleu" in row]
    assert all({"eval/bleu", "eval/bleu_de-en", "eval/bleu_fr-en", "eval/nll_loss"} <= row.keys() for row in scores)
    for part in (
        "held out: 4 de-en, 4 fr-en",
        "<BT>, >>en<<, a token each",
        "pairs with marked sources",
        "22 pieces for sources",
        "26 for targets",
        "de-en: BLEU",
        "on 8 held-out pairs",
        *("chrF", "chrF++", "TER", "nc:6", "tok:tercom"),
    ):
        assert part in said, part


TEXTS = [">>en<< ae bf", ">>en<< be"]
BEAMS = {"num_beams": 2, "length_penalty": 1.0, "early_stopping": False}


@pytest.fixture(scope="module")
def marian(trained, tmp_path_factory):
    """The run's export as a Marian: (folder, the translations of TEXTS that the export gives)."""
    folder, export = tmp_path_factory.mktemp("marian"), trained[0] / "run" / "export"
    model, params = Transformer.from_pretrained(export)
    with pytest.warns(UserWarning, match="norm_epsilon"):
        save_marian(folder, model, params, load_tokenizer(export), DecodingDefaults(bad_words_ids=((0,),), **BEAMS))
    found = Translator.from_pretrained(export, preset="hf", max_length=16, max_output_length=16, **BEAMS).n_best(TEXTS)
    return folder, found


def test_an_export_of_two_vocabularies_becomes_a_marian(trained, marian):
    export = trained[0] / "run" / "export"
    assert {path.name for path in export.iterdir()} == {
        "config.json", "model.safetensors", "source.spm", "target.spm", "vocab.json", "target_vocab.json",
        "tokenizer_config.json",
    }  # fmt: skip
    c = Transformer.from_pretrained(export)[0].config
    assert (c.vocab_size, c.target_vocab_size) == (22, 26)
    assert not c.share_encoder_decoder_embeddings and c.tie_word_embeddings
    folder, expected = marian
    # What stands in the first position is moved, and sinusoids are in halves: the same model.
    found = Translator.from_pretrained(folder, max_length=16, max_output_length=16).n_best(TEXTS)
    for one, other in zip(found, expected, strict=True):
        assert [output.ids for output in one] == [output.ids for output in other]
        assert [o.score for o in one] == pytest.approx([o.score for o in other], abs=1e-4)  # other sums in float32
    table = tensors(folder)["model.decoder.embed_tokens.weight"]
    assert table.shape == (26, 16) and not table[0].any()  # as CTranslate2 takes the start
    assert tensors(folder)["final_logits_bias"][0, 0] == tensors(export)["final_logits_bias"][0] == FORBIDDEN


@pytest.mark.filterwarnings("ignore")
def test_pytorch_translates_what_was_trained(marian, peers):
    torch, transformers = peers
    folder, expected = marian
    tokenizer = transformers.MarianTokenizer.from_pretrained(folder)
    model, report = transformers.MarianMTModel.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    with torch.inference_mode():
        ids = model.eval().generate(**tokenizer(TEXTS, return_tensors="pt", padding=True), max_length=16)
    for row, outputs in zip(ids.tolist(), expected, strict=True):
        assert tuple(id_ for id_ in row[1:] if id_ not in (0, 1)) == outputs[0].ids
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == [outputs[0].text for outputs in expected]


@pytest.mark.filterwarnings("ignore:a Marian's norm_epsilon")
def test_training_goes_on_from_two_vocabularies_and_from_their_marian(trained, tmp_path, capsys):
    """What is exported is what was, where nothing is learned."""
    folder, command, _ = trained
    export, marian = folder / "run" / "export", tmp_path / "marian"
    model, params = Transformer.from_pretrained(export)
    defaults = DecodingDefaults(num_beams=3, max_length=20, length_penalty=0.5, bad_words_ids=((0,), (4,)))
    save_marian(marian, model, params, load_tokenizer(export), defaults)
    start = load_start(str(export), seed=0)
    assert not start.model.config.final_logits_bias and "final_logits_bias" not in start.params
    still = [*command[: command.index("--vocab-size")], "--optimizer.learning-rate", "1e-12", "--model", str(marian)]
    assert go(tmp_path / "run", *still) == 0
    assert "26 for targets of" in capsys.readouterr().out
    went_on = tmp_path / "run" / "export"
    assert read_decoding_defaults(went_on) == decoding_of(went_on) == defaults and decoding_of(export) is None
    translator = Translator.from_pretrained(went_on)
    assert (translator.num_beams, translator.length_penalty, translator.max_output_length) == (3, 0.5, 20)
    assert serialized(load_tokenizer(went_on)) == serialized(load_tokenizer(marian))
    model, params = Transformer.from_pretrained(went_on)
    save_marian(tmp_path / "again", model, params, load_tokenizer(went_on), decoding_of(went_on))
    before, after = tensors(marian), tensors(tmp_path / "again")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_allclose(after[name], tensor, atol=1e-6, rtol=0, err_msg=name)
    for name in ("config.json", "generation_config.json", "vocab.json"):
        assert (tmp_path / "again" / name).read_bytes() == (marian / name).read_bytes()


def test_what_no_target_has_is_forbidden_in_exports_alone():
    model, params = own_model(final_logits_bias=True)
    tokenizer = MarianTokenizer.of_sentencepiece(processor(), processor())
    assert unspoken(model.config, tokenizer) == (0,) and unspoken(model.config, processor()) == ()
    tagged = train_sentencepiece([("ab cd", "ef")], 12, [">>de<<", "<BT>"]).processor
    assert unspoken(model.config, tagged) == (3, 4)
    assert unspoken(model.config, MarianTokenizer.of_sentencepiece(processor(), tagged)) == (0, 3, 4)
    config, exported = with_forbidden(model.config, params, (0, 4))
    bias_V = params["final_logits_bias"]
    assert (exported["final_logits_bias"][[0, 4]] == FORBIDDEN).all() and bias_V[0] != FORBIDDEN
    back, allowed = with_allowed(model.clone(config=config), exported)
    assert back.config.final_logits_bias
    np.testing.assert_array_equal(allowed["final_logits_bias"], np.where(np.isin(np.arange(36), [0, 4]), 0, bias_V))
    assert with_forbidden(model.config, params, ()) == (model.config, params)
    assert with_allowed(model, params)[1]["final_logits_bias"] is bias_V


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--both-directions", "--both-directions True has no meaning without --data"),
        ("--data en-de=x.tsv --both-directions --target-vocab-size 9", "--target-vocab-size 9 has no meaning beside"),
        ("--data x.tsv --model {f} --target-vocab-size 9", "--target-vocab-size 9 has no meaning beside --model"),
        ("--target-vocab-size 3", "--target-vocab-size"),
    ],
)
def test_options_that_do_not_fit(options, message, tmp_path, capsys):
    assert run(["translate", *options.format(f=tmp_path).split(), "--run", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "run").exists()

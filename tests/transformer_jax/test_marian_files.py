"""Marian folders that are wrong: each is refused in one line that names the file and what is wrong in it."""

import json
import pickle

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tests.transformer_jax.make_golden_marian import ODD
from tests.transformer_jax.marian_folders import edit_config, edit_tensors, odd_folder, sinusoids
from transformer_jax import Transformer

SWISH, RELU, GELU, UNTIED = ODD
BIAS = "model.decoder.layers.0.encoder_attn.v_proj.bias"
INDEX = "model.safetensors.index.json"


def refuse(folder, message):
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(ValueError, match=message) as caught:
        Transformer.from_pretrained(folder)
    text = str(caught.value)
    assert str(folder) in text and "\n" not in text and len(text) < 1000
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize(
    ("odd", "changes", "message"),
    [
        (SWISH, {"is_encoder_decoder": False}, "config.json: is_encoder_decoder False is not supported: only True is"),
        (SWISH, {"is_decoder": 1}, "is_decoder 1 is not supported: only False is"),
        (SWISH, {"activation_function": "mish"}, "activation_function must be 'relu', .* not 'mish'"),
        (SWISH, {"d_model": 15, "encoder_attention_heads": 3}, "need an even width, not features 15"),
        (SWISH, {"encoder_attention_heads": 4}, "4 heads do not divide the width 18"),
        (SWISH, {"decoder_attention_heads": 5}, "5 heads do not divide the width 18"),
        (SWISH, {"decoder_vocab_size": 30}, "vocab_size 29 and decoder_vocab_size 30 differ: then share_encoder_dec"),
        (SWISH, {"decoder_vocab_size": 0}, "decoder_vocab_size must be an integer from 1 .* not 0"),
        (SWISH, {"pad_token_id": 29}, "pad_id must lie between 0 and 28"),
        (SWISH, {"pad_token_id": None}, "pad_token_id must be an integer from 0 to 2147483647, not None"),
        (SWISH, {"eos_token_id": [0]}, r"eos_token_id must be an integer .* not \[0\]"),
        (SWISH, {"eos_token_id": 28}, "pad_id and eos_id must differ"),
        (GELU, {"eos_token_id": 20}, r"eos_id must lie between 0 and 16 \(decoder_vocab_size is 17\)"),
        (GELU, {"decoder_start_token_id": 17}, "decoder_start_id must lie between 0 and 16"),
        (SWISH, {"scale_embedding": "yes"}, "scale_embedding must be True or False, not 'yes'"),
        (SWISH, {"tie_word_embeddings": None}, "tie_word_embeddings must be True or False, not None"),
        (SWISH, {"dropout": 1.5}, "dropout must be a number from 0 below 1, not 1.5"),
        (SWISH, {"max_position_embeddings": 0}, "max_position_embeddings must be an integer from 1"),
        (SWISH, {"encoder_layers": 3}, "lacks 16 tensors: model.encoder.layers.2.fc1.bias"),
        (SWISH, {"encoder_layers": 1}, "has 16 unexpected tensors: model.encoder.layers.1.fc1.bias"),
        (SWISH, {"encoder_layers": 9999}, "lacks 159952 tensors"),
        (SWISH, {"decoder_ffn_dim": 15}, r"fc1.weight is \(14, 18\), not \(15, 18\)"),
        (SWISH, {"d_model": 3 * 2**16}, r"does not fit its config.json: .* is \(18,\), not \(196608,\)"),
        (SWISH, {"vocab_size": 30, "decoder_vocab_size": 30}, r"final_logits_bias is \(1, 29\), not \(1, 30\)"),
        (SWISH, {"share_encoder_decoder_embeddings": False}, r"lacks .* model.encoder.embed_tokens.weight \(29, 18\)"),
        (GELU, {"tie_word_embeddings": False}, r"lacks 1 tensors: lm_head.weight \(17, 8\)"),
        (RELU, {"tie_word_embeddings": True}, "lm_head.weight differs from model.decoder.embed_tokens.weight, but con"),
        (UNTIED, {"tie_word_embeddings": True}, "model.encoder.embed_tokens.weight differs from model.shared.weight"),
    ],
)  # fmt: skip
def test_a_configuration_that_is_not_that_of_the_file(tmp_path, odd, changes, message):
    odd_folder(odd, tmp_path)
    edit_config(tmp_path, **changes)
    refuse(tmp_path, message)


def test_a_configuration_that_says_nothing_is_that_of_the_library(tmp_path):
    odd_folder(SWISH, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "marian"}')
    refuse(tmp_path, r"final_logits_bias is \(1, 29\), not \(1, 58101\)")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(BIAS), rf"lacks 1 tensors: {BIAS} \(18,\)"),
        (lambda t: t.update(extra=np.zeros((2, 3), np.float32)), r"has 1 unexpected tensors: extra \(2, 3\)"),
        (
            lambda t: t.update(extra=t.pop(BIAS)),
            rf"lacks 1 tensors: {BIAS} \(18,\), and has 1 that are unexpected: extra \(18,\)",
        ),
        (lambda t: t.update({BIAS: t[BIAS][:-1]}), rf"{BIAS} is \(17,\), not \(18,\)"),
        (lambda t: t.update({BIAS: t[BIAS].reshape(3, 6)}), rf"{BIAS} is \(3, 6\), not \(18,\)"),
        (lambda t: t[BIAS].fill(np.nan), f"not finite .* {BIAS}"),
        (lambda t: t[BIAS].fill(np.inf), f"not finite .* {BIAS}"),
        (lambda t: t.update({BIAS: t[BIAS].astype(np.int64)}), rf"must be floating.*, but {BIAS} \(int64\) are not"),
        (lambda t: t.update({BIAS: np.full(18, 1e300)}), f"must fit float32: not finite .* {BIAS}"),
        (lambda t: t.update({"shared.weight": t["model.shared.weight"]}), "has two tensors for model.shared.weight"),
        (lambda t: t.update({"lm_head.weight": t["model.shared.weight"] + 1}), "lm_head.weight differs from model.sh"),
        (lambda t: t.update(final_logits_bias=t["final_logits_bias"][0]), r"final_logits_bias is \(29,\), not \(1, 29"),
        (lambda t: t["final_logits_bias"].fill(np.nan), "not finite .* final_logits_bias"),
        (lambda t: t.update(final_logits_bias=np.zeros((1, 29), np.int32)), r"but final_logits_bias \(int32\) are not"),
    ],
)  # fmt: skip
def test_weights_that_are_not_those_of_the_configuration(tmp_path, change, message):
    odd_folder(SWISH, tmp_path)
    edit_tensors(tmp_path, change)
    refuse(tmp_path, f"model.safetensors.*{message}")


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_a_table_that_nothing_reads_stands_for_no_other(tmp_path, side):
    odd_folder(UNTIED, tmp_path)
    edit_tensors(tmp_path, lambda t: t.pop(f"model.{side}.embed_tokens.weight"))
    refuse(tmp_path, rf"lacks 1 tensors: model.{side}.embed_tokens.weight \(21, 8\)")


def shifted(row):
    table = sinusoids(40, 18).astype(np.float32)
    table[row] += 0.01
    return table


INTERLEAVED = sinusoids(40, 18).reshape(40, 2, 9).swapaxes(1, 2).reshape(40, 18).astype(np.float32)


@pytest.mark.parametrize(
    ("side", "table", "message"),
    [
        ("encoder", shifted(0), "row 0 of model.encoder.embed_positions.weight is no sinusoid, as a Marian's must be"),
        ("decoder", shifted(39), "row 39 of model.decoder.embed_positions.weight is no sinusoid"),
        ("decoder", shifted(0), "row 0 of model.decoder.embed_positions.weight is no sinusoid, .* unless its start is"),
        ("decoder", INTERLEAVED, "row 1 of model.decoder.embed_positions.weight is no sinusoid"),
        ("encoder", shifted(0)[:39], r"does not fit its config.json: model.encoder.* is \(39, 18\), not \(40, 18\)"),
        ("encoder", np.zeros((40, 18), np.int32), r"embed_positions.weight \(int32\) are not"),
        ("decoder", np.full((40, 18), np.nan, np.float32), "not finite .* model.decoder.embed_positions.weight"),
    ],
)
def test_positions_that_no_marian_has(tmp_path, side, table, message):
    odd_folder(SWISH, tmp_path)
    edit_tensors(tmp_path, lambda t: t.update({f"model.{side}.embed_positions.weight": table}))
    refuse(tmp_path, message)


@pytest.mark.parametrize("kind", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_weights_of_any_floating_type(tmp_path, kind):
    tensors = odd_folder(SWISH, tmp_path)
    rounded = {name: tensor.astype(kind) for name, tensor in tensors.items()}
    rounded["model.encoder.embed_positions.weight"] = sinusoids(40, 18).astype(kind)
    safetensors.numpy.save_file(rounded, tmp_path / "model.safetensors")
    params = Transformer.from_pretrained(tmp_path)[1]
    np.testing.assert_array_equal(params["embedding"]["embedding"], rounded["model.shared.weight"].astype(np.float32))


# --- files -------------------------------------------------------------------------------------------------------


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def index(**files):
    """The file as one that an index names; `files` are other names for it."""

    def change(folder):
        names = [*safetensors.numpy.load_file(folder / "model.safetensors")]
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        where = dict.fromkeys(names, "model-1.safetensors") | {names[0]: files.get("first", "model-1.safetensors")}
        (folder / INDEX).write_text(json.dumps({"weight_map": where}))

    return change


def other(name):
    def change(folder):
        (folder / "model.safetensors").unlink()

        class Harmful:
            def __reduce__(self):
                return (folder.joinpath("executed").write_text, ("",))

        (folder / name).write_bytes(pickle.dumps(Harmful()))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut, "model.safetensors cannot be read as safetensors"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b""),
            "model.safetensors cannot be read as safe",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors does not exist: a model folder"),
        (index(first="../outside.safetensors"), "names '../outside.safetensors', which is no file of this folder"),
        (index(first="/etc/passwd"), "names '/etc/passwd', which is no file of this folder"),
        (index(first="model-2.safetensors"), "model-1.safetensors has 1 tensors that .* has not in it: final_logits_b"),
        (
            other("pytorch_model.bin"),
            r"only pytorch_model.bin, a pickle, which is never read. Convert it where PyTorch is: transformers."
            r"MarianMTModel.from_pretrained\(folder\).save_pretrained\(folder\)",
        ),
        (other("pytorch_model.bin.index.json"), "only pytorch_model.bin.index.json, which names pickles"),
        (other("tf_model.h5"), r"transformers.MarianMTModel.from_pretrained\(folder, from_tf=True\)"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, change, message):
    folder = tmp_path / "model"
    odd_folder(SWISH, folder)
    safetensors.numpy.save_file({"final_logits_bias": np.zeros(3)}, tmp_path / "outside.safetensors")
    change(folder)
    refuse(folder, message)


def test_files_that_an_index_names(tmp_path):
    odd_folder(SWISH, tmp_path)
    expected = Transformer.from_pretrained(tmp_path)[1]
    index()(tmp_path)
    params = Transformer.from_pretrained(tmp_path)[1]
    np.testing.assert_array_equal(params["embedding"]["embedding"], expected["embedding"]["embedding"])

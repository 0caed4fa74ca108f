"""The files of sentence-transformers: written, read, and refused where they ask for what is not known."""

import dataclasses
import fnmatch
import json

import numpy as np
import pytest

from bert_jax import EmbedderSettings, TextEmbedder
from bert_jax.pooling import POOLS
from tests.bert_jax.folders import with_settings

TEXTS = ["the cat", "", "dogs ran over green hills while a cat sat on the mat"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pooling": ("cls",), "normalize": True, "max_length": 12, "lowercase": True},
        {"pooling": ("max", "mean"), "prompts": {"query": "the "}, "default_prompt": "query"},
    ],
)
def test_folders_round_trip(plain, tmp_path, fields):
    embedder = with_settings(plain, **fields)
    embedder.save_pretrained(tmp_path / "new")
    again = TextEmbedder.from_pretrained(tmp_path / "new")
    pooling = tuple(name for name in POOLS if name in embedder.settings.pooling)
    assert again.settings == dataclasses.replace(embedder.settings, pooling=pooling, max_length=embedder.longest)
    np.testing.assert_array_equal(again(TEXTS[:2]), embedder(TEXTS[:2]))
    modules = json.loads((tmp_path / "new/modules.json").read_text())
    kinds = ["Transformer", "Pooling", "Normalize"][: len(modules)]
    assert [module["type"] for module in modules] == [f"sentence_transformers.models.{kind}" for kind in kinds]
    assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Normalize"][: len(modules)]
    assert not list((tmp_path / "new").rglob("*.tmp"))


def test_hugging_face_reads_the_model_that_we_write(plain, tmp_path, peers):
    torch, transformers = peers
    plain.save_pretrained(tmp_path)
    model = transformers.BertModel.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    tokenizer = transformers.BertTokenizerFast.from_pretrained(tmp_path)
    with torch.inference_mode():
        out = model(**tokenizer([TEXTS[2]], return_tensors="pt")).last_hidden_state[0].numpy()
    np.testing.assert_allclose(out.mean(0), plain([TEXTS[2]])[0], atol=1e-5)


def pooling(**fields):
    return {"1_Pooling/config.json": {"word_embedding_dimension": 8, **fields}}


def modules(*kinds):
    return {"modules.json": [{"idx": i, "path": f"{i}_{kind}" if i else "", "type": f"x.{kind}"} for i, kind in kinds]}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (pooling(pooling_mode_mean_tokens=True), ("mean",)),
        (pooling(), ("mean",)),
        (pooling(pooling_mode_cls_token=True, pooling_mode_mean_tokens=False), ("cls",)),
        (pooling(pooling_mode_cls_token=True), ("cls", "mean")),
        (pooling(pooling_mode_lasttoken=False, include_prompt=False), ("mean",)),
    ],
)
def test_poolings_of_files(plain, tmp_path, files, expected):
    assert read(plain, tmp_path, files).settings.pooling == expected


def read(plain, folder, files):
    with_settings(plain, normalize=True).save_pretrained(folder)
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return TextEmbedder.from_pretrained(folder)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (pooling(pooling_mode_lasttoken=True), "the pooling pooling_mode_lasttoken is not known; known are cls, max"),
        (pooling(pooling_mode_weightedmean_tokens=True), "pooling_mode_weightedmean_tokens is not known"),
        (pooling(pooling_mode="lasttoken"), "pooling_mode is not known"),
        (pooling(pooling_mode_mean_tokens=False), r"pooling must be a tuple of .* not \(\)"),
        ({"1_Pooling/config.json": "{"}, "config.json is not JSON"),
        (modules((0, "Transformer")), "must be Transformer, Pooling and perhaps Normalize, not Transformer"),
        (modules((0, "Transformer"), (1, "Pooling"), (2, "Dense")), "not Transformer, Pooling, Dense"),
        ({"modules.json": []}, "not none"),
        ({"modules.json": {}}, "holds dict, not a JSON list"),
        ({"modules.json": [{"type": "a.Transformer"}]}, "each module must have a type and a path"),
        ({"modules.json": [{"type": "a.Transformer", "path": "../x"}]}, "'../x' leaves the folder"),
        ({"modules.json": [{"type": "a.Transformer", "path": "/x"}]}, "'/x' leaves the folder"),
        ({"sentence_bert_config.json": {"max_seq_length": "12"}}, "max_length must be an integer from 1"),
        ({"sentence_bert_config.json": {"do_lower_case": None}}, "lowercase must be True or False"),
        ({"config_sentence_transformers.json": {"prompts": ["a"]}}, "prompts must be an object"),
        ({"config_sentence_transformers.json": {"default_prompt_name": "a"}}, "default_prompt is 'a', but prompts has"),
        (
            {"config_sentence_transformers.json": {"prompts": {"a": "b"}}, **pooling(include_prompt=False)},
            "poolings without the prompt are not known",
        ),
    ],
)
def test_files_are_refused(plain, tmp_path, files, words):
    with pytest.raises(ValueError, match=rf"^{tmp_path}.*{words}"):
        read(plain, tmp_path, files)


def test_a_model_in_a_folder_of_its_own(plain, tmp_path):
    plain.save_pretrained(tmp_path)
    (tmp_path / "0_BERT").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "sentence_bert_config.json"):
        (tmp_path / name).rename(tmp_path / "0_BERT" / name)
    content = json.loads((tmp_path / "modules.json").read_text())
    content[0]["path"] = "0_BERT"
    (tmp_path / "modules.json").write_text(json.dumps(content))
    np.testing.assert_array_equal(TextEmbedder.from_pretrained(tmp_path)(["cat"]), plain(["cat"]))


@pytest.mark.parametrize("place", ["", "0_BERT"])
def test_of_the_hub_only_what_is_needed_is_downloaded(plain, tmp_path, monkeypatch, place):
    with_settings(plain, pooling=("cls",)).save_pretrained(tmp_path / "there")
    (tmp_path / "there/pytorch_model.bin").write_text("large")
    if place:
        (tmp_path / "there" / place).mkdir()
        for name in ("config.json", "model.safetensors", "tokenizer.json", "sentence_bert_config.json"):
            (tmp_path / "there" / name).rename(tmp_path / "there" / place / name)
        content = json.loads((tmp_path / "there/modules.json").read_text())
        content[0]["path"] = place
        (tmp_path / "there/modules.json").write_text(json.dumps(content))

    def download(name, allow_patterns):
        assert name == "some/name"
        for path in (tmp_path / "there").rglob("*"):
            relative = str(path.relative_to(tmp_path / "there"))
            if path.is_file() and any(fnmatch.fnmatch(relative, pattern) for pattern in allow_patterns):
                copied = tmp_path / "here" / relative
                copied.parent.mkdir(parents=True, exist_ok=True)
                copied.write_bytes(path.read_bytes())
        return str(tmp_path / "here")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    embedder = TextEmbedder.from_pretrained("some/name")
    assert embedder.settings.pooling == ("cls",)
    np.testing.assert_array_equal(embedder(["cat"]), with_settings(plain, pooling=("cls",))(["cat"]))
    assert not (tmp_path / "here/pytorch_model.bin").exists()


def test_without_newer_files(plain, tmp_path):
    plain.save_pretrained(tmp_path)
    for name in ("sentence_bert_config.json", "config_sentence_transformers.json"):
        (tmp_path / name).unlink()
    assert TextEmbedder.from_pretrained(tmp_path).settings == EmbedderSettings()

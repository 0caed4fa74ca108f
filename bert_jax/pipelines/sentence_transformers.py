"""The files of sentence-transformers, which say how a BERT's outputs become the vector of a text."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from bert_jax.tokenizer_files import FILES as TOKENIZER_FILES
from transformer_jax.checkpoints import read_json
from transformer_jax.checks import Size, check_fields, check_value, listed, require, shown
from transformer_jax.hub import local_folder
from transformer_jax.weights import FILES as WEIGHT_FILES

MODULES, SENTENCES, PROMPTS = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"
FILES = (MODULES, PROMPTS, SENTENCES, f"*/{SENTENCES}", "*/config.json")

# Pooling -> its key in the pooling's config.json, in the order in which several of them are joined.
POOLINGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
}


@dataclasses.dataclass(frozen=True)
class EmbedderSettings:
    """How texts become vectors.

    Attributes:
        pooling: of "cls" (the first token), "max", "mean", and "mean_sqrt_len" (the sum over the square root of the
            number of tokens); the vectors of several are joined, in this order.
        normalize: whether vectors have the length 1.
        max_length: tokens of a text that are read; None: all that the model can.
        lowercase: whether texts are lower-cased before the tokenizer sees them.
        prompts: name -> what is put in front of a text.
        default_prompt: the name of that which is used where nothing else is said.

    Raises:
        ValueError: no such pooling or prompt, or a field of another type.
    """

    pooling: tuple[str, ...] = ("mean",)
    normalize: bool = False
    max_length: Size | None = None
    lowercase: bool = False
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_prompt: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        right = self.pooling != () and {*self.pooling} <= POOLINGS.keys()
        require(right, f"pooling must be a tuple of {listed([*POOLINGS])}, not {shown(self.pooling)}")
        require(isinstance(self.prompts, Mapping), f"prompts must be texts by name, not {shown(self.prompts)}")
        for name, prompt in self.prompts.items():
            check_value("the name of a prompt", name, str)
            check_value(f"prompts[{shown(name)}]", prompt, str)
        known = self.default_prompt is None or self.default_prompt in self.prompts
        require(known, f"default_prompt is {shown(self.default_prompt)}, but prompts has {listed([*self.prompts])}")


def read_settings(name: str | Path) -> tuple[str | Path, EmbedderSettings]:
    """Where the BERT lies, and what is made of its output; without modules.json the folder itself, and the defaults.

    Raises:
        ValueError: a file is broken, or asks for what is not known here. It names the file.
    """
    folder = local_folder(name, FILES)
    if not (folder / MODULES).exists():
        return name, EmbedderSettings()
    places = _places(folder)
    model_folder = folder / places["Transformer"]
    fields = read_json(folder / places["Pooling"] / "config.json")
    sentences, prompts = _object(model_folder / SENTENCES), _object(folder / PROMPTS)
    try:
        chosen = prompts.get("prompts") or {}
        require(isinstance(chosen, dict), f"prompts must be an object, not {shown(chosen)}")
        settings = EmbedderSettings(
            pooling=_poolings(fields, bool(chosen)),
            normalize="Normalize" in places,
            max_length=sentences.get("max_seq_length"),
            lowercase=sentences.get("do_lower_case", False),
            prompts=chosen,
            default_prompt=prompts.get("default_prompt_name"),
        )
    except ValueError as error:
        raise ValueError(f"{folder} ({MODULES} and the files beside it): {error}") from error
    if model_folder == folder:
        return name, settings
    place = places["Transformer"]
    return local_folder(name, [f"{place}/{file}" for file in (*WEIGHT_FILES, *TOKENIZER_FILES)]) / place, settings


def settings_files(settings: EmbedderSettings, width: int, longest: int) -> dict[str, bytes]:
    """The files of sentence-transformers, by their place in the folder.

    Args:
        width: of the model's output.
        longest: tokens of a text that are read.
    """
    names = ["Transformer", "Pooling", *(["Normalize"] if settings.normalize else [])]
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{name}" if index else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for index, name in enumerate(names)
    ]
    poolings = {key: pooling in settings.pooling for pooling, key in POOLINGS.items()}
    contents: dict[str, Any] = {
        MODULES: modules,
        SENTENCES: {"max_seq_length": longest, "do_lower_case": settings.lowercase},
        PROMPTS: {"prompts": dict(settings.prompts), "default_prompt_name": settings.default_prompt},
        "1_Pooling/config.json": {"word_embedding_dimension": width, **poolings},
    }
    return {place: (json.dumps(content, indent=2) + "\n").encode() for place, content in contents.items()}


def _places(folder: Path) -> dict[str, PurePosixPath]:
    """Kind of module -> its folder within the folder."""
    path, places = folder / MODULES, {}
    modules = read_json(path, list)
    for module in modules:
        known = isinstance(module, dict) and isinstance(module.get("type"), str) and isinstance(module.get("path"), str)
        require(known, f"{path}: each module must have a type and a path, not {shown(module)}")
        place = PurePosixPath(module["path"])
        require(
            not place.is_absolute() and ".." not in place.parts, f"{path}: {shown(module['path'])} leaves the folder"
        )
        places[module["type"].rpartition(".")[2]] = place
    kinds = [*places]
    require(
        kinds in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) and len(kinds) == len(modules),
        f"{path}: the modules must be Transformer, Pooling and perhaps Normalize, not {listed(kinds) or 'none'}",
    )
    return places


def _object(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _poolings(fields: Mapping[str, Any], prompts: bool) -> tuple[str, ...]:
    """Of a pooling's config.json; without any word about the mean, that is one of them."""
    fields = {"pooling_mode_mean_tokens": True, **fields}
    on = [key for key, value in fields.items() if key.startswith("pooling_mode_") and value is True]
    unknown = sorted({*on} - {*POOLINGS.values()} | {key for key in fields if key == "pooling_mode"})
    require(not unknown, f"the pooling {listed(unknown)} is not known; known are {listed([*POOLINGS])}")
    require(not prompts or fields.get("include_prompt", True) is True, "poolings without the prompt are not known")
    return tuple(pooling for pooling, key in POOLINGS.items() if key in on)

"""Model folders: on disk, or fetched from the Hugging Face hub."""

import os
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.utils import HFValidationError, validate_repo_id

from transformer_jax.checks import require, shown


def local_folder(name: str | Path, patterns: Sequence[str]) -> Path:
    """The folder of that name if there is one, else the hub's repository of that name, downloaded and cached.

    Args:
        patterns: the files that are needed; nothing else is downloaded.

    Raises:
        ValueError: there is no such folder, and the hub does not have it or cannot be reached.
    """
    require(isinstance(name, str | Path), f"a model is named by a str or Path, not {shown(name)}")
    if name != "" and os.path.isdir(name):
        return Path(name)
    require(name == "" or not os.path.exists(name), f"{name} is no folder: name the one that holds config.json")
    try:
        validate_repo_id(str(name))
    except HFValidationError as error:
        raise ValueError(f"{shown(str(name))} is neither a folder nor a name of the Hugging Face hub") from error
    try:
        return Path(huggingface_hub.snapshot_download(str(name), allow_patterns=list(patterns)))
    # Connection, authentication, cache and name errors share no base class but this one.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name} is not a folder, and the Hugging Face hub did not provide it: {reason}") from error

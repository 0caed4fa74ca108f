"""Model folders: on disk, or fetched from the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path

import huggingface_hub


def local_folder(name: str | Path, patterns: Sequence[str]) -> Path:
    """The folder of that name if there is one, else the hub's repository of that name, downloaded and cached.

    Args:
        patterns: the files that are needed; nothing else is downloaded.

    Raises:
        ValueError: there is no such folder, and the hub does not have it or cannot be reached.
    """
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(huggingface_hub.snapshot_download(str(name), allow_patterns=list(patterns)))
    # Connection, authentication, cache and name errors share no base class but this one.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name} is not a folder, and the Hugging Face hub did not provide it: {reason}") from error

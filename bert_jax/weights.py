"""Where a BERT's weights are: a folder, or a repository of the hub, of which the files that are needed are fetched."""

from pathlib import Path

from transformer_jax import weights
from transformer_jax.checks import printed


def model_folder(name: str | Path) -> Path:
    """The folder of that name, or the hub's repository, downloaded.

    Raises:
        ValueError: there is neither, or the folder holds nothing but TensorFlow's files.
    """
    folder = weights.model_folder(name)
    checkpoints = sorted(path.name for path in folder.glob("*.ckpt*.index"))
    if checkpoints and not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} has only {printed(checkpoints[0].removesuffix('.index'))}, TensorFlow's format, which is not "
            "read. Convert it where transformers 4 with TensorFlow and PyTorch is, in this folder: transformers."
            f"BertForPreTraining.from_pretrained({checkpoints[0]!r}, from_tf=True, config=transformers.BertConfig."
            "from_json_file('bert_config.json')).save_pretrained('.')"
        )
    return folder

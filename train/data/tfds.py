"""TensorFlow Datasets without TensorFlow: random access over ArrayRecord files."""

import importlib
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from train.errors import InputError
from transformer_jax.checks import printed

_PREFIX = "tfds:"
_FORM = "tfds:NAME[/CONFIG][:SPLIT]"
_FOLDER_FILES = ("dataset_info.json", "features.json")


def is_tfds(spec: str) -> bool:
    """Whether `spec` names TFDS data: `tfds:NAME[/CONFIG][:SPLIT]`, or a folder that TFDS prepared."""
    return spec.startswith(_PREFIX) or all(os.path.isfile(os.path.join(spec, name)) for name in _FOLDER_FILES)


def split_of(spec: str) -> str:
    """The split that TFDS data names itself, "" where it names none."""
    return spec.removeprefix(_PREFIX).partition(":")[2] if spec.startswith(_PREFIX) else ""


class TfdsSource:
    """Random access to one split; text comes as `str`, all else as TFDS decodes it (NumPy and Python values).

    Attributes:
        name: what was read, for messages: data set, version and split.
        folder: where the files are.
        class_names: the names of the classes of each `ClassLabel` field.
    """

    def __init__(self, builder: Any, split: str, option: str = "--data"):
        self._rows = builder.as_data_source(split)
        self._option = option
        self.name = f"{builder.info.full_name} {split}"
        self.folder = Path(builder.data_dir)
        self.class_names: dict[str, list[str]] = {
            field: list(feature.names)
            for field, feature in builder.info.features.items()
            if getattr(feature, "names", None)
        }

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):  # also what ends iteration over a sequence
            raise IndexError(f"row {index} of {self.name}, which has {len(self)} rows")
        try:
            return _with_text(self._rows[index])
        except UnicodeDecodeError as error:
            reason = f"holds bytes that are not UTF-8 text: {error}"
            raise InputError(f"{self._option}: {self.name}: row {index} {reason}") from error
        except Exception as error:  # TFDS raises whatever its file layer does
            reason = " ".join(str(error).split())
            raise InputError(f"{self._option}: {self.name}: row {index} cannot be read: {reason}") from error


def tfds_source(spec: str, split: str, option: str = "--data") -> TfdsSource:
    """Opens one split of a data set that TFDS has prepared as ArrayRecord.

    Args:
        spec: `tfds:NAME[/CONFIG][:SPLIT]`, searched in the folder of the environment variable TFDS_DATA_DIR (or
            where TFDS keeps its data), or a folder with `dataset_info.json` and `features.json`.
        split: the split where `spec` names none, in TFDS' language: `train`, `train[:10%]`, ...
        option: what to blame in messages.

    Raises:
        InputError: `spec` has another form, names no known data set, configuration or split, or its data is not
            there; the message then holds the command that prepares it.
    """
    import tensorflow_datasets as tfds

    if not is_tfds(spec):
        raise InputError(
            f"{option}: {printed(spec)} is neither {_FORM} nor a folder with {' and '.join(_FOLDER_FILES)}"
        )
    name, _, own_split = spec.removeprefix(_PREFIX).partition(":")
    if spec.startswith(_PREFIX) and not re.fullmatch(r"\w+(/[\w.+-]+)?", name):
        raise InputError(f"{option}: cannot read {spec!r}; write {_FORM}, such as tfds:glue/sst2:train")
    try:
        if not spec.startswith(_PREFIX):
            return _open_split(tfds.builder_from_directory(spec), split, printed(spec), option)
        return _open_split(_find_builder(name, printed(spec), option), own_split or split, printed(spec), option)
    except InputError:
        raise
    except Exception as error:  # damaged descriptions of the data: TFDS raises whatever it meets first
        reason = " ".join(str(error).split())
        raise InputError(f"{option}: {printed(spec)} cannot be read as TFDS data: {reason}") from error


def _find_builder(name: str, spec: str, option: str) -> Any:
    """The builder of `NAME[/CONFIG]`: from its prepared files, else from its registered class."""
    from tensorflow_datasets.core import read_only_builder, registered

    dataset, _, config = name.partition("/")
    try:
        _register(dataset)  # now, so that TFDS knows which configuration is the default one
    except ImportError as error:
        raise InputError(f"{option}: {spec}: {dataset} needs a package that is not installed: {error}") from error
    try:
        return read_only_builder.builder_from_files(name, data_dir=_data_dir())
    except registered.DatasetNotFoundError:
        pass  # nothing prepared
    try:
        builder_class: Any = registered.imported_builder_cls(dataset)
    except (registered.DatasetNotFoundError, TypeError) as error:  # the latter: an abstract class
        raise InputError(
            f"{option}: {spec}: no prepared data under {_searched()} and TFDS has no data set {dataset!r}"
        ) from error
    configs = list(builder_class.builder_configs)
    if config and config not in configs:
        known = f"has the configurations {', '.join(configs)}" if configs else "has no configurations"
        raise InputError(f"{option}: {spec}: no configuration {config!r}; {dataset} {known}")
    try:
        return builder_class(config=config or None, data_dir=_data_dir())
    except (ValueError, TypeError) as error:  # a base of other data sets
        raise InputError(f"{option}: {spec}: {dataset!r} is no data set of its own: {error}") from error


def _open_split(builder: Any, split: str, spec: str, option: str) -> TfdsSource:
    try:
        source = TfdsSource(builder, split, option)
        source._rows[0]  # files are opened when they are read
        return source
    except Exception as error:  # TFDS raises whatever its file layer does; what matters is what the user can do
        if not builder.info.splits or not builder.info.available_file_formats():
            raise InputError(
                f"{option}: {spec}: no prepared data under {_searched()}; prepare it with `{_command(builder)}`"
            ) from error
        if isinstance(error, NotImplementedError):
            raise InputError(
                f"{option}: {spec}: the data in {builder.data_dir} is not ArrayRecord; prepare it in another "
                f"TFDS_DATA_DIR with `{_command(builder)}`"
            ) from error
        if split in builder.info.splits:
            reason = " ".join(str(error).split())
            raise InputError(f"{option}: {spec}: data files in {builder.data_dir} cannot be read: {reason}") from error
        splits = ", ".join(builder.info.splits)
        raise InputError(f"{option}: {spec}: cannot read the split {split!r}; the data has {splits}") from error


def _register(dataset: str) -> None:
    """Imports the module that registers a builder of TFDS' older layout, where builders are imported lazily.

    `tfds.builder` only finds a builder of that layout once its module is imported; newer ones, in
    `tensorflow_datasets.datasets`, it finds by itself.
    """
    for module in _legacy_modules().get(dataset, []):
        importlib.import_module(module)


@cache
def _legacy_modules() -> dict[str, list[str]]:
    """Registered name -> modules with a class of that name, read from the sources: no builder is imported."""
    import tensorflow_datasets
    from tensorflow_datasets.core import naming

    root = Path(tensorflow_datasets.__path__[0])
    aside = {"core", "testing", "scripts", "datasets", "dataset_collections", "proto", "typing.py"}
    modules: dict[str, list[str]] = {}
    for path in sorted(root.glob("*/**/*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0] in aside or parts[-1] == "__init__" or path.stem.endswith("_test"):
            continue
        source = path.read_text(encoding="utf-8")
        names = {naming.camelcase_to_snakecase(name) for name in re.findall(r"^class (\w+)\(", source, re.M)}
        names |= set(re.findall(r"^  name = ['\"](\w+)['\"]", source, re.M))
        for name in names:
            modules.setdefault(name, []).append(".".join(("tensorflow_datasets", *parts)))
    return modules


def _data_dir() -> str | None:
    """TFDS reads the variable when it is imported only; here it is honoured at every call."""
    return os.environ.get("TFDS_DATA_DIR") or None


def _searched() -> str:
    from tensorflow_datasets.core.utils import file_utils

    return ", ".join(str(folder) for folder in file_utils.list_data_dirs(given_data_dir=_data_dir()))


def _command(builder: Any) -> str:
    """The command that prepares a builder's data where it will be found."""
    config = f"/{builder.builder_config.name}" if builder.builder_config else ""
    module = type(builder).__module__
    imports = "import tensorflow_datasets as tfds" + (f", {module}" if "_dataset_builder" not in module else "")
    name = f"{builder.name}{config}"
    where = f"TFDS_DATA_DIR={_data_dir()} " if _data_dir() else ""
    return f"{where}python -c \"{imports}; tfds.builder('{name}', file_format='array_record').download_and_prepare()\""


def _with_text(value: Any) -> Any:
    """Bytes, which is how TFDS gives text, become `str`, in nested dicts and object arrays as well."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, dict):
        return {key: _with_text(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [_with_text(inner) for inner in value.tolist()]
    return [_with_text(inner) for inner in value] if isinstance(value, list) else value

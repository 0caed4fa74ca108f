"""What every model can do with a folder: be read from it, as it is or for other labels, and be written to it."""

import dataclasses
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax.typing import DTypeLike

from bert_jax.config import BertConfig, ProblemType, default_labels, label_names, unnamed
from bert_jax.names import from_hugging_face, of_parts, to_hugging_face
from bert_jax.weights import model_folder
from transformer_jax.checkpoints import read_config, write_files
from transformer_jax.checks import Positions, check_value, listed, require
from transformer_jax.names import Flat, Shapes
from transformer_jax.positions import hierarchical_positions
from transformer_jax.stack import unstack_layers
from transformer_jax.weights import read_weights


class PretrainedModel(nn.Module):
    """A model over a BertConfig that can be read from a folder and written to one.

    Attributes:
        dtype: of the computation; logits are float32 in any case. Parameters are stored in `param_dtype`.
    """

    config: BertConfig
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    # The rank of input_ids, [B, L] or [B, C, L].
    input_rank: ClassVar[int] = 2
    # Parts that have an output for each label, and the field of the configuration that names those.
    label_fields: ClassVar[dict[str, str]] = {}

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        dtype: DTypeLike = jnp.float32,
        *,
        num_labels: int | None = None,
        id2label: Sequence[str] | Mapping[int, str] | None = None,
        slot_labels: Sequence[str] | None = None,
        problem_type: ProblemType | None = None,
        max_position_embeddings: int | None = None,
        seed: int = 0,
    ) -> tuple[Self, dict[str, Any]]:
        """Reads a folder in Hugging Face's layout, or a repository of the hub -> (model, float32 parameters).

        The weights are model.safetensors, or the files that model.safetensors.index.json names, or
        flax_model.msgpack; the first of these that is there. A head that the file does not have is initialised, and
        named in a warning; heads of the file that this class does not have are left out.

        Args:
            num_labels, id2label, slot_labels, problem_type: instead of what config.json says. A classifier of another
                number of labels, or of labels with other names, is initialised anew, and the warning says so; labels
                that have only numbers in the file (LABEL_0) get the names and keep their weights.
            max_position_embeddings: up to the square of the file's n; the table is extended to so many rows by
                `transformer_jax.hierarchical_positions`, and its first n stay what they are.
            seed: draws what is initialised.

        Raises:
            ValueError: no such folder, a file is missing or broken, the configuration is not a BERT's, names or
                shapes in the file are not exactly what the configuration asks for, or tensors are not numbers
                that float32 can hold.
        """
        folder = model_folder(name)
        fields = read_config(folder)
        try:
            said = BertConfig.from_json(fields)
        except ValueError as error:
            raise ValueError(f"{folder / 'config.json'}: {error}") from error
        model = cls(_relabelled(said, num_labels, id2label, slot_labels, problem_type), dtype)
        positions = _positions(said, max_position_embeddings, folder)
        tensors, source = read_weights(folder, _architecture(fields))
        _check_depth(tensors, said.num_hidden_layers, source)
        shapes = model._shapes_for(folder)
        renewed = model._of_other_labels(tensors, said, folder)
        flat, absent = from_hugging_face(tensors, shapes, str(folder), [*renewed])
        if absent or renewed:
            reasons = [f"no {' and no '.join(absent)}"] if absent else []
            text = f"{folder}: the file has {' and '.join([*reasons, *renewed.values()])}; {cls.__name__} initialised "
            fresh = of_parts(shapes, [*absent, *renewed])
            warnings.warn(f"{text}it at random, to be trained: {', '.join(sorted(fresh))}", stacklevel=2)
            flat |= model.initial_parameters([*absent, *renewed], seed)
        model, flat = model._with_positions(flat, positions)
        return model, flax.traverse_util.unflatten_dict({k: jnp.asarray(v) for k, v in flat.items()}, sep="/")

    @nn.nowrap
    def save_pretrained(self, folder: str | Path, params: dict[str, Any]) -> None:
        """Writes config.json and model.safetensors (float32) for Hugging Face transformers; never half a file.

        Args:
            params: in the canonical layout or in that of `scan_layers`.

        Raises:
            ValueError: names or shapes are not those of this model, or parameters are not finite. Nothing is written.
        """
        folder = Path(folder)
        tensors = to_hugging_face(params, self.parameter_shapes())
        config = {"architectures": [type(self).__name__], **self.config.to_json()}
        folder.mkdir(parents=True, exist_ok=True)
        weights = safetensors.numpy.save(tensors, metadata={"format": "pt"})
        text = json.dumps(config, indent=2) + "\n"
        write_files(folder, {"model.safetensors": weights, "config.json": text.encode()})

    @nn.nowrap
    def example_ids(self) -> jax.Array:
        """The smallest input_ids, for `init`."""
        return jnp.zeros((1,) * self.input_rank, jnp.int32)

    @nn.nowrap
    def parameter_shapes(self) -> Shapes:
        """Path ("bert/pooler/kernel") -> shape in the canonical layout. Nothing is computed."""
        # Scanned, one layer is traced and not all of them.
        scanned = self.clone(config=dataclasses.replace(self.config, scan_layers=True))
        tree = jax.eval_shape(scanned.init, jax.random.key(0), self.example_ids())["params"]
        flat = flax.traverse_util.flatten_dict(unstack_layers(tree), sep="/")
        return {path: leaf.shape for path, leaf in flat.items()}

    @nn.nowrap
    def initial_parameters(self, parts: list[str], seed: int = 0) -> Flat:
        """Path -> freshly initialised parameters of the named parts alone, none of which is a layer's."""
        shallow = self.clone(config=dataclasses.replace(self.config, num_hidden_layers=1))

        def init(key: jax.Array) -> dict[str, jax.Array]:
            params = shallow.init(key, self.example_ids())["params"]
            flat = flax.traverse_util.flatten_dict(params, sep="/")
            return {path: flat[path] for path in of_parts(flat, parts)}

        return jax.device_get(jax.jit(init)(jax.random.key(seed)))

    @nn.nowrap
    def _shapes_for(self, folder: Path) -> Shapes:
        try:
            return self.parameter_shapes()
        except ValueError as error:  # the model cannot be made with these labels
            raise ValueError(f"{folder}: {error}") from error

    @nn.nowrap
    def _of_other_labels(self, tensors: Flat, said: BertConfig, folder: Path) -> dict[str, str]:
        """The parts of the file that are for other labels than this model's, and how to say that of the file.

        Raises:
            ValueError: a part has another number of labels than config.json, and nobody asked for another one.
        """
        parts = {}
        for part, field in self.label_fields.items():
            weight = tensors.get(f"{part}.weight")
            if weight is None:
                continue
            old, new, rows = getattr(said, field), getattr(self.config, field), np.size(weight, 0) if weight.ndim else 0
            require(
                new != old or rows == len(new),
                f"{folder}: its {part} has {rows} labels, but {len(new)} are asked for ({field} of config.json)",
            )
            if new != old and (rows != len(new) or not unnamed(old)):
                parts[part] = f"a {part} for {rows} labels and not for these {len(new)} ({listed([*new], 3)})"
        return parts

    @nn.nowrap
    def _with_positions(self, flat: Flat, positions: int) -> tuple[Self, Flat]:
        """The model and its parameters with so many positions."""
        if positions == self.config.max_position_embeddings:
            return self, flat
        path = next(path for path in flat if path.endswith("embeddings/position/embedding"))
        table = np.asarray(hierarchical_positions(jnp.asarray(flat[path]), positions))
        config = dataclasses.replace(self.config, max_position_embeddings=positions)
        return self.clone(config=config), flat | {path: table}


def _relabelled(
    said: BertConfig,
    num_labels: int | None,
    id2label: Sequence[str] | Mapping[int, str] | None,
    slot_labels: Sequence[str] | None,
    problem_type: ProblemType | None,
) -> BertConfig:
    """The configuration of the file with what the caller says instead."""
    changes: dict[str, Any] = {} if problem_type is None else {"problem_type": problem_type}
    if num_labels is not None and num_labels != said.num_labels:
        changes["id2label"] = default_labels(num_labels)
    if id2label is not None:
        names = changes["id2label"] = label_names("id2label", id2label)
        fits = num_labels in (None, len(names))
        require(fits, f"num_labels is {num_labels}, but id2label has {len(names)} names")
    if slot_labels is not None:
        changes["slot_labels"] = label_names("slot_labels", slot_labels)
    return dataclasses.replace(said, **changes)


def _positions(said: BertConfig, asked: int | None, folder: Path) -> int:
    n = said.max_position_embeddings
    check_value("max_position_embeddings", asked, Positions | None)
    fits = asked is None or n <= asked <= n * n
    require(fits, f"max_position_embeddings must be from {n}, what {folder} has, to {n * n}, not {asked}")
    return n if asked is None else asked


def _architecture(fields: Mapping[str, Any]) -> str:
    """The class that wrote a config.json, for messages."""
    names = fields.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    return name if isinstance(name, str) and re.fullmatch("Bert[A-Za-z]{1,40}", name) else "BertForPreTraining"


def _check_depth(tensors: Flat, layers: int, source: Path) -> None:
    # Before the names of thousands of layers are made up, of which the file has none.
    found = {name.split("encoder.layer.")[1].split(".")[0] for name in tensors if "encoder.layer." in name}
    require(
        not found or len(found) >= layers,
        f"{source.parent / 'config.json'}: num_hidden_layers {layers}, but {source.name} has {len(found)} layers",
    )

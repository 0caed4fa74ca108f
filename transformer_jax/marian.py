"""Marian and OPUS-MT models in Hugging Face's layout -> our Transformer: names, configuration, weights.

A Marian is a post-norm Transformer with sinusoids in halves, whose decoder starts from the padding token, the last of
the vocabulary, with an embedding of zeros. PyTorch's library reads a start with any embedding, but Marian itself and
CTranslate2 take it for zeros whatever the table holds. So a start that is not zero is written as row 0 of the decoder's
positions, where nothing else ever stands: all of them compute the same then.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from transformer_jax.checkpoints import shapes_by_name, to_float32
from transformer_jax.checks import check_value, require, shown
from transformer_jax.config import TransformerConfig
from transformer_jax.names import Flat, drop_copies, from_torch, rows_of
from transformer_jax.positions import sinusoidal_positions
from transformer_jax.seq2seq import Transformer
from transformer_jax.weights import read_weights

SHARED, SOURCE, TARGET = (f"model.{part}.weight" for part in ("shared", "encoder.embed_tokens", "decoder.embed_tokens"))
SOFTMAX, BIAS = "lm_head.weight", "final_logits_bias"
ENCODER_POSITIONS, DECODER_POSITIONS = (f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder"))

EPSILON = 1e-5  # of PyTorch's layer normalisation
FORBIDDEN = -1e4  # a bias with which a token's probability is 0 in float32, and finite in float16


# --- names -------------------------------------------------------------------------------------------------------


def _linear(path: str, *names: str) -> dict[str, tuple[str, ...]]:
    kernel, bias = (tuple(f"{name}.{part}" for name in names) for part in ("weight", "bias"))
    return {f"{path}/kernel": kernel, f"{path}/bias": bias}


def _norm(path: str, name: str) -> dict[str, tuple[str, ...]]:
    return {f"{path}/scale": (f"{name}.weight",), f"{path}/bias": (f"{name}.bias",)}


_E, _D = "model.encoder.layers.{i}", "model.decoder.layers.{i}"
# Our path -> Hugging Face's names, see `transformer_jax.names`.
NAMES: dict[str, tuple[str, ...]] = {
    "embedding/embedding": (SHARED,),
    "decoder_embedding/embedding": (TARGET,),
    "lm_head/embedding": (SOFTMAX,),
    "final_logits_bias": (BIAS,),
    **_linear("encoder/layer_{i}/attention/qkv", *(f"{_E}.self_attn.{each}_proj" for each in "qkv")),
    **_linear("encoder/layer_{i}/attention/out", f"{_E}.self_attn.out_proj"),
    **_norm("encoder/layer_{i}/attention_norm", f"{_E}.self_attn_layer_norm"),
    **_linear("encoder/layer_{i}/mlp/up", f"{_E}.fc1"),
    **_linear("encoder/layer_{i}/mlp/down", f"{_E}.fc2"),
    **_norm("encoder/layer_{i}/mlp_norm", f"{_E}.final_layer_norm"),
    **_linear("decoder/layer_{i}/self_attention/qkv", *(f"{_D}.self_attn.{each}_proj" for each in "qkv")),
    **_linear("decoder/layer_{i}/self_attention/out", f"{_D}.self_attn.out_proj"),
    **_norm("decoder/layer_{i}/self_attention_norm", f"{_D}.self_attn_layer_norm"),
    **_linear("decoder/layer_{i}/cross_attention/query", f"{_D}.encoder_attn.q_proj"),
    **_linear("decoder/layer_{i}/cross_attention/key_value", *(f"{_D}.encoder_attn.{each}_proj" for each in "kv")),
    **_linear("decoder/layer_{i}/cross_attention/out", f"{_D}.encoder_attn.out_proj"),
    **_norm("decoder/layer_{i}/cross_attention_norm", f"{_D}.encoder_attn_layer_norm"),
    **_linear("decoder/layer_{i}/mlp/up", f"{_D}.fc1"),
    **_linear("decoder/layer_{i}/mlp/down", f"{_D}.fc2"),
    **_norm("decoder/layer_{i}/mlp_norm", f"{_D}.final_layer_norm"),
}


def names_of(config: TransformerConfig, paths: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Hugging Face's names for the parameters of such a model."""
    own = {} if config.share_encoder_decoder_embeddings else {"embedding/embedding": (SOURCE,)}
    return rows_of(NAMES | own, paths)


def target_path(config: TransformerConfig) -> str:
    """The table that the decoder reads."""
    return "embedding/embedding" if config.share_encoder_decoder_embeddings else "decoder_embedding/embedding"


# --- the configuration -------------------------------------------------------------------------------------------

# Our field -> Hugging Face's, and what PyTorch's library takes where config.json is silent. It reads neither
# normalize_before nor normalize_embedding: its Marian is post-norm.
FIELDS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 58101),
    "decoder_vocab_size": ("decoder_vocab_size", None),
    "features": ("d_model", 1024),
    "num_heads": ("encoder_attention_heads", 16),
    "decoder_num_heads": ("decoder_attention_heads", 16),
    "mlp_dim": ("encoder_ffn_dim", 4096),
    "decoder_mlp_dim": ("decoder_ffn_dim", 4096),
    "encoder_layers": ("encoder_layers", 12),
    "decoder_layers": ("decoder_layers", 12),
    "activation": ("activation_function", "gelu"),
    "max_length": ("max_position_embeddings", 1024),
    "dropout_rate": ("dropout", 0.1),
    "attention_dropout_rate": ("attention_dropout", 0.0),
    "activation_dropout_rate": ("activation_dropout", 0.0),
    "share_encoder_decoder_embeddings": ("share_encoder_decoder_embeddings", True),
    "tie_word_embeddings": ("tie_word_embeddings", True),
    "pad_id": ("pad_token_id", 58100),
    "eos_id": ("eos_token_id", 0),
    "decoder_start_id": ("decoder_start_token_id", 58100),
}
SAME_ACTIVATION = {"silu": "swish", "gelu_pytorch_tanh": "gelu_new"}
# Fields that are None where they are another's.
DEFAULTS = {"decoder_vocab_size": "vocab_size", "decoder_num_heads": "num_heads", "decoder_mlp_dim": "mlp_dim"}


def config_from_json(fields: Mapping[str, Any]) -> TransformerConfig:
    """From the object of a Marian's config.json; keys that change nothing here are ignored.

    Raises:
        ValueError: a value is out of range, or the file describes no encoder-decoder.
    """
    for key, right in (("is_encoder_decoder", True), ("is_decoder", False)):
        value = fields.get(key, right)
        require(value is right, f"{key} {shown(value)} is not supported: only {right} is")
    hints = get_type_hints(TransformerConfig, include_extras=True)
    said: dict[str, Any] = {}
    for ours, (theirs, default) in FIELDS.items():
        value = fields.get(theirs, default)
        if ours == "activation" and isinstance(value, str):
            value = SAME_ACTIVATION.get(value, value)
        # Of these only decoder_vocab_size may be null.
        check_value(theirs, value, hints[ours if default is None else DEFAULTS.get(ours, ours)])
        said[ours] = value
    for name, other in DEFAULTS.items():
        if said[name] == said[other]:
            said[name] = None
    scaled = fields.get("scale_embedding", False)
    check_value("scale_embedding", scaled, bool)
    embeddings: Any = "scaled" if scaled else "plain"
    return TransformerConfig(norm_epsilon=EPSILON, embeddings=embeddings, positions="halves", **said)


def config_to_json(config: TransformerConfig) -> dict[str, Any]:
    """The object of a config.json that Hugging Face transformers reads."""
    said = {ours: getattr(config, ours) for ours in FIELDS}
    said |= {name: said[other] for name, other in DEFAULTS.items() if said[name] is None}
    return {
        "architectures": ["MarianMTModel"],
        "model_type": "marian",
        "is_encoder_decoder": True,
        "scale_embedding": config.embeddings == "scaled",
        **{theirs: said[ours] for ours, (theirs, _) in FIELDS.items()},
    }


# --- reading -----------------------------------------------------------------------------------------------------


def load_marian(
    folder: str | Path, fields: Mapping[str, Any], dtype: DTypeLike = jnp.float32
) -> tuple[Transformer, dict[str, Any]]:
    """Reads the weights beside a config.json -> (model, float32 parameters).

    Raises:
        ValueError: a file is missing or broken, the configuration cannot be, names or shapes in the file are not
            exactly what it asks for, tables that should be one differ, or positions are no sinusoids.
    """
    try:
        config = config_from_json(fields)
    except ValueError as error:
        raise ValueError(f"{Path(folder) / 'config.json'}: {error}") from error
    stored, path = read_weights(Path(folder), "MarianMTModel")
    source = str(path)
    tensors = _full_names(stored, source)
    start_D = _take_positions(tensors, config, source)
    tensors = to_float32(tensors, source)
    config = _with_bias(tensors, _with_one_table_each(tensors, config, source), source)
    model = Transformer(config, dtype)
    shapes = shapes_by_name(model.parameter_shapes(), "/")
    flat = from_torch(tensors, names_of(config, shapes), shapes, source)
    if start_D is not None:
        _put_start(flat, config, start_D, source)
    return model, flax.traverse_util.unflatten_dict({k: jnp.asarray(v) for k, v in flat.items()}, sep="/")


def _full_names(stored: Flat, source: str) -> Flat:
    """The names of a MarianMTModel; those of a MarianModel lack the first word."""
    tensors: Flat = {}
    for name, tensor in stored.items():
        full = f"model.{name}" if name.startswith(("shared.", "encoder.", "decoder.")) else name
        require(full not in tensors, f"{source} has two tensors for {full}")
        tensors[full] = tensor
    return tensors


def _take_positions(tensors: Flat, config: TransformerConfig, source: str) -> np.ndarray | None:
    """Takes out the tables of positions, which must be sinusoids; what the decoder's row 0 has more [D], or None."""
    start_D = None
    right = (config.max_length, config.features)
    for name in (ENCODER_POSITIONS, DECODER_POSITIONS):
        if name not in tensors:
            continue
        stored = tensors.pop(name)
        require(stored.shape == right, f"{source} does not fit its config.json: {name} is {stored.shape}, not {right}")
        table_PD = to_float32({name: stored}, source)[name]
        beside_PD = table_PD - sinusoidal_positions(*right, "halves")
        # As exact as the type in which they are stored, which is for numbers up to 1; and others round differently.
        far_P = np.abs(beside_PD).max(axis=1) > max(1e-5, float(jnp.finfo(stored.dtype).eps))
        if name == DECODER_POSITIONS and far_P[0]:
            start_D, far_P[0] = beside_PD[0], False
        require(not far_P.any(), f"{source}: row {far_P.argmax()} of {name} is no sinusoid, as a Marian's must be")
    return start_D


def _put_start(flat: Flat, config: TransformerConfig, start_D: np.ndarray, source: str) -> None:
    """Adds to the start's embedding what was found in its position's place."""
    start, path = config.decoder_start_id, target_path(config)
    require(
        only_starts(flat, config),
        f"{source}: row 0 of {DECODER_POSITIONS} is no sinusoid, as a Marian's must be unless its start is the padding "
        f"and {BIAS} forbids that ({FORBIDDEN})",
    )
    scale = config.features**0.5 if config.embeddings == "scaled" else 1.0
    flat[path] = flat[path].copy()
    flat[path][start] += start_D / scale


def only_starts(flat: Flat, config: TransformerConfig) -> bool:
    """Whether the start token is read nowhere but in front, and never predicted: its row then matters only there."""
    start = config.decoder_start_id
    # Half of it: in bfloat16 it is a little less.
    return start == config.pad_id and config.final_logits_bias and bool(flat[BIAS][start] <= FORBIDDEN / 2)


def _with_one_table_each(tensors: Flat, config: TransformerConfig, source: str) -> TransformerConfig:
    """Leaves of tables that are one the one that `NAMES` has."""
    reason = "but config.json says they are one (share_encoder_decoder_embeddings, tie_word_embeddings)"
    if config.share_encoder_decoder_embeddings and not config.tie_word_embeddings:
        # PyTorch's library ties nothing then, and has one more table that it never reads. Before version 5 it tied
        # source and target, and that table was both.
        table = tensors.pop(SHARED, None)
        if table is not None and SOURCE not in tensors and TARGET not in tensors:
            tensors[SOURCE] = tensors[TARGET] = table
        one = SOURCE in tensors and TARGET in tensors and np.array_equal(tensors[SOURCE], tensors[TARGET])
        config = dataclasses.replace(config, share_encoder_decoder_embeddings=one)
    if config.share_encoder_decoder_embeddings:
        drop_copies(tensors, {SOURCE: SHARED, TARGET: SHARED}, source, reason)
    if config.tie_word_embeddings:
        original = SHARED if config.share_encoder_decoder_embeddings else TARGET
        drop_copies(tensors, {SOFTMAX: original}, source, reason)
    return config


def _with_bias(tensors: Flat, config: TransformerConfig, source: str) -> TransformerConfig:
    """The bias as a row, or taken out where it is zero, as it nearly always is."""
    bias = tensors.pop(BIAS, None)
    if bias is None:
        return config
    right = (1, config.target_vocab_size)
    require(bias.shape == right, f"{source} does not fit its config.json: {BIAS} is {bias.shape}, not {right}")
    if not bias.any():
        return config
    tensors[BIAS] = bias[0]
    return dataclasses.replace(config, final_logits_bias=True)

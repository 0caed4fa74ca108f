"""A model of somebody else, trained with PyTorch's nn.Transformer: Tajik to Persian, letter by letter.

It is that of the distribution tg2fa-translit 1.0, of which no code is executed and nothing is kept.
"""

import ast
import importlib.util
import itertools
from pathlib import Path

import flax.traverse_util
import jax
import numpy as np
import pytest

from transformer_jax import Transformer, TransformerConfig
from transformer_jax.checkpoints import shapes_by_name
from transformer_jax.names import from_torch, rows_of

# Its description: tg2fa_translit.convert gives the second for the first.
EXAMPLE = "То ғами фардо нахӯрем!", "تا غم فردا نخوریم!"
# A layer more than theirs: nn.Transformer has one more normalisation behind each stack, also of post-norm layers.
LAYERS = 3
CONFIG = TransformerConfig(
    43,
    decoder_vocab_size=45,
    share_encoder_decoder_embeddings=False,
    tie_word_embeddings=False,
    final_logits_bias=True,
    features=64,
    num_heads=8,
    mlp_dim=64,
    encoder_layers=LAYERS + 1,
    decoder_layers=LAYERS + 1,
    norm_epsilon=1e-5,
    pad_id=1,
    decoder_start_id=2,
    eos_id=3,
)
ATTENTIONS = {
    "encoder": {"attention": "self_attn"},
    "decoder": {"self_attention": "self_attn", "cross_attention": "multihead_attn"},
}


@pytest.fixture(scope="module")
def package():
    spec = importlib.util.find_spec("tg2fa_translit")
    if spec is None or spec.origin is None:
        pytest.skip("tg2fa-translit 1.0, which carries the model, is not installed")
    return Path(spec.origin).parent


@pytest.fixture(scope="module")
def letters(package):
    """The source's letters and the target's, in the order of their ids, as decode.py lists them."""
    lists = {}
    for node in ast.parse((package / "decode.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = node.value
            parts = [value.left, value.right] if isinstance(value, ast.BinOp) else [value]
            if all(isinstance(part, ast.List | ast.Name) for part in parts):
                known = [lists[part.id] if isinstance(part, ast.Name) else ast.literal_eval(part) for part in parts]
                lists[node.targets[0].id] = [*itertools.chain(*known)]
    assert (len(lists["tg_keys"]), len(lists["fa_values"])) == (43, 45)
    return lists["tg_keys"], lists["fa_values"]


def table():
    """Our paths and the names of nn.Transformer, whose projections of queries, keys and values are one tensor."""
    rows = {
        "embedding/embedding": ("src_tok_emb.embedding.weight",),
        "decoder_embedding/embedding": ("tgt_tok_emb.embedding.weight",),
        "lm_head/embedding": ("generator.weight",),
        "final_logits_bias": ("generator.bias",),
    }
    for side, attentions in ATTENTIONS.items():
        ours, theirs = f"{side}/layer_{{i}}", f"transformer.{side}.layers.{{i}}"
        for number, (name, other) in enumerate([*attentions.items(), ("mlp", "")], 1):
            rows[f"{ours}/{name}_norm/scale"] = (f"{theirs}.norm{number}.weight",)
            rows[f"{ours}/{name}_norm/bias"] = (f"{theirs}.norm{number}.bias",)
            fused = {"query": "query", "key_value": "key_value"} if name == "cross_attention" else {"qkv": "in_proj"}
            for part, word in (("kernel", "weight"), ("bias", "bias")):
                if name == "mlp":
                    rows[f"{ours}/mlp/up/{part}"] = (f"{theirs}.linear1.{word}",)
                    rows[f"{ours}/mlp/down/{part}"] = (f"{theirs}.linear2.{word}",)
                    continue
                rows[f"{ours}/{name}/out/{part}"] = (f"{theirs}.{other}.out_proj.{word}",)
                for projection, joined in fused.items():
                    rows[f"{ours}/{name}/{projection}/{part}"] = (f"{theirs}.{other}.{joined}_{word}",)
    return rows


@pytest.fixture(scope="module")
def params(package):
    torch = pytest.importorskip("torch", reason="torch, which reads the model's file, is not installed")
    stored = torch.load(package / "model_2.9.zip", map_location="cpu", weights_only=True)["model_state_dict"]
    tensors = {name: tensor.numpy() for name, tensor in stored.items()}
    tensors.pop("positional_encoding.pos_embedding")
    for side in ATTENTIONS:
        last, layer = f"transformer.{side}.norm", f"transformer.{side}.layers.{LAYERS}"
        # A layer that only normalises: its sublayers give 0. All its normalisations but the last are plain, and to
        # normalise twice is to normalise once, but for epsilon.
        for name in [name for name in tensors if name.startswith(f"transformer.{side}.layers.0.")]:
            plain = np.ones if "norm" in name and name.endswith("weight") else np.zeros
            tensors[name.replace("layers.0", f"layers.{LAYERS}")] = plain(tensors[name].shape, np.float32)
        for word in ("weight", "bias"):
            tensors[f"{layer}.norm{len(ATTENTIONS[side]) + 1}.{word}"] = tensors.pop(f"{last}.{word}")
    for name in [name for name in tensors if "multihead_attn.in_proj" in name]:
        fused = tensors.pop(name)
        tensors[name.replace("in_proj", "query")], tensors[name.replace("in_proj", "key_value")] = (
            fused[:64],
            fused[64:],
        )
    shapes = shapes_by_name(Transformer(CONFIG).parameter_shapes(), "/")
    return flax.traverse_util.unflatten_dict(from_torch(tensors, rows_of(table(), shapes), shapes, "its file"), sep="/")


def test_the_published_example(params, letters):
    source, target = letters
    model = Transformer(CONFIG)
    text, expected = (part.removesuffix("!") for part in EXAMPLE)  # it keeps signs apart from what it translates
    input_ids = np.array([[2, *(source.index(letter) for letter in text.lower()), 3]])
    run = jax.jit(lambda ids: model.apply({"params": params}, input_ids, ids).logits)
    ids = np.full((1, input_ids.size + 10), CONFIG.pad_id)
    ids[0, 0] = CONFIG.decoder_start_id
    for i in range(1, ids.size):
        ids[0, i] = np.argmax(run(ids)[0, i - 1])
        if ids[0, i] == CONFIG.eos_id:
            break
    assert "".join(target[id_] for id_ in ids[0, 1:i]) == expected

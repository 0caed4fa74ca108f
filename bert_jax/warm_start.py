"""An encoder-decoder Transformer whose two sides start from a BERT (Rothe et al. 2020: BERT2BERT)."""

import dataclasses
import warnings
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bert_jax.config import BertConfig
from bert_jax.model import BertModel
from bert_jax.tokenizer import BertTokenizer
from transformer_jax.checks import Range, check_value, require
from transformer_jax.seq2seq import Transformer, TransformerConfig
from transformer_jax.stack import unstack_layers


def warm_start(
    name: str | Path, num_decoder_layers: int | None = None, dtype: DTypeLike = jnp.float32, *, seed: int = 0
) -> tuple[Transformer, dict[str, Any]]:
    """Reads a BERT with its tokenizer -> (model, parameters in the canonical layout) of a Transformer.

    The encoder gives what the BERT does for texts of token type 0, but for float rounding. The decoder has the same
    embeddings, its self-attention and feed-forward networks begin as those of the BERT's first layers, and only the
    attention to the encoder, with the normalisation behind it, is new (Rothe et al. 2020, section 3). The softmax
    shares the word table; heads of the file are left out. Sources are [CLS] text [SEP]; the decoder starts from [CLS]
    and ends with [SEP].

    Args:
        name: a folder in Hugging Face's layout, or a repository of the hub.
        num_decoder_layers: how many of the BERT's layers the decoder has; all by default.
        seed: draws the new parameters.

    Raises:
        ValueError: as `BertModel.from_pretrained` and `BertTokenizer.from_pretrained`; a tokenizer with more tokens
            than the model; or more decoder layers than the BERT has.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* has no pooler")  # nor is one needed
        bert, read = BertModel.from_pretrained(name, dtype)
    tokenizer = BertTokenizer.from_pretrained(name)
    tokens, rows = tokenizer.vocab_size, bert.config.vocab_size
    require(tokens <= rows, f"{name}: the tokenizer has {tokens} tokens, but vocab_size in config.json is {rows}")
    layers = bert.config.num_hidden_layers
    count = layers if num_decoder_layers is None else num_decoder_layers
    check_value("num_decoder_layers", count, Annotated[int, Range(1, layers)])
    model = Transformer(transformer_config(bert.config, tokenizer, count), dtype)
    return model, _parameters(model, read, seed)


def transformer_config(bert: BertConfig, tokenizer: BertTokenizer, decoder_layers: int) -> TransformerConfig:
    """The configuration of a Transformer that is made like a BERT and reads its tokenizer's ids."""
    return TransformerConfig(
        vocab_size=bert.vocab_size,
        features=bert.hidden_size,
        num_heads=bert.num_attention_heads,
        mlp_dim=bert.intermediate_size,
        encoder_layers=bert.num_hidden_layers,
        decoder_layers=decoder_layers,
        activation=bert.hidden_act,
        norm="post",
        norm_epsilon=bert.layer_norm_eps,
        embeddings="normalised",
        positions="learned",
        max_length=bert.max_position_embeddings,
        dropout_rate=bert.hidden_dropout_prob,
        attention_dropout_rate=bert.attention_probs_dropout_prob,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.sep_id,
        encoder_start_id=tokenizer.cls_id,
        decoder_start_id=tokenizer.cls_id,
    )


def _parameters(model: Transformer, bert: dict[str, Any], seed: int) -> dict[str, Any]:
    embeddings, layers = bert["embeddings"], bert["encoder"]
    types = embeddings["token_type"]["embedding"]

    def decoder_layer(i: int, new: dict[str, Any]) -> dict[str, Any]:
        # Copies: whoever updates parameters in place must not meet an array in two places.
        own = jax.tree.map(jnp.copy, layers[f"layer_{i}"])
        return {
            "self_attention": own["attention"],
            "self_attention_norm": own["attention_norm"],
            "cross_attention": new["cross_attention"],
            "cross_attention_norm": new["cross_attention_norm"],
            "mlp": own["mlp"],
            "mlp_norm": own["mlp_norm"],
        }

    new = _new_layers(model, seed)
    return {
        "embedding": embeddings["word"],
        "positions": {"embedding": embeddings["position"]["embedding"] + types[:1]},
        "embedding_norm": embeddings["norm"],
        "encoder": layers,
        "decoder": {f"layer_{i}": decoder_layer(i, new[f"layer_{i}"]) for i in range(model.config.decoder_layers)},
    }


def _new_layers(model: Transformer, seed: int) -> dict[str, Any]:
    """The decoder's layers as they are initialised, of which only what a BERT does not have is computed."""
    # Scanned, one layer is traced and not all of them.
    scanned = model.clone(config=dataclasses.replace(model.config, scan_layers=True))
    ids = jnp.zeros((1, 1), jnp.int32)

    @jax.jit
    def init(key: jax.Array) -> dict[str, Any]:
        stacked = scanned.init(key, ids, ids)["params"]["decoder"]["layers"]
        return {name: stacked[name] for name in ("cross_attention", "cross_attention_norm")}

    return unstack_layers({"layers": init(jax.random.key(seed))})

"""The Transformer in JAX and Flax: attention, positions, stacks, the encoder-decoder model, losses, decoding.

Letters in array names: B batch, L query or target length, S key or source length, D model width, H heads, K head
dimension, F feed-forward width, V vocabulary, N layers and columns of a short list, W beam, T slots of an output,
R rows (B * W), P predictions and tokens of a phrase; C counts fused matrices, candidates of a beam, and phrases.
"""

from transformer_jax.attention import KVCache, MultiHeadAttention, attention_weights, dot_product_attention
from transformer_jax.decoding import SearchOptions, beam_search, greedy_search
from transformer_jax.generation import generate
from transformer_jax.layers import (
    Dropout,
    Embed,
    FeedForward,
    LayerNorm,
    Projection,
    dropout,
    dropout_seed,
    logical_axes,
)
from transformer_jax.losses import cross_entropy
from transformer_jax.marian_save import save_marian
from transformer_jax.masks import AttentionMask
from transformer_jax.positions import LearnedPositions, hierarchical_positions, sinusoidal_positions
from transformer_jax.seq2seq import DecoderOutput, Transformer, TransformerConfig, TransformerOutput, shift_right
from transformer_jax.shortlist import ShortList
from transformer_jax.stack import (
    Decoder,
    DecoderLayer,
    Encoder,
    EncoderLayer,
    StackConfig,
    stack_layers,
    unstack_layers,
)
from transformer_jax.translator import Translator

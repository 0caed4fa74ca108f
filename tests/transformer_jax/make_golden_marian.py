"""Writes golden_marian.npz and .json of this folder, with PyTorch: python -m tests.transformer_jax.make_golden_marian

golden_marian.npz: what PyTorch's MarianMTModel makes of odd configurations; of their weights, which `weight` draws, the
names and shapes.
golden_marian.json: two small SentencePiece models and vocabularies, and the ids that MarianTokenizer gives.
"""

import base64
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import sentencepiece

from tests.bert_jax import make_golden

HERE = Path(__file__).parent
# The base that none of them is.
PLAIN = {
    "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 14, "decoder_ffn_dim": 14, "max_position_embeddings": 12, "scale_embedding": True,
}  # fmt: skip
ODD = {
    "swish, one table, padding last": {
        **PLAIN, "vocab_size": 29, "d_model": 18, "encoder_attention_heads": 3, "decoder_attention_heads": 3,
        "encoder_layers": 2, "activation_function": "swish", "pad_token_id": 28, "decoder_start_token_id": 28,
        "eos_token_id": 0, "forced_eos_token_id": 0, "max_position_embeddings": 40,
    },
    "relu, three tables, not scaled, another start": {
        **PLAIN, "vocab_size": 23, "decoder_vocab_size": 31, "share_encoder_decoder_embeddings": False,
        "tie_word_embeddings": False, "d_model": 10, "decoder_layers": 3, "encoder_attention_heads": 5,
        "decoder_ffn_dim": 9, "activation_function": "relu", "scale_embedding": False, "pad_token_id": 5,
        "eos_token_id": 2, "decoder_start_token_id": 7, "forced_eos_token_id": 2,
    },
    "gelu, two tables, a short target": {
        **PLAIN, "vocab_size": 23, "decoder_vocab_size": 17, "share_encoder_decoder_embeddings": False, "d_model": 8,
        "decoder_attention_heads": 4, "activation_function": "gelu", "pad_token_id": 16, "eos_token_id": 0,
        "decoder_start_token_id": 16, "forced_eos_token_id": 0,
    },
    "gelu_new, untied": {
        **PLAIN, "vocab_size": 21, "tie_word_embeddings": False, "d_model": 8, "activation_function": "gelu_new",
        "pad_token_id": 20, "eos_token_id": 0, "decoder_start_token_id": 20, "forced_eos_token_id": 0,
    },
}  # fmt: skip
TEXTS = [
    "", " ", "the quick fox", "  a lazy   dog ", "über die Brücke", "日本 the fox", "Où est\u3000l'arrêt\n?",
    ">>fra<< the dog", ">>xyz<< the dog", ">>fra<<", " >>fra<< the dog", "the >>fra<< dog", ">>fra the dog", ">><<a",
    ">>a\nb<< dog", "the</s> dog", "<unk>", "<pad><pad>fox", "</s>>>fra<< fox", "<s>", "</ s>", "e\u0301", "\u00a0",
]  # fmt: skip


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Any tensor's numbers follow from its name."""
    return make_golden.weight(name, shape) + np.float32(name.endswith("layer_norm.weight"))


def inputs(fields: dict) -> dict[str, np.ndarray]:
    """Two rows, padded on the right."""
    rng = np.random.default_rng(0)
    mask = (np.arange(7)[None] < np.array([[5], [7]])).astype(np.int64)
    return {
        "input_ids": rng.integers(0, fields["vocab_size"], (2, 7)),
        "attention_mask": mask,
        "decoder_input_ids": rng.integers(0, fields.get("decoder_vocab_size", fields["vocab_size"]), (2, 6)),
    }


def models() -> dict[str, np.ndarray]:
    """ "configuration/config.json", ".../generation_config.json", ".../shapes" (JSON), ".../logits"; and of the
    deepest decoder ".../cross_attentions" [N, B, H, L, S]."""
    import torch
    import transformers

    arrays = {}
    for odd, fields in ODD.items():
        model = transformers.MarianMTModel(transformers.MarianConfig(**fields)).eval()
        model.set_attn_implementation("eager")
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            for name in ("config.json", "generation_config.json"):
                arrays[f"{odd}/{name}"] = np.array(Path(folder, name).read_text())
            shapes = make_golden._shapes_of(Path(folder, "model.safetensors"))
        state = {name: torch.tensor(weight(name, shape)) for name, shape in shapes.items()}
        _, unexpected = model.load_state_dict(state, strict=False)
        assert not unexpected
        batch = {name: torch.tensor(value) for name, value in inputs(fields).items()}
        with torch.inference_mode():
            out = model(**batch, output_attentions=True)
        arrays[f"{odd}/logits"] = out.logits.numpy()
        if fields["decoder_layers"] > 2:
            arrays[f"{odd}/cross_attentions"] = torch.stack(out.cross_attentions).numpy()
        arrays[f"{odd}/shapes"] = np.array(json.dumps(shapes))
    return arrays


def small_sentencepiece(sentences: list[str], size: int, **special: int) -> bytes:
    """A SentencePiece model of few bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 9),
        model_writer=model,
        vocab_size=size,
        normalization_rule_name="identity",
        minloglevel=3,
        **special,
    )
    return model.getvalue()


def tokenizers() -> dict:
    """Of one vocabulary for both languages and of two: the files, and for each text the ids and what they decode to."""
    import transformers

    models = {
        "source.spm": small_sentencepiece(["the quick brown fox", "a lazy dog", "über die Brücke"], 30),
        "target.spm": small_sentencepiece(["le renard brun", "un chien", "où est l'arrêt ?"], 24),
    }
    pieces = {}
    for name, content in models.items():
        processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        pieces[name] = [processor.id_to_piece(i) for i in range(3, processor.vocab_size())]
    special = ["</s>", "<unk>"]
    both = [*special, *dict.fromkeys([*pieces["target.spm"], *pieces["source.spm"][2:]]), ">>fra<<", "<pad>"]
    source, target = [*special, *pieces["source.spm"]], [*special, *pieces["target.spm"]]
    source.insert(20, "<pad>"), target.insert(20, "<pad>")
    cases = {"one": {"vocab.json": both}, "two": {"vocab.json": source, "target_vocab.json": target}}
    golden: dict = {"models": {name: base64.b64encode(content).decode() for name, content in models.items()}}
    for case, vocabularies in cases.items():
        vocabularies = {name: {piece: i for i, piece in enumerate(words)} for name, words in vocabularies.items()}
        with tempfile.TemporaryDirectory() as folder:
            for name, content in models.items():
                Path(folder, name).write_bytes(content)
            for name, vocab in vocabularies.items():
                Path(folder, name).write_text(json.dumps(vocab))
            settings = {"separate_vocabs": len(vocabularies) > 1, "tokenizer_class": "MarianTokenizer"}
            Path(folder, "tokenizer_config.json").write_text(json.dumps(settings))
            theirs = transformers.MarianTokenizer.from_pretrained(folder)
            rows = []
            for text in TEXTS:
                target_ids = theirs(text_target=text)["input_ids"][:-1]
                back = theirs.decode(target_ids, skip_special_tokens=True, use_source_tokenizer=False)
                rows.append([text, theirs(text)["input_ids"][:-1], target_ids, back])
            golden[case] = {"files": vocabularies | {"tokenizer_config.json": settings}, "texts": rows}
    return golden


if __name__ == "__main__":
    np.savez_compressed(HERE / "golden_marian.npz", **models())
    text = json.dumps(tokenizers(), ensure_ascii=False).replace('], ["', '],\n["')
    (HERE / "golden_marian.json").write_text(text + "\n")

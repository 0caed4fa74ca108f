"""Pairs from files and TFDS, and the shared vocabulary."""

import gzip

import numpy as np
import pytest
import tensorflow_datasets as tfds

from train.data import parallel
from train.data.cldr_pairs import cldr_pairs
from train.data.packing import PackedBatches
from train.data.parallel import (
    EOS_ID,
    encode_pairs,
    read_pairs,
    train_sentencepiece,
)
from train.errors import InputError
from train.translate import TranslateConfig
from transformer_jax.tokenizer import load_sentencepiece


def write(path, text):
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def message_of(call, *arguments, **options):
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pairs.tsv", "pairs.tsv.gz"])
def test_tsv(tmp_path, name):
    path = write(tmp_path / name, "Go. \tGeh.\r\nI see.\tIch verstehe.\n")
    assert read_pairs([path]) == [("Go.", "Geh."), ("I see.", "Ich verstehe.")]


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ("no tab", "has 0 tabs"),
        ("a\tb\tc", "has 2 tabs"),
        ("a\t ", "target is empty"),
        ("\tb", "source is empty"),
        ("", "has 0"),
        ("a\tb\0", ":2 has a NUL at character 4"),
        ("a\t" + "x" * 2_000_000 + "\t", "has 2 tabs"),
    ],
)
def test_bad_tsv_rows_are_named(tmp_path, row, wrong):
    path = write(tmp_path / "pairs.tsv", f"Go.\tGeh.\n{row}\nI.\tIch.\n")
    message = message_of(read_pairs, [path], "--eval.data")
    assert message.startswith(f"--eval.data: {path}:2") and wrong in message


def test_aligned_files(tmp_path):
    english, german = write(tmp_path / "a.en", "Go.\nI see.\n"), write(tmp_path / "a.de.gz", "Geh.\nIch verstehe.")
    assert read_pairs([english, german]) == [("Go.", "Geh."), ("I see.", "Ich verstehe.")]


@pytest.mark.parametrize(("english", "german"), [("1\n2\n3\n", "1\n"), ("1\n", "1\n2\n3\n")])
def test_aligned_files_of_different_length(tmp_path, english, german):
    message = message_of(read_pairs, [write(tmp_path / "a.en", english), write(tmp_path / "a.de", german)])
    assert f"a.en has {english.count(chr(10))} lines" in message and f"a.de has {german.count(chr(10))};" in message


def test_bad_lines_of_aligned_files(tmp_path):
    good, empty, tab = (write(tmp_path / n, t) for n, t in (("g", "a\nb\n"), ("e", "a\n\nb"), ("t", "a\nb\tc\n")))
    assert f"{tab}:2 has a tab" in message_of(read_pairs, [good, tab])
    three = write(tmp_path / "three", "a\nb\nc\n")
    assert f"{empty}:2: the source is empty" in message_of(read_pairs, [empty, three])
    assert f"{empty}:2: the target is empty" in message_of(read_pairs, [three, empty])


@pytest.mark.parametrize("data", [[], ["a", "b", "c"], ["tfds:wmt14_translate/de-en", "b"]])
def test_wrong_number_of_files(data):
    assert "give one TSV file, two aligned files or one tfds:NAME" in message_of(read_pairs, data)


class TinyWmt(tfds.core.GeneratorBasedBuilder):
    """Translations in the layout of WMT: the configuration's name holds the languages, the source first."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("fr-en", "en-fr", "bare")]  # noqa: RUF012

    def _info(self):
        features = tfds.features.Translation(languages=("fr", "en"))
        if self.builder_config.name == "bare":
            features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager):
        raise AssertionError("the tests store the rows themselves")

    _generate_examples = _split_generators


def test_tfds_source_is_the_first_language_of_the_configuration(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    rows = [{"fr": "la rue ", "en": "the\nstreet"}, {"fr": "un", "en": "one"}]
    folders = {}
    for config, stored in (("fr-en", rows), ("en-fr", [{"fr": "un", "en": "o\0ne"}]), ("bare", [{"text": "one"}])):
        builder = TinyWmt(config=config, data_dir=tmp_path, file_format="array_record")
        builder.data_path.mkdir(parents=True)
        writer = tfds.core.SequentialWriter(builder.info, max_examples_per_shard=3, file_format="array_record")
        writer.initialize_splits(["train", "validation"])
        writer.add_examples({"train": stored, "validation": stored[:1]})
        writer.close_all()
        folders[config] = str(builder.data_path)
    expected = [("la rue", "the street"), ("un", "one")]
    assert read_pairs(["tfds:tiny_wmt/fr-en"]) == expected
    assert read_pairs([folders["fr-en"]]) == expected
    assert read_pairs(["tfds:tiny_wmt/fr-en"], split="validation") == expected[:1]
    assert read_pairs(["tfds:tiny_wmt/fr-en"], languages=("en", "fr")) == [(b, a) for a, b in expected]
    of_others = message_of(read_pairs, ["tfds:tiny_wmt/fr-en"], languages=("de", "en"))
    assert of_others.endswith("row 0 is of en and fr, not of de and en")
    assert "row 0 has the fields text" in message_of(read_pairs, ["tfds:tiny_wmt/bare"])
    assert "row 0 has a NUL at character 2" in message_of(read_pairs, ["tfds:tiny_wmt/en-fr"])


# --- vocabulary --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs():
    return cldr_pairs()[0][:6000]


@pytest.fixture(scope="module")
def processor(pairs):
    return train_sentencepiece(pairs, 900).processor


def test_ids_digits_and_round_trip(processor, pairs):
    ids = (processor.pad_id(), processor.eos_id(), processor.unk_id(), processor.bos_id())
    assert ids == (0, 1, 2, -1) and processor.vocab_size() == 900
    assert not any(sum(c.isdigit() for c in processor.id_to_piece(i)) > 1 for i in range(900))
    sources, targets = encode_pairs(processor, pairs)
    for (source, target), source_ids, target_ids in zip(pairs, sources, targets, strict=True):
        assert source_ids[-1] == target_ids[-1] == EOS_ID and 2 not in source_ids + target_ids
        assert (processor.decode(source_ids), processor.decode(target_ids)) == (source, target)


def test_vocabulary_is_deterministic_silent_and_read_back(pairs, processor, tmp_path, capfd):
    again, left_out = train_sentencepiece(pairs, 900)
    assert left_out == {}
    (tmp_path / "spm.model").write_bytes(again.serialized_model_proto())
    loaded = load_sentencepiece(tmp_path / "spm.model")
    models = {p.serialized_model_proto() for p in (processor, again, loaded)}
    assert len(models) == 1
    assert capfd.readouterr() == ("", "")


def test_vocabulary_sizes_that_the_text_cannot_give(pairs, capfd):
    message = message_of(train_sentencepiece, pairs, 100_000)
    assert message.startswith("--vocab-size: 100000 is more than")
    assert train_sentencepiece(pairs, int(message.split()[-1])).processor.vocab_size() == int(message.split()[-1])
    message = message_of(train_sentencepiece, pairs, 20)
    assert message.startswith("--vocab-size: 20 is less than")
    for size in (-5, 0, 1, 3, 1_000_001, 2**31 - 1, 99_999_999_999):
        assert message_of(train_sentencepiece, pairs, size) == f"--vocab-size: {size} must lie between 4 and 1000000"
    assert capfd.readouterr() == ("", "")


def test_the_embedded_pairs_give_the_default_vocabulary_and_full_rows():
    pairs, default = cldr_pairs()[0], TranslateConfig()
    processor = train_sentencepiece(pairs, default.vocab_size).processor
    assert processor.vocab_size() == 1200
    options = {"tokens_per_batch": default.batch_size, "max_length": default.max_length, "multiple": 8}
    batches = PackedBatches(*encode_pairs(processor, pairs), **options, seed=0, steps=1)
    assert max(batches.padding) < 0.03


def test_sentences_that_the_vocabulary_is_not_made_from_are_counted(pairs, monkeypatch):
    fits = "Ж" * 2096  # 4192 bytes
    processor, left_out = train_sentencepiece([*pairs, (fits, "Ω" * 2096 + "x"), ("Ψ ▅", "Ξ")], 900)
    known = [processor.piece_to_id(letter) != processor.unk_id() for letter in "ЖΩΨΞ"]
    assert known == [True, False, False, True]  # what is counted is what SentencePiece leaves out by itself
    assert left_out == {"sentences over 4192 bytes": 1, "sentences with ▅, which SentencePiece reserves": 1}
    monkeypatch.setattr(parallel, "_VOCABULARY_SENTENCES", 11_000)
    assert train_sentencepiece(pairs, 900).left_out == {"sentences beyond a sample of a million": 1000}


@pytest.mark.parametrize("text", ["x " * 3000, "▅", "\x01", "\u200b"])
def test_pairs_without_a_sentence_for_the_vocabulary_are_the_datas_fault(text):
    assert message_of(train_sentencepiece, [(text, text)], 20).startswith("--data: a vocabulary needs sentences")


def test_tatoeba_pairs(shared_data):
    pairs = read_pairs([str(shared_data / "tatoeba_en_de" / "train.tsv.gz")])
    assert len(pairs) == 163_360 and ("You'll do whatever I say.", "Du wirst tun, was ich sage.") in pairs
    sources, targets = encode_pairs(train_sentencepiece(pairs[:20_000], 2000).processor, pairs[:20_000])
    batches = PackedBatches(sources, targets, tokens_per_batch=4096, max_length=64, seed=0, steps=50, multiple=8)
    labels = [batches[k]["labels"] for k in range(50)]
    assert all(3500 <= ids.size <= 4096 for ids in labels)
    assert np.mean([np.mean(ids != 0) for ids in labels]) > 0.95

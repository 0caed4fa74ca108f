"""Pairs from files and TFDS, the shared vocabulary, and batches by tokens."""

import gzip
from contextlib import closing

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data import parallel
from train.data.batches import TokenBatches, bucket_lengths, iterate
from train.data.cldr_pairs import cldr_pairs
from train.data.parallel import (
    EOS_ID,
    encode_pairs,
    hold_out,
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
    assert "row 0 has the fields text" in message_of(read_pairs, ["tfds:tiny_wmt/bare"])
    assert "row 0 has a NUL at character 2" in message_of(read_pairs, ["tfds:tiny_wmt/en-fr"])


def test_hold_out_shares_no_source_and_does_not_depend_on_order():
    pairs = [(f"sentence {n % 60}", f"Satz {n}") for n in range(100)]
    train, held_out = hold_out(pairs, 20)
    assert len(held_out) == 20 and len({source for source, _ in held_out}) == 20
    assert not {source for source, _ in train} & {source for source, _ in held_out}
    assert set(held_out) <= set(pairs[:60])
    again = hold_out(sorted(pairs, key=lambda pair: int(pair[1].split()[1]) * 7 % 101), 20)[1]
    assert [source for source, _ in again] == [source for source, _ in held_out]
    assert "--held-out 60: cannot hold out so many of 60" in message_of(hold_out, pairs, 60)


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


def test_the_embedded_pairs_give_the_default_vocabulary():
    assert train_sentencepiece(cldr_pairs()[0], TranslateConfig().vocab_size).processor.vocab_size() == 1200


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


# --- batches -----------------------------------------------------------------------------------------------------


def corpus(lengths):
    """Sources and targets whose tokens tell the example: number n is 2 * n + 2 in sources, 2 * n + 3 in targets."""
    sources = [[2 * n + 2] * (source - 1) + [EOS_ID] for n, (source, _) in enumerate(lengths)]
    targets = [[2 * n + 3] * (target - 1) + [EOS_ID] for n, (_, target) in enumerate(lengths)]
    return sources, targets


def examples_of(batch):
    """The examples of a batch, after a check that source and target of each row are whole and belong together."""
    numbers = []
    for source, target in zip(batch["input_ids"], batch["labels"], strict=True):
        source, target = source[source != 0].tolist(), target[target != 0].tolist()
        assert source[-1] == target[-1] == EOS_ID and target[0] == source[0] + 1
        numbers.append((source[0] // 2 - 1, len(source), len(target)))
    return numbers


LENGTHS = st.lists(st.tuples(st.integers(2, 40), st.integers(2, 40)), min_size=8, max_size=120)


@settings(max_examples=60, deadline=None)
@given(
    lengths=LENGTHS,
    bounds=st.sets(st.integers(40, 48) | st.integers(2, 39), min_size=1, max_size=4),
    tokens=st.integers(1, 400),
    multiple=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 2**32),
)
def test_an_epoch_holds_each_example_at_most_once(lengths, bounds, tokens, multiple, seed):
    bounds = sorted(bounds)
    sources, targets = corpus(lengths)
    kept = [n for n, pair in enumerate(lengths) if max(pair) <= bounds[-1]]
    options = {"tokens_per_batch": tokens, "lengths": bounds, "seed": seed, "multiple": multiple}
    if len(kept) < multiple or not kept:
        with pytest.raises(InputError, match=r"^--eval\.data: .*--max-length"):
            TokenBatches(sources, targets, steps=1, **options, option="--eval.data")
        return
    longest = max(max(lengths[n]) for n in kept)
    needed = multiple * min(bound for bound in bounds if bound >= longest)
    if tokens < needed:
        with pytest.raises(InputError, match=rf"^--batch-size {tokens} .*; give {needed} or more"):
            TokenBatches(sources, targets, steps=1, **options)
        options["tokens_per_batch"] = tokens = needed
    batches = TokenBatches(sources, targets, steps=500, **options)
    n = batches.batches_per_epoch
    assert n >= 1 and batches.dropped == len(lengths) - len(kept)
    rows_of = dict((length, rows) for rows, length in batches.shapes)
    assert len(rows_of) == len(batches.shapes)
    for epoch in range(2):
        seen, left = [], dict(rows_of)
        for k in range(epoch * n, epoch * n + n):
            batch = batches[k]
            rows, length = batch["input_ids"].shape
            assert batch["labels"].shape == (rows, length) and batch["labels"].dtype == np.int32
            assert rows_of[length] == rows and rows % multiple == 0
            assert rows * length <= tokens
            left.pop(length, None)
            for number, source, target in examples_of(batch):
                assert (source, target) == lengths[number]
                seen.append(number)
        assert not left  # each shape occurs
        assert len(set(seen)) == len(seen) and set(seen) <= set(kept)
        assert batches.left_over == len(kept) - len(seen)
        assert len(kept) - len(seen) <= sum(rows - 1 for rows in rows_of.values())  # the remainders


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 1000), order=st.permutations(range(12)))
def test_any_order_of_access_and_any_number_of_hosts_give_the_same(lengths, seed, order):
    sources, targets = corpus(lengths)
    options = {"tokens_per_batch": 192, "lengths": (16, 32, 48), "seed": seed, "steps": 12, "multiple": 4}
    whole = TokenBatches(sources, targets, **options)
    expected = [whole[k] for k in range(12)]
    fresh = TokenBatches(sources, targets, **options)
    for k in order:
        np.testing.assert_equal(fresh[k], expected[k])
    for hosts in (2, 4):
        parts = [TokenBatches(sources, targets, **options, process_index=p, process_count=hosts) for p in range(hosts)]
        assert {part.batches_per_epoch for part in parts} == {whole.batches_per_epoch}
        for k in order[:4]:
            for key in ("input_ids", "labels"):
                slices = [part[k][key] for part in parts]
                assert len({part.shape for part in slices}) == 1
                np.testing.assert_array_equal(np.concatenate(slices), expected[k][key])


def test_epochs_and_seeds_differ_and_threads_change_nothing():
    sources, targets = corpus([(5 + n % 20, 6 + n % 17) for n in range(200)])

    def make(seed, steps=100):
        return TokenBatches(sources, targets, tokens_per_batch=200, lengths=(8, 16, 32), seed=seed, steps=steps)

    batches = make(0)
    n = batches.batches_per_epoch
    first, second = ([examples_of(batches[k]) for k in range(e * n, e * n + n)] for e in range(2))
    assert n > 5 and first != second and first != [examples_of(make(1)[k]) for k in range(n)]
    sizes = [len(batch) for batch in first]
    assert len(set(sizes)) == 2 and sizes not in (sorted(sizes), sorted(sizes, reverse=True))  # buckets are mixed
    with closing(iterate(batches, start=3)) as iterator:
        for k in range(3, 60):
            np.testing.assert_equal(next(iterator), batches[k])
    for k in (100, -1):
        with pytest.raises(IndexError):
            batches[k]


def test_small_buckets_are_merged_upward_and_the_last_one_shrinks():
    # Two of length 4 (8 rows would fit): they wait for the longer ones. Three of length 16 are fewer than 4 rows.
    sources, targets = corpus([(4, 4)] * 2 + [(8, 7)] * 6 + [(16, 3)] * 3)
    options = {"lengths": (4, 8, 16), "seed": 0, "steps": 9}
    batches = TokenBatches(sources, targets, tokens_per_batch=64, **options)
    assert batches.shapes == [(8, 8), (3, 16)] and batches.batches_per_epoch == 2
    # Three are fewer than four shards need: those of length 8 join them, and one of eleven and three is left out.
    batches = TokenBatches(sources, targets, tokens_per_batch=64, multiple=4, **options)
    assert batches.shapes == [(4, 16)] and batches.batches_per_epoch == 2 and batches.left_over == 3
    for size in (1, 63):
        assert "give 64 or more" in message_of(
            TokenBatches, sources, targets, tokens_per_batch=size, multiple=4, **options
        )
    with pytest.raises(ValueError, match="multiple of the 2 processes"):
        TokenBatches(sources, targets, tokens_per_batch=64, **options, process_count=2)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=60),
    count=st.integers(1, 3),
    multiple=st.sampled_from([1, 8, 16]),
    maximum=st.integers(20, 64),
)
def test_bucket_lengths_pad_least(lengths, count, multiple, maximum):
    bounds = bucket_lengths(lengths, count, multiple, maximum=maximum)
    kept = [length for length in lengths if length <= maximum]
    assert 1 <= len(bounds) <= count and list(bounds) == sorted(set(bounds)) and bounds[-1] <= maximum
    assert all(bound % multiple == 0 or bound == maximum for bound in bounds)
    if not kept:
        assert bounds == (maximum,)
        return

    def padded(bounds):
        return sum(min(bound for bound in bounds if bound >= length) for length in kept)

    possible = [*range(multiple, bounds[-1], multiple), bounds[-1]]
    assert bounds[-1] - max(kept) < multiple
    for other in possible:  # any two buckets, and moving one boundary, pad no less
        if count > 1:
            assert padded(bounds) <= padded({other, bounds[-1]})
        for moved in range(len(bounds) - 1):
            assert padded(bounds) <= padded({*bounds[:moved], other, *bounds[moved + 1 :]})


def test_tatoeba_pairs(shared_data):
    pairs = read_pairs([str(shared_data / "tatoeba_en_de" / "train.tsv.gz")])
    assert len(pairs) == 163_360 and ("You'll do whatever I say.", "Du wirst tun, was ich sage.") in pairs
    sources, targets = encode_pairs(train_sentencepiece(pairs[:20_000], 2000).processor, pairs[:20_000])
    longest = [max(len(s), len(t)) for s, t in zip(sources, targets, strict=True)]
    batches = TokenBatches(
        sources,
        targets,
        tokens_per_batch=4096,
        lengths=bucket_lengths(longest, maximum=64),
        seed=0,
        steps=50,
        multiple=8,
    )
    labels = [batches[k]["labels"] for k in range(50)]
    assert all(3500 <= ids.size <= 4096 for ids in labels)
    assert np.mean([np.mean(ids != 0) for ids in labels]) > 0.6

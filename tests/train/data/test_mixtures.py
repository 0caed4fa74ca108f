"""Several corpora as one: what the entries of --data say, tags as tokens, and that nothing held out is trained on."""

import random

import pytest

from train.data.mixtures import Part, by_direction, hold_out, in_turn, read_parts, tags_of
from train.data.parallel import encode_pairs, train_sentencepiece
from train.errors import InputError
from train.translate_corpus import load_corpus
from train.translate_start import load_vocabulary
from transformer_jax.tags import check_tags, split_tags
from transformer_jax.tokenizer import MarianTokenizer, load_tokenizer, save_tokenizer


def message_of(call, *arguments, **options):
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def write(tmp_path):
    """Makes a file -> its path."""

    def write(name, *rows):
        (tmp_path / name).write_text("".join(f"{row}\n" for row in rows))
        return str(tmp_path / name)

    return write


# --- entries -----------------------------------------------------------------------------------------------------


def test_what_the_entries_say(write):
    one, two, text = write("1.tsv", "a\tb"), write("2.tsv", "c\td", "e\tf"), write("3", "g\th")
    assert read_parts([one]) == [Part((one,), None, [("a", "b")])]
    assert read_parts([text]) == [Part((text,), None, [("g", "h")])]
    assert [part.pairs for part in read_parts([one, two, one])] == [
        [("a", "b")],
        [("c", "d"), ("e", "f")],
        [("a", "b")],
    ]
    english, german = write("x.en", "a", "b"), write("x.de", "c", "d")
    assert read_parts([english, german]) == [Part((english, german), None, [("a", "c"), ("b", "d")])]
    parts = read_parts([f"en-zho_Hans={one}", f"de-en={text}"])
    assert [(part.places, part.languages) for part in parts] == [((one,), ("en", "zho_Hans")), ((text,), ("de", "en"))]


def test_entries_that_fit_no_mixture(write):
    one, text, other = write("1.tsv", "a\tb"), write("2", "a\tb"), write("3", "c\td")
    error = message_of(read_parts, [f"en-de={one}", text])
    assert f"{text} without languages beside others" in error and f"en-de={text}" in error
    assert f"{one}:1 has a tab; it is a TSV file, whose name must end in .tsv" in message_of(read_parts, [one, text])
    assert "or several whose names end in .tsv" in message_of(read_parts, [text, other, text])
    assert "--eval.data: no such file: nowhere" in message_of(read_parts, ["en-de=nowhere"], "--eval.data")


# --- holding out -------------------------------------------------------------------------------------------------


def test_hold_out_shares_no_source_and_does_not_depend_on_order():
    def split(pairs, count):
        (train,), (held_out,) = hold_out([Part(("",), None, pairs)], count)
        return train.pairs, held_out.pairs

    pairs = [(f"sentence {n % 60}", f"Satz {n}") for n in range(100)]
    train, held_out = split(pairs, 20)
    assert len(held_out) == 20 and len({source for source, _ in held_out}) == 20
    assert not {source for source, _ in train} & {source for source, _ in held_out}
    assert set(held_out) <= set(pairs[:60])
    again = split(sorted(pairs, key=lambda pair: int(pair[1].split()[1]) * 7 % 101), 20)[1]
    assert [source for source, _ in again] == [source for source, _ in held_out]
    assert "--held-out 60: cannot hold out so many of 60" in message_of(split, pairs, 60)
    few = [(f"sentence {n}", "one label") for n in range(9)]  # any text-to-text task: targets are shared
    assert [len(side) for side in split(few, 2)] == [7, 2]


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_nothing_held_out_is_trained_on(both, seed):
    """By brute force, over a few words, so that pairs share texts in all ways: files, directions, translated back."""
    draw = random.Random(seed)
    languages = [("en", "de"), ("de", "en"), ("en", "fr"), ("en", "de")]
    parts = []
    for pair in languages:
        rows = [tuple(f"{language}{draw.randrange(60)}" for language in pair) for _ in range(70)]
        marked = [
            (draw.choice(["<BT> ", ""]) * (i % 3 == 0) + source, target) for i, (source, target) in enumerate(rows)
        ]
        parts.append(Part(("",), pair, marked))
    train, held_out = hold_out(parts, 5, both)
    assert [(part.direction, len(part.pairs)) for part in held_out] == [("en-de", 5), ("de-en", 5), ("en-fr", 5)]
    learned, judged = (by_direction(side, both) for side in (train, held_out))
    assert set(learned) == set(judged) and (set(judged) >= {"de-en", "fr-en"}) == both
    hidden = {split_tags(source)[1] for pairs in judged.values() for source, _ in pairs}
    references = {target for pairs in judged.values() for _, target in pairs}
    for name, pairs in learned.items():
        assert pairs
        for source, target in pairs:
            tags, text = split_tags(source)
            assert tags[0] == f">>{name.partition('-')[2]}<<" and not target.startswith("<BT>")
            assert not {text, target} & hidden
            assert target not in references or "<BT>" not in tags
            assert text.startswith(name[:2]) and target.startswith(name[3:])
    assert not any("<BT>" in source for pairs in judged.values() for source, _ in pairs)


def test_what_cannot_be_held_out():
    marked = [Part((), ("en", "de"), [("<BT> a", "b"), ("<BT> c", "d")])]
    assert "cannot hold out so many of 0 different" in message_of(hold_out, marked, 1)
    labels = [Part((), ("en", "de"), [(f"text {n}", "label") for n in range(9)])]
    assert "every pair shares a text with one that is held out" in message_of(hold_out, labels, 2, True)
    assert "of 9 different source sentences of en-de" in message_of(hold_out, labels, 9)


def test_the_first_pairs_are_of_all_directions():
    pairs, names = in_turn({"a-b": [("1", "1"), ("2", "2"), ("3", "3")], "b-a": [("4", "4")]})
    assert [source for source, _ in pairs] == ["1", "4", "2", "3"] and names == ["a-b", "b-a", "a-b", "a-b"]


# --- tags --------------------------------------------------------------------------------------------------------

WORDS = [f"{n}{m}" for n in ("ab", "cd", "ef") for m in ("gh", "ij", "kl")]
ROWS = [f"{a} {b}\t{b} x{a}" for a in WORDS for b in WORDS]


def test_tags_are_what_sources_begin_with():
    assert split_tags(">>de<< <BT> a >>fr<<") == ([">>de<<", "<BT>"], "a >>fr<<")
    assert split_tags(">>de<<a") == ([], ">>de<<a") and split_tags(">>de<<") == ([">>de<<"], "")
    assert tags_of([(">>de<< <BT> a", "b"), ("c >>fr<<", "d"), (">>en<< e", ">>fr<<")]) == ["<BT>", ">>de<<", ">>en<<"]
    error = message_of(tags_of, [(">>de<< a", "see >>de<< there")], "--eval.data")
    assert error.startswith("--eval.data: the target 'see >>de<< there' holds >>de<<")


@pytest.fixture
def both_ways(write):
    """Real pairs in both directions, and translated back ones."""
    files = write("1.tsv", *ROWS), write("2.tsv", *(f"<BT> {row}" for row in ROWS[:30]))
    return load_corpus([f"en-de={file}" for file in files], (), 10, both_directions=True)


def test_both_directions_and_what_was_translated_back(both_ways):
    assert both_ways.tags == ["<BT>", ">>de<<", ">>en<<"] and set(both_ways.directions[:2]) == {"en-de", "de-en"}
    assert sorted(both_ways.directions) == ["de-en"] * 10 + ["en-de"] * 10
    tags = [tuple(split_tags(source)[0]) for source, _ in both_ways.pairs]
    assert tags.count((">>de<<",)) == tags.count((">>en<<",)) == 71 and len(set(tags)) == 3
    assert ("directions", f"{len(tags)} training pairs; held out: 10 en-de, 10 de-en") in both_ways.notes


def test_a_tag_is_one_token_of_a_new_vocabulary(both_ways, tmp_path):
    processor, notes = load_vocabulary(tmp_path, False, None, both_ways, "--data", 30)
    assert ("tags", "<BT>, >>de<<, >>en<<, a token each") in notes
    ids = {tag: processor.encode(tag) for tag in both_ways.tags}
    assert sorted(ids.values()) == [[3], [4], [5]]
    sources, targets = encode_pairs(processor, both_ways.pairs)
    for (source, _), source_ids, target_ids in zip(both_ways.pairs, sources, targets, strict=True):
        tags, text = split_tags(source)
        assert source_ids == [*(ids[tag][0] for tag in tags), *processor.encode(text), 1]
        assert not {3, 4, 5} & {*target_ids, *processor.encode(text)}
    bare = [(split_tags(source)[1], target) for source, target in both_ways.pairs]  # tags are no text to learn from
    same = train_sentencepiece(bare, 30, both_ways.tags).processor
    assert same.serialized_model_proto() == processor.serialized_model_proto()
    smaller = message_of(load_vocabulary, tmp_path, False, None, both_ways, "--data", 9)
    assert smaller.startswith("--vocab-size: 9 is less than the text's characters; at least")


def test_two_vocabularies(write, tmp_path):
    corpus = load_corpus(
        [f"en-de={write('1.tsv', *ROWS)}", f"en-de={write('2.tsv', '<BT> ab gh' + chr(9) + 'xab')}"], (), 9
    )
    tokenizer, notes = load_vocabulary(tmp_path, False, None, corpus, "--data", 20, 18)
    assert notes[0][1] == "20 pieces for sources and 18 for targets learned from the training pairs"
    assert isinstance(tokenizer, MarianTokenizer)
    assert (tokenizer.vocab_size(), tokenizer.target_vocab_size()) == (20, 18)
    assert "x" not in "".join(tokenizer.vocab) and "x" in "".join(tokenizer.target_vocab)
    check_tags(tokenizer, corpus.tags)
    assert tokenizer.encode(">>de<< <BT> abgh")[:2] == [tokenizer.vocab[">>de<<"], tokenizer.vocab["▁<BT>"]]
    _, targets = encode_pairs(tokenizer, corpus.pairs)
    assert [tokenizer.decode(ids[:-1]) for ids in targets] == [target for _, target in corpus.pairs]
    save_tokenizer(tmp_path, tokenizer)
    assert load_tokenizer(tmp_path).encode(corpus.pairs[0][0]) == tokenizer.encode(corpus.pairs[0][0])
    large = message_of(load_vocabulary, tmp_path, False, None, corpus, "--data", 20, 4000)
    assert large.startswith("--target-vocab-size: 4000 is more than the training text gives")


def test_a_vocabulary_that_lacks_a_tag(write, tmp_path):
    corpus = load_corpus([f"en-de={write('1.tsv', *ROWS)}"], [f"en-fr={write('2.tsv', *ROWS[:3])}"], 9)
    error = message_of(load_vocabulary, tmp_path, False, None, corpus, "--eval.data", 20)
    assert error == "--eval.data: the vocabulary has no token >>fr<<, which sources begin with"
    assert ("held out", "3 training pairs hold a held-out source, or its translation: scores rise") in corpus.notes
    plain = train_sentencepiece([("ab cd", "ef")], 10).processor
    with pytest.raises(ValueError, match="no token >>de<<"):
        check_tags(plain, [">>de<<"])
    check_tags(train_sentencepiece([("ab cd", "ef")], 11, [">>de<<"]).processor, [">>de<<"])


@pytest.mark.parametrize(
    ("data", "eval_data", "both", "message"),
    [
        ("{f}", "", True, "--both-directions: which ones? Name the languages of --data: en-de="),
        ("{f}", "en-de={f}", False, "--eval.data en-de="),
        ("en-de={f}", "{f}", False, "languages are named there or in --data, not in both"),
    ],
)
def test_languages_that_are_not_named(write, data, eval_data, both, message):
    path = write("1.tsv", *ROWS)
    held_out = [eval_data.format(f=path)] if eval_data else []
    assert message in message_of(load_corpus, [data.format(f=path)], held_out, 9, both)

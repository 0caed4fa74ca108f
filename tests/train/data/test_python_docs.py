import hashlib
import os
import subprocess
import sys

import pytest

from train.data.python_docs import _prose, python_documents


@pytest.fixture(scope="module")
def corpus():
    return python_documents()


def test_size_and_share_of_held_out(corpus):
    train, held_out = (sum(len(sentence) + 1 for document in part for sentence in document) for part in corpus)
    assert 800_000 < train + held_out < 1_300_000
    assert 0.03 < held_out / (train + held_out) < 0.10
    assert min(len(document) for part in corpus for document in part) >= 2


def test_no_sentence_occurs_twice(corpus):
    sentences = [sentence for part in corpus for document in part for sentence in document]
    assert len(sentences) == len(set(sentences))


def test_sentences_read_as_prose(corpus):
    text = "\n".join(sentence for part in corpus for document in part for sentence in document)
    for code in (">>>", "::=", "``", ":meth:", "****", "+--", "\n\n"):
        assert code not in text
    letters = sum(character.isalpha() or character == " " for character in text)
    assert letters / len(text) > 0.93


def test_markup_code_and_tables_go():
    text = """Title
*****

The ``first`` sentence uses *emphasis* and :func:`~os.path.join`
over two lines.  See "__getitem__()" for the **second** of them:

   name ::= "x" | "y"

* A bullet that is a whole sentence,
  which goes on here.
* Another bullet with its own sentence.

>>> print("This Looks like a sentence of prose.")
This Looks like a sentence of prose.

+------+--------+
| This | Is one |
+------+--------+

The doctest below ends this.
>>> x = 1
Its output is here as well.
"""
    assert list(_prose(text)) == [
        "The first sentence uses emphasis and os.path.join over two lines.",
        "See __getitem__() for the second of them:",
        "A bullet that is a whole sentence, which goes on here.",
        "Another bullet with its own sentence.",
        "The doctest below ends this.",
    ]


def test_the_same_in_another_process_and_nothing_is_run(corpus):
    program = (
        "import hashlib, sys\nfrom train.data.python_docs import python_documents\n"
        "print(hashlib.sha256(repr(python_documents()).encode()).hexdigest())\n"
        "assert not {'antigravity', 'this', 'tkinter', 'idlelib', 'turtle'} & set(sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.stdout.strip() == hashlib.sha256(repr(corpus).encode()).hexdigest()
    assert ran.stderr == ""

"""The embedded pretraining corpus: the prose that every Python carries.

It is made of the language reference (`pydoc_data.topics`) and the docstrings of the standard library, which are
read from the sources; no module of the library is imported, so nothing of it runs.
"""

import ast
import hashlib
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from train.data.documents import Document, split_sentences

NAME = f"embedded (Python {platform.python_version()})"

_HELD_OUT_PERCENT = 6
_MIN_SENTENCES = 2
# What others installed, tests, copies of other documentation, and modules that are jokes.
_SKIPPED = re.compile(
    r"(site|dist)-packages|tests?|idlelib|lib2to3|distutils|ensurepip|pydoc_data|turtledemo|__pycache__|__phello__|"
    r"encodings|(antigravity|this|_pydecimal|tix)\.py"
)


def python_documents() -> tuple[list[Document], list[Document]]:
    """Returns (training documents, held-out documents): about 1 MB of English prose on programming.

    Every sentence occurs once in all documents together, so none of the held-out ones occurs in training. Order and
    split depend on the texts only: the same Python always gives the same documents.
    """
    train: list[Document] = []
    held_out: list[Document] = []
    seen: set[str] = set()
    for text in _texts():
        document = [sentence for sentence in dict.fromkeys(_prose(text)) if sentence not in seen]
        if len(document) < _MIN_SENTENCES:
            continue
        seen.update(document)
        digest = hashlib.sha256("\n".join(document).encode()).digest()
        held = int.from_bytes(digest[:4], "big") % 100 < _HELD_OUT_PERCENT
        (held_out if held else train).append(document)
    return train, held_out


def _texts() -> Iterator[str]:
    """One raw text a document: the sections of the language reference, then modules and their classes."""
    from pydoc_data import topics

    for name in sorted(topics.topics):
        yield from re.split(r"^.+\n(?:[*=-]{4,}|~{4,})$", topics.topics[name], flags=re.M)  # at headings
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.iterdir()):
        if _SKIPPED.fullmatch(path.name):
            continue
        for source in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            if source.suffix == ".py" and not any(map(_SKIPPED.fullmatch, source.relative_to(root).parts)):
                yield from _docstrings(source)


def _docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a module and its functions as one text, and of each class and its methods as another."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # about sources that are not ours
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return  # a file that this Python cannot compile is no part of its library
    own = [ast.get_docstring(tree)]
    classes = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            members = [child for child in node.body if isinstance(child, _DOCUMENTED)]
            classes.append([ast.get_docstring(child) for child in [node, *members]])
        elif isinstance(node, _DOCUMENTED):
            own.append(ast.get_docstring(node))
    for texts in [own, *classes]:
        yield "\n\n".join(text for text in texts if text)


_DOCUMENTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _prose(text: str) -> Iterator[str]:
    """The sentences of a reST text that read as English; code, grammar, tables, headings and lists of names go."""
    for block in re.split(r"\n\s*\n", text):
        for chunk in _chunks(block):
            for sentence in split_sentences(_without_markup(chunk)):
                if _reads_as_english(sentence):
                    yield sentence


def _chunks(block: str) -> Iterator[str]:
    """Joins the lines of a block into paragraphs: a bullet or another indentation begins a new one."""
    lines: list[str] = []
    indent = 0
    for line in block.expandtabs().splitlines():
        if line.lstrip().startswith(">>>"):  # a doctest lasts to the end of its block
            break
        bullet = _BULLET.match(line)
        margin = bullet.end() if bullet else len(line) - len(line.lstrip())
        if lines and (bullet or margin != indent):
            yield " ".join(lines)
            lines = []
        indent = margin
        lines.append(line[margin:].strip())
    yield " ".join(lines)


_BULLET = re.compile(r"\s*(?:[*+•-]|\(?\d{1,2}[.)]|\(?[a-z]\))\s+")


def _without_markup(text: str) -> str:
    text = re.sub(r":[a-z:]+:`~?([^`]*)`", r"\1", text)  # roles
    text = re.sub(r"``([^`]*)``|`([^`']*)[`']_?", r"\1\2", text)  # literals and references
    text = re.sub(r"(?<![\w*])\*{1,2}(?=\S)([^*]+?)\*{1,2}(?![\w*])", r"\1", text)  # emphasis
    text = re.sub(r'"([^\s"]+)"', r"\1", text)  # the reference quotes code
    text = re.sub(r"(?<=\w)- (?!and |or )(?=[a-z])", "-", text)  # a line that ended in a hyphen
    return " ".join(text.replace("::", ":").split())


_NOT_PROSE = re.compile(r"[{}<>=|\\^~@#$%&*]|\s[-+/]{1,2}\s|\.\.\.\S|\(\s*\w+\s*,|^\d")


def _reads_as_english(sentence: str) -> bool:
    """Whether this is a sentence: it begins and ends like one, has words enough, and few that are not words."""
    words = sentence.split()
    if not (3 < len(words) < 100 and sentence[0] in _BEGINNINGS and sentence[-1] in _ENDS):
        return False
    plain = sum(_WORD.fullmatch(word) is not None for word in words)
    return plain >= 0.75 * len(words) and len(_NOT_PROSE.findall(sentence)) <= len(words) // 25


_BEGINNINGS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ\"'(")
_ENDS = frozenset(".!?:)\"'")
_WORD = re.compile(r"""["'(]*[A-Za-z][a-z]*(?:['’-][A-Za-z]+)*["')]*[.,;:!?]*["')]*""")

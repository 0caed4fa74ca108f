"""What the fuzz tests share: how many examples, right files gone wrong, and what may come of reading them.

FUZZ_EXAMPLES=10000 tries so many of each kind instead of the few that fit into the suite.
"""

import functools
import gzip
import json
import os
import warnings

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=10_000,
    derandomize=EXAMPLES < 1000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


# --- bytes -------------------------------------------------------------------------------------------------------


@st.composite
def damaged(draw, contents):
    """Bytes as they are, or with a piece cut out, replaced or put in anywhere; text sometimes in another encoding."""
    data = draw(contents)
    if isinstance(data, str):
        data = data.encode(draw(st.sampled_from(["utf-8"] * 6 + ["utf-16", "utf-8-sig"])), "surrogatepass")
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 8)))
        data = data[:start] + draw(st.binary(max_size=4)) + data[end:]
    return data


@st.composite
def broken(draw, data):
    """Bytes as they are, cut off, with one bit flipped, or followed by others."""
    how = draw(st.sampled_from(["whole", "whole", "cut", "flipped", "followed"]))
    at = draw(st.integers(0, len(data) - 1))
    if how == "cut":
        return data[:at]
    if how == "flipped":
        return data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
    return data + draw(st.binary(min_size=1, max_size=5)) if how == "followed" else data


@st.composite
def gzipped(draw, contents):
    """As `damaged`, compressed in one member or two; then the compressed bytes may be damaged, cut or followed."""
    data = draw(damaged(contents))
    cut = draw(st.integers(0, len(data)))
    packed = gzip.compress(data) if draw(st.booleans()) else gzip.compress(data[:cut]) + gzip.compress(data[cut:])
    return draw(broken(packed))


def lines_of(path):
    """The lines of a text file that is all right, read in another way."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    lines = data.decode("utf-8-sig").split("\n")
    return [line.rstrip("\r") for line in (lines if lines[-1] else lines[:-1])]


# --- JSON --------------------------------------------------------------------------------------------------------


class Raw(str):
    """JSON as it stands, right or wrong."""


class Pairs(list):
    """The members of an object, whose names may repeat."""


WORDS = st.sampled_from(["", "a", "gelu", "bert", "none", "full", "[UNK]", "é", "\n", "\0", "\ud800", "x" * 3000])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 40) | st.integers() | st.floats() | WORDS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=4,
)
RAW = VALUES.map(json.dumps) | st.sampled_from(
    ["1e999", "-1e999", "1e300", "-0", "0.0", "1.0", "-1", "2147483647", "2147483648", "9223372036854775808"]
    + ["1" + "0" * 400, "9" * 6000, "NaN", "-Infinity", "0x10", "1_000", "truE", "'a'", "", '"\t"', '"\\x"', '"\\u12"']
    + ["[" * depth + "]" * depth for depth in (2, 900, 100_000)]
    + ['{"a":' * depth + "1" + "}" * depth for depth in (2, 900, 100_000)]
)


@st.composite
def json_text(draw, tree):
    """A tree as JSON, mostly with an edit or two anywhere in it: what no longer is JSON, or means something else."""
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2]))):
        tree = _edited(draw, tree)
    return _dumped(tree)


def _edited(draw, tree):
    pairs = list(tree.items()) if isinstance(tree, dict) else list(tree) if isinstance(tree, Pairs) else None
    items = pairs if pairs is not None else list(tree) if isinstance(tree, list) else []
    if not items or draw(st.integers(0, 9)) == 0:
        return Raw(draw(RAW))
    at = draw(st.integers(0, len(items) - 1))
    how = draw(st.sampled_from(["inside"] * 4 + ["without", "twice", "beside", "exchanged"]))
    other = draw(st.integers(0, len(items) - 1))
    value = items[at] if pairs is None else items[at][1]
    if how == "inside":
        value = _edited(draw, value)
        items[at] = value if pairs is None else (items[at][0], value)
    elif how == "without":
        del items[at]
    elif how == "twice":
        again = Raw(draw(RAW)) if draw(st.booleans()) else value
        items.append(again if pairs is None else (items[at][0], again))
    elif how == "beside":
        items.insert(at, Raw(draw(RAW)) if pairs is None else (draw(WORDS), Raw(draw(RAW))))
    elif pairs is None:
        items[at], items[other] = items[other], items[at]
    else:
        items[at], items[other] = (items[at][0], items[other][1]), (items[other][0], items[at][1])
    return items if pairs is None else Pairs(items)


def _dumped(tree):
    if isinstance(tree, Raw):
        return str(tree)
    if isinstance(tree, list) and not isinstance(tree, Pairs):
        return f"[{', '.join(map(_dumped, tree))}]"
    if isinstance(tree, dict | Pairs):
        pairs = tree.items() if isinstance(tree, dict) else tree
        return "{" + ", ".join(f"{json.dumps(name)}: {_dumped(value)}" for name, value in pairs) + "}"
    return json.dumps(tree)


def strict_json(content):
    """What bytes say that are JSON beyond doubt; a ValueError for all others."""

    def once(pairs):
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name is there twice")
        return dict(pairs)

    def refuse(word):
        raise ValueError(word)

    return json.loads(content.decode(), object_pairs_hook=once, parse_constant=refuse)


# --- safetensors -------------------------------------------------------------------------------------------------

KINDS = ("float16", "float64", ml_dtypes.bfloat16, "int32", "int8", "uint64", "bool", "complex64", "float32")
SHAPED = (
    np.ravel, np.transpose, np.atleast_3d, lambda x: x[:-1], lambda x: x[..., :1], lambda x: x[:0], lambda x: x[None],
    lambda x: np.concatenate([x, x]), lambda x: np.zeros((), np.float32),
)  # fmt: skip
NUMBERS = st.floats(width=32) | st.sampled_from([1e300, -1e39, float("nan"), float("-inf"), -0.0, 1e-45])


@st.composite
def safetensors_files(draw, tensors):
    """The file of some tensors, mostly of other ones, with another header, or with damage to its bytes."""
    how = draw(st.sampled_from(["tensors", "tensors", "header", "bytes"]))
    if how == "tensors":
        with np.errstate(all="ignore"):  # numbers that other kinds of numbers cannot hold are meant
            tensors = _other_tensors(draw, dict(tensors))
    content = safetensors.numpy.save({name: np.ascontiguousarray(value) for name, value in tensors.items()})
    if how == "header":
        length = int.from_bytes(content[:8], "little")
        header = draw(damaged(json_text(json.loads(content[8 : 8 + length]))))
        size = len(header) + draw(st.sampled_from([0] * 9 + [1, -1, 8, 2**40, 2**63]))
        content = max(size, 0).to_bytes(8, "little") + header + content[8 + length :]
    if how == "bytes":
        content = draw(damaged(broken(content)) | st.binary(max_size=200))
    return content


def _other_tensors(draw, tensors):
    for _ in range(draw(st.sampled_from([0, 1, 1, 2]))):
        name = draw(st.sampled_from(sorted(tensors)))
        value = tensors[name]
        edit = draw(st.sampled_from(["without", "named", "twice", "kind", "shape", "number"]))
        if edit in ("without", "named"):
            del tensors[name]
        if edit in ("named", "twice"):
            other = draw(st.sampled_from(sorted(tensors)) | WORDS.filter(lambda word: word != "\ud800"))
            tensors[draw(st.sampled_from([other, f"bert.{name}", name.replace("weight", "gamma")]))] = value
        if edit == "kind" and value.dtype.kind == "f":
            tensors[name] = value.astype(draw(st.sampled_from(KINDS)))
        if edit == "shape" and value.ndim:
            tensors[name] = draw(st.sampled_from(SHAPED))(value)
        if edit == "number" and value.size and value.dtype.kind == "f":
            tensors[name] = value = value.astype(draw(st.sampled_from(["float32", "float64"])))
            value.flat[draw(st.integers(0, value.size - 1))] = draw(NUMBERS)
    return tensors


def with_header(tensors, change):
    """The file of some tensors with `change(header)` for the JSON that describes them."""
    content = safetensors.numpy.save(tensors)
    length = int.from_bytes(content[:8], "little")
    header = change(content[8 : 8 + length].decode()).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


STORED = {
    "F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2, "I64": "<i8", "I32": "<i4",
}  # fmt: skip


def stored_tensors(content):
    """The tensors of a safetensors file that is right, read in another way."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        tensors[name] = np.frombuffer(data[start:end], np.dtype(STORED[entry["dtype"]])).reshape(entry["shape"])
    return tensors


# --- outcomes ----------------------------------------------------------------------------------------------------


def snapshot(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def outcome(read, folder, kind=ValueError):
    """What `read` returns, or None after a check of its error; the folder is as it was in both cases.

    A warning must name the folder; an error must be of this very kind, in one short line that names it too.
    """
    before = snapshot(folder)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = read()
    except kind as error:
        assert type(error) is kind, f"{type(error).__name__}: {error}"
        check_line(str(error), str(folder))
        return None
    finally:
        assert snapshot(folder) == before
    for warning in caught:
        check_line(str(warning.message), str(folder))
    return result


def check_line(message, place):
    """Asserts that a message is one short line that names the place."""
    assert place in message, message
    assert message.isprintable(), repr(message)
    assert len(message) < 1000, message


def shapes_once_of(model_class):
    """A fixture of a module: a model's shapes are a pure function of it, so that tracing it once is enough."""

    @pytest.fixture(scope="module", autouse=True)
    def shapes_once():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model_class, "parameter_shapes", functools.cache(model_class.parameter_shapes))
            yield

    return shapes_once

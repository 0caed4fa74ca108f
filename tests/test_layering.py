"""Imports go one way, and nothing of TensorFlow or PyTorch is imported at run time."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "transformer_jax": {"bert_jax", "train", "torch", "tensorflow"},
    "bert_jax": {"train", "torch", "tensorflow"},
    "train": {"torch", "tensorflow"},
}


def imported(path: Path) -> set[str]:
    """Top-level names of everything that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_go_one_way(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {str(path): names for path in files if (names := imported(path) & FORBIDDEN[package])}
    assert not wrong


def test_there_is_no_utils_module():
    assert not [path for package in FORBIDDEN for path in (ROOT / package).rglob("utils.py")]


def test_importing_touches_no_device_and_no_other_framework():
    code = (
        "import sys, transformer_jax, bert_jax, train.pretrain, train.translate, train.__main__\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends, 'a device was touched'\n"
        "assert not {'torch', 'tensorflow', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)

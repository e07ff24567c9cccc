"""Imports run downwards only: adapters -> core, and inside the core engine -> model -> files.

The source is read, not run, so that an import inside a function counts as well.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FRAMEWORKS = {
    "langchain",
    "langchain_core",
    "langchain_community",
    "langchain_classic",
    "llama_index",
}
ADAPTERS = {"langchain_clara", "llama_index_clara"}
# The modules of the core from the bottom up. A module may import those of its own line or above it.
CORE = (
    {"announce", "errors", "turns"},
    {"config"},
    {"locate", "weights"},
    {"proof"},
    {"checkpoint"},
    {"convert", "tokens"},
)


def imports(path: Path) -> set[str]:
    """The full names of every module that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join(path.relative_to(ROOT).parts[: -node.level]) if node.level else ""
            module = ".".join(part for part in (origin, node.module) if part)
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def test_reader_sees_imports_in_functions(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "package" / "probe.py"
    path.parent.mkdir()
    path.write_text("def f():\n    from torch import nn\n    import numpy as np\n    from . import x\n")
    assert imports(path) == {"torch", "torch.nn", "numpy", "package", "package.x"}


@pytest.mark.parametrize("path", files("clara_core"), ids=lambda path: str(path.relative_to(ROOT)))
def test_core_knows_no_framework_and_no_adapter(path):
    tops = {name.partition(".")[0] for name in imports(path)}
    assert not tops & (FRAMEWORKS | ADAPTERS)


@pytest.mark.parametrize("path", files("langchain_clara"), ids=lambda path: str(path.relative_to(ROOT)))
def test_langchain_adapter_stands_on_langchain_core_alone(path):
    tops = {name.partition(".")[0] for name in imports(path)}
    # Agents live in `langchain`, an extra; whoever does not use them does not need it.
    agents = {"langchain"} if path.name == "middleware.py" else set()
    assert not tops & ({"langchain_community", "langchain_classic", "langchain"} - agents)
    assert not tops & {"llama_index", "llama_index_clara"}


@pytest.mark.parametrize("path", files("llama_index_clara"), ids=lambda path: str(path.relative_to(ROOT)))
def test_llama_index_adapter_stands_on_its_core_alone(path):
    names = imports(path)
    tops = {name.partition(".")[0] for name in names}
    assert not tops & {"langchain_clara", *(FRAMEWORKS - {"llama_index"})}
    meta = {name for name in names if name.startswith("llama_index")}
    assert all(name.startswith(("llama_index.core", "llama_index_clara")) for name in meta)


def test_files_of_the_core_import_downwards():
    below: set[str] = set()
    for layer in CORE:
        for module in layer:
            used = {
                name.split(".")[1]
                for name in imports(ROOT / "clara_core" / f"{module}.py")
                if name.startswith("clara_core.")
            }
            assert used <= below, f"{module} imports {sorted(used - below)}"
        below |= layer


@pytest.mark.parametrize("package", ["clara_core", "langchain_clara", "llama_index_clara"])
def test_packages_are_marked_as_typed(package):
    assert (ROOT / package / "py.typed").is_file()

"""Imports have one direction: adapters -> core, and inside the core engine -> model -> files.

The test parses the source and does not run it, so imports inside functions count, too.
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
# Folders of the repository that are not installed with the packages.
OUTSIDE = {"benchmarks", "examples", "tests", "tools"}
# The folders of the core, lowest layer first. A module may import from its own folder and from folders before it here.
# The folder of checkpoints lies in that of the model, and is the layer below it.
LAYERS = (
    "common", "data", "retrieval", "model.checkpoint", "model", "engine", "store", "serving", "evaluation", "training",
    "cli",
)  # fmt: skip
# Entry points of `python -m` lie in the folder of their name, and import the command line, which is a higher layer.
DOORS = {"clara_core.training.__main__"}


def imports(path: Path, *, at_top: bool = False) -> set[str]:
    """The full names of the modules that a file imports: anywhere in the file, or only when it is imported itself."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if at_top else ast.walk(tree):
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
    assert not tops & (FRAMEWORKS | ADAPTERS | OUTSIDE)


@pytest.mark.parametrize("path", files("langchain_clara"), ids=lambda path: str(path.relative_to(ROOT)))
def test_langchain_adapter_stands_on_langchain_core_alone(path):
    tops = {name.partition(".")[0] for name in imports(path)}
    # Agents are part of `langchain`, an extra that only their users need.
    agents = {"langchain"} if path.name == "middleware.py" else set()
    assert not tops & ({"langchain_community", "langchain_classic", "langchain"} - agents)
    assert not tops & {"llama_index", "llama_index_clara", *OUTSIDE}


@pytest.mark.parametrize("path", files("llama_index_clara"), ids=lambda path: str(path.relative_to(ROOT)))
def test_llama_index_adapter_stands_on_its_core_alone(path):
    names = imports(path)
    tops = {name.partition(".")[0] for name in names}
    assert not tops & {"langchain_clara", *(FRAMEWORKS - {"llama_index"}), *OUTSIDE}
    meta = {name for name in names if name.startswith("llama_index")}
    assert all(name.startswith(("llama_index.core", "llama_index_clara")) for name in meta)


@pytest.mark.parametrize(
    "path", files("langchain_clara") + files("llama_index_clara"), ids=lambda path: str(path.relative_to(ROOT))
)
def test_adapters_hold_no_tensors(path):
    """No adapter imports torch: not in a module, not in a function, not for annotations."""
    assert "torch" not in {name.partition(".")[0] for name in imports(path)}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


CORE = {module_of(path): path for path in files("clara_core")}


def used_by(module: str, *, at_top: bool = False) -> set[str]:
    """Modules of the core that a module imports, without itself and the packages that contain it."""
    found = set()
    for imported in imports(CORE[module], at_top=at_top):
        name = imported
        while name and name not in CORE:
            name = name.rpartition(".")[0]
        if name and not f"{module}.".startswith(f"{name}."):
            found.add(name)
    return found


def layer_of(module: str) -> int:
    """The number of the layer of a module: that of the innermost folder with one."""
    inside = f"{module.removeprefix('clara_core.')}."
    return LAYERS.index(max((layer for layer in LAYERS if inside.startswith(f"{layer}.")), key=len))


def test_the_top_of_the_core_has_ten_folders():
    there = {path.name for path in (ROOT / "clara_core").iterdir()} - {
        "__init__.py",
        "py.typed",
        "pocket",
        "__pycache__",
    }
    assert there == {layer.partition(".")[0] for layer in LAYERS}
    assert len(there) <= 10


@pytest.mark.parametrize("module", sorted(CORE.keys() - DOORS - {"clara_core"}))
def test_folders_of_the_core_import_downwards(module):
    place = layer_of(module)
    above = {name for name in used_by(module) if name != "clara_core" and layer_of(name) > place}
    assert not above, f"{module} lies in {LAYERS[place]}/ and imports {sorted(above)}"


def test_modules_of_the_core_form_no_cycle():
    waiting = {module: used_by(module, at_top=True) for module in CORE}
    while ready := [module for module, needs in waiting.items() if not needs & waiting.keys()]:
        for module in ready:
            del waiting[module]
    cycles = {module: sorted(needs & waiting.keys()) for module, needs in waiting.items()}
    assert not cycles


@pytest.mark.parametrize("package", ["clara_core", "langchain_clara", "llama_index_clara"])
def test_packages_are_marked_as_typed(package):
    assert (ROOT / package / "py.typed").is_file()

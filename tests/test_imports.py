"""Importing a package is cheap and loads no model library; a name is resolved at its first use."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PACKAGES = ("clara_core", "langchain_clara", "llama_index_clara")
HEAVY = (
    "torch",
    "transformers",
    "peft",
    "numpy",
    "langchain_core",
    "llama_index",
    "huggingface_hub",
)

PROBE = """
import json, sys, time
start = time.process_time()
import {package}
seconds = time.process_time() - start
print(json.dumps({{"seconds": seconds, "modules": sorted(sys.modules)}}))
"""


@pytest.mark.parametrize("package", PACKAGES)
def test_import_is_cheap_and_loads_no_model_library(package):
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(package=package)],
        capture_output=True,
        text=True,
        check=True,
    )
    seen = json.loads(done.stdout)
    assert seen["seconds"] < 1.0
    assert not {name.partition(".")[0] for name in seen["modules"]} & set(HEAVY)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_exists(package):
    module = __import__(package)
    for name in module.__all__:
        value = getattr(module, name)
        assert value[0].isdigit() if name == "__version__" else value.__name__ == name
    assert set(module.__all__) <= set(dir(module))


@pytest.mark.parametrize("package", PACKAGES)
def test_unknown_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        _ = __import__(package).nothing_of_this_name


@pytest.mark.parametrize(
    "missing, name, extra",
    [
        ("langchain_core", "langchain_clara.ChatClara", "langchain"),
        ("llama_index", "llama_index_clara.ClaraLLM", "llama-index"),
    ],
)
def test_without_an_optional_package_the_error_says_what_to_install(missing, name, extra):
    package = name.partition(".")[0]
    code = (
        f"import sys\nsys.modules[{missing!r}] = None\nimport {package}\ntry: {name}\nexcept ImportError as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"{name.partition('.')[2]} needs {missing}: pip install 'clara-rag[{extra}]'" in done.stdout


def test_without_the_extra_a_store_is_kept_in_memory(tmp_path):
    code = f"""
import sys
sys.modules["lance"] = sys.modules["pyarrow"] = None
from clara_core import MemoryStore
store = MemoryStore.open("memory://")
store.add(["The bridge was opened in 1907."], [{{"n": 1}}], ["a"], vectors=[[1.0, 2.0]])
print([hit.id for hit in store.search("bridge", mode="text", filter={{"n": 1}})])
try: MemoryStore.open({str(tmp_path / "folder")!r})
except ImportError as e: print(e)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "['a']" in done.stdout
    assert "needs Lance: pip install 'clara-rag[store]'" in done.stdout


def test_errors_are_one_tree():
    import clara_core

    names = [name for name in clara_core.__all__ if isinstance(getattr(clara_core, name), type)]
    errors = [getattr(clara_core, name) for name in names]
    errors = [error for error in errors if issubclass(error, Exception)]
    in_file = {error for error in vars(clara_core.common.errors).values() if isinstance(error, type)}
    assert set(errors) == in_file
    assert all(issubclass(error, clara_core.ClaraError) for error in errors)

"""The pages say what is so: their Python runs, their tests exist, their numbers follow."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate

import langchain_clara
from clara_core import ClaraEngine
from clara_core.projection import Projection
from tests.langchain_data import bundled_or_tiny

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted((ROOT / "docs" / "langchain").glob("*.md"))
DOCUMENTS = [
    Document("Tolmet Bridge was opened in 1907. Ada Quill designed it.", id="bridge", metadata={"source": "bridge.md"}),
    Document("Weldenia is a genus of flowering plants.", id="plant", metadata={"source": "plant.md", "year": 1921}),
    Document("The lighthouse of Aln stands on a rock.", id="tower", metadata={"source": "tower.md", "town": "Aln"}),
]


@pytest.fixture
def names():
    """What the pages take for granted."""
    from langchain_community.retrievers import BM25Retriever

    return {
        "documents": DOCUMENTS,
        "question": "When was Tolmet Bridge opened?",
        "engine": ClaraEngine.from_pretrained(bundled_or_tiny()),
        "any_retriever": BM25Retriever.from_documents(DOCUMENTS, k=3),
        "prompt": ChatPromptTemplate.from_messages([("system", "Context: {context}"), ("human", "{input}")]),
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_of_a_page_runs(page, names):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        code = block.replace('"pocket"', repr(bundled_or_tiny()))
        exec(compile(code, page.name, "exec"), names)  # noqa: S102 - our own pages


def test_every_component_has_a_page():
    index = (ROOT / "docs" / "langchain" / "README.md").read_text(encoding="utf-8")
    for name in set(langchain_clara.__all__) - {"__version__"}:
        assert f"`{name}`" in index
    for target in re.findall(r"\]\(([\w.]+\.md)(?:#[\w-]+)?\)", "".join(page.read_text("utf-8") for page in PAGES)):
        assert (ROOT / "docs" / "langchain" / target).is_file(), target


def test_tests_that_watch_over_traps_exist():
    page = (ROOT / "docs" / "langchain" / "traps.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and "::" in line]
    assert len(rows) > 35
    for row in rows:
        file = ""
        for named in re.findall(r"`([\w/.]*)::(\w+)`", row):
            file = named[0].replace("L/", "langchain/") or file
            source = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert f"def {named[1]}(" in source, f"{file} has no {named[1]}"


def test_errors_of_the_projection_are_those_of_the_table():
    page = (ROOT / "docs" / "langchain" / "embeddings.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE)
    assert len(rows) == 3
    for dimensions, *errors in rows:
        projection = Projection(65_536, int(dimensions.replace(",", "")))
        for cosine, error in zip((0.0, 0.5, 0.8), errors, strict=True):
            assert f"{projection.standard_error(cosine):.3f}" == error

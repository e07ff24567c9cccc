"""The tests that the pages name exist, and their computed numbers are right; tests/test_docs.py runs the programs."""

from __future__ import annotations

import re
from pathlib import Path

import langchain_clara
from clara_core.retrieval.projection import Projection

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted((ROOT / "docs" / "langchain").glob("*.md"))


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

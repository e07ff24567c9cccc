"""A model measured on questions of your own: what it finds beside BM25, what it answers, and the questions it misses.

    pip install 'clara-rag[train]'
    python examples/evaluate.py [MODEL [FOLDER [QUESTIONS]]]

QUESTIONS is a JSON list of objects with `question`, `answers`, and `files`: the files of FOLDER that hold the
answer; questions without an answer are left out. Without such a list `clara synthesize FOLDER --held-out 0.1` writes
questions by a language model, for `clara eval`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from clara_core import ClaraEngine
from clara_core.data.documents import cut_passages, read_folder
from clara_core.evaluation import evaluate, read_questions

EXAMPLES = Path(__file__).parent


def write_lines(engine: ClaraEngine, folder: Path, questions: Path, out: Path) -> None:
    """Each question with all passages of the folder as its candidates, in the layout of the published files."""
    files, _ = read_folder(folder)
    passages = [passage for file in files for passage in cut_passages(file, engine.tokenizer.windows)]
    with out.open("w", encoding="utf-8") as lines:
        for entry in json.loads(questions.read_text(encoding="utf-8")):
            if not entry["answers"]:
                continue
            line = {
                "question": entry["question"],
                "golden_answers": entry["answers"],
                "docs": [passage.text for passage in passages],
                "pos_index": [i for i, passage in enumerate(passages) if passage.file in entry["files"]],
            }
            lines.write(json.dumps(line) + "\n")


def main(
    model: str = "pocket",
    folder: str | Path = EXAMPLES / "data",
    questions: str | Path = EXAMPLES / "questions.json",
) -> dict[str, float]:
    """Ask all questions; returns the figures that it prints."""
    engine = ClaraEngine.from_pretrained(model)
    with tempfile.TemporaryDirectory() as room:
        path = Path(room) / "questions.jsonl"
        write_lines(engine, Path(folder), Path(questions), path)
        report = evaluate(engine, read_questions(path), modes=("normal", "oracle"), timed=0, paraphrases=0)
    retrieval, answers = report.metrics["retrieval"], report.metrics["answers"]
    figures = {
        "hit@5 by memory": retrieval["memory"]["hit@5"],
        "hit@5 by BM25": retrieval["bm25"]["hit@5"],
        "exact match, five passages as ranked": answers["normal"]["memory"]["exact_match"],
        "exact match, the right passages among five": answers["oracle"]["memory"]["exact_match"],
    }
    for name, value in figures.items():
        print(f"{value:.2f}  {name}")
    return figures


if __name__ == "__main__":
    main(*sys.argv[1:4])

"""The report of an evaluation: metrics and single questions, written to a folder as Markdown, JSON and plots."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clara_core.common.errors import ClaraError
from clara_core.evaluation.cost import Alignment
from clara_core.evaluation.outcomes import QUESTIONS, Outcome
from clara_core.evaluation.paraphrases import Paraphrase
from clara_core.evaluation.summary import recall_curves

METRICS, MARKDOWN, PARAPHRASES = "metrics.json", "report.md", "paraphrases.jsonl"
_SHOWN = 10  # wrong answers in the report
_LONGEST = 160  # characters of a text in a table
_READERS = {"memory": "memory", "text": "the same documents as text", "bm25_text": "BM25's documents as text"}
_RANKERS = {"memory": "memory", "bm25": "BM25", "given": "as given"}


@dataclass(frozen=True)
class Report:
    """The result of `evaluate`.

    Attributes:
        settings: The evaluated model and the settings of the run.
        metrics: Result of `clara_core.evaluation.summary.summarize`, with ``latency`` and ``alignment`` added.
        questions: One outcome for each question, in order.
        paraphrases: Passages with their paraphrases.
        alignment: Memory tokens and text tokens in two dimensions; None for fewer than two passages.
        log: The file to which outcomes were written during the run, if any.
    """

    settings: dict[str, Any]
    metrics: dict[str, Any]
    questions: list[Outcome]
    paraphrases: list[Paraphrase]
    alignment: Alignment | None
    log: Path | None = None

    def write(self, folder: str | Path) -> None:
        """Write ``report.md`` with its plots, ``metrics.json``, ``questions.jsonl`` and ``paraphrases.jsonl``.

        Raises:
            ImportError: matplotlib is not installed.
            ClaraError: The folder cannot be written.
        """
        folder = Path(folder)
        curves = recall_curves(self.questions)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self.log is None or self.log.resolve() != (folder / QUESTIONS).resolve():
                _write(folder / QUESTIONS, "".join(outcome.to_json() + "\n" for outcome in self.questions))
            lines = (json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in self.paraphrases)
            _write(folder / PARAPHRASES, "".join(lines))
            if curves:
                plot_recall({_RANKERS[name]: curve for name, curve in curves.items()}, folder / "recall.png")
            if self.alignment is not None:
                plot_alignment(self.alignment, folder / "memory.png")
            facts = {"settings": self.settings, **self.metrics, "recall_curves": curves}
            _write(folder / METRICS, json.dumps(facts, ensure_ascii=False, indent=1) + "\n")
            _write(folder / MARKDOWN, self.markdown())
        except OSError as exc:
            raise ClaraError(f"the report cannot be written to {folder}: {exc.strerror or exc}") from exc

    def markdown(self) -> str:
        """The report as Markdown; its plots are files in the same folder."""
        parts = [
            f"# {_cell(self.settings['model'])} on {self.metrics['questions']:,} questions",
            _table(("", ""), [(name.replace("_", " "), value) for name, value in self.settings.items()]),
            *self._answers(),
            *self._retrieval(),
            *self._cost(),
            *self._paraphrases(),
            *self._wrong(),
        ]
        return "\n\n".join(parts) + "\n"

    def _answers(self) -> list[str]:
        columns = ("mode", "read from", "EM", "Cover-EM", "F1", "BLEU", "memory tokens", "text tokens", "failed")
        rows = [
            (
                mode,
                _READERS[system],
                *(f"{one[name]:.3f}" for name in ("exact_match", "cover_match", "f1", "bleu")),
                *(f"{one[name]:.1f}" for name in ("memory_tokens", "source_tokens")),
                int(one["failed"]),
            )
            for mode, systems in self.metrics["answers"].items()
            for system, one in systems.items()
        ]
        note = (
            "*normal*: the first documents of the ranking are read. *oracle*: the gold passages are among them. Tokens "
            "are the memory tokens and text tokens of a question's documents."
        )
        return ["## Answers", _table(columns, rows), note]

    def _retrieval(self) -> list[str]:
        if "retrieval" not in self.metrics:
            return ["## Retrieval", "No line names its gold passages (`pos_index`)."]
        retrieval: dict[str, dict[str, float]] = self.metrics["retrieval"]
        names = list(next(iter(retrieval.values())))
        rows = [(name, *(f"{scores[name]:.3f}" for scores in retrieval.values())) for name in names]
        note = (
            f"Over the {self.metrics['with_gold']:,} questions whose gold passages are known, each over its candidates."
        )
        picture = "![Recall over the number of candidates that are read](recall.png)"
        return ["## Retrieval", _table(("", *(_RANKERS[name] for name in retrieval)), rows), note, picture]

    def _cost(self) -> list[str]:
        size = self.metrics["size"]
        rows = [
            ("bytes", f"{size['memory_bytes']:,.0f}", f"{size['text_bytes']:,.0f}"),
            ("tokens", f"{size['memory_tokens']:.1f}", f"{size['text_tokens']:.1f}"),
        ]
        parts = ["## Cost", "A passage, on average:", _table(("", "memory", "text"), rows)]
        latency = self.metrics.get("latency")
        if latency:
            steps = {
                "compress": f"compress {latency['passages']:.0f} passages",
                "rank": "encode the question, rank its candidates",
                "answer": "answer from memory",
                "text": "answer from text (the text LLM)",
            }
            times = [
                (label, f"{latency[name]['p50']:,.1f}", f"{latency[name]['p95']:,.1f}")
                for name, label in steps.items()
                if name in latency
            ]
            where = f"{_cell(self.settings['hardware'])}, {latency['questions']} questions asked one by one"
            parts += [f"Milliseconds on {where}:", _table(("", "p50", "p95"), times)]
        if self.alignment is not None:
            near = self.metrics["alignment"]
            parts.append("![Memory tokens and document tokens in two dimensions](memory.png)")
            parts.append(
                f"Mean memory token and mean document token of {near['passages']} passages, on their two principal "
                f"components. Mean squared error between the two {near['mse']:.4g}, cosine {near['cosine']:.3f}."
            )
        return parts

    def _paraphrases(self) -> list[str]:
        scores = self.metrics.get("paraphrase")
        if not scores:
            return []
        names = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "bleu": "BLEU", "entities": "entities"}
        rows = [(label, f"{scores[name]:.3f}") for name, label in names.items() if name in scores]
        note = (
            f"{scores['passages']} passages, each paraphrased from its memory alone. *entities* is the share of names "
            "(runs of words with a capital letter) and numbers that the paraphrase repeats word for word."
        )
        return ["## Paraphrase round trip", _table(("", ""), rows), note]

    def _wrong(self) -> list[str]:
        read = [(one, [reply for reply in one.replies if reply.system == "memory"]) for one in self.questions]
        # Show one wrong answer a question, because most answers are the same in both modes.
        wrong = [(one, [reply for reply in replies if not reply.cover_match]) for one, replies in read]
        found = [(one, replies[0]) for one, replies in wrong if replies]
        if not found:
            return []
        rows = [
            (outcome.where, reply.mode, outcome.question, " / ".join(outcome.references), reply.failed or reply.text)
            for outcome, reply in found[:_SHOWN]
        ]
        title = f"## Questions whose gold answer was not covered from memory: {len(rows)} of {len(found):,}"
        return [title, _table(("line", "mode", "question", "gold", "answer"), rows)]


def _write(path: Path, text: str) -> None:
    """Write a file atomically."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text, "utf-8")
    unfinished.replace(path)


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    right = [
        "---:" if index and all(_is_number(row[index]) for row in rows) else "---" for index in range(len(columns))
    ]
    lines = [columns, right, *([_cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _is_number(value: object) -> bool:
    return str(value).replace(",", "").replace(".", "").isdigit()


def _cell(value: object) -> str:
    """Escape a value for a Markdown table, on one line and shortened to `_LONGEST` characters."""
    if isinstance(value, Mapping):
        value = ", ".join(f"{name} {one}" for name, one in value.items())
    elif isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    text = " ".join(str(value).split())
    text = text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
    return "".join(f"\\{char}" if char in "\\`*_[]<>|#!&" else char for char in text)


# --- plots --------------------------------------------------------------------------------------------


def plot_recall(curves: Mapping[str, Sequence[float]], picture: Path) -> None:
    """Plot recall at 1, 2, 3, … for each ranker.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure, axes = _figure()
    longest = max(map(len, curves.values()))
    for name, values in curves.items():
        axes.plot(range(1, len(values) + 1), values, marker=".", linewidth=1.2, label=name)
    axes.set(xlabel="candidates that are read (k)", ylabel="recall@k", ylim=(0, 1.02), xlim=(0.5, longest + 0.5))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(picture, dpi=120)


def plot_alignment(points: Alignment, picture: Path) -> None:
    """Plot memory tokens and document tokens in two dimensions.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure, axes = _figure()
    for name, both, colour in (("document tokens", points.text, "C0"), ("memory tokens", points.memory, "C3")):
        axes.scatter([x for x, _ in both], [y for _, y in both], s=14, alpha=0.7, color=colour, label=name)
    first, second = (f"component {number} ({share:.0%})" for number, share in enumerate(points.explained, start=1))
    axes.set(xlabel=first, ylabel=second)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(picture, dpi=120)


def load_figure() -> Any:
    """Import matplotlib's `Figure`, which needs no display.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise ImportError("the plots of a report need matplotlib: pip install 'clara-rag[train]'") from exc
    return Figure


def _figure() -> tuple[Any, Any]:
    figure = load_figure()(figsize=(6, 4), layout="constrained")
    return figure, figure.subplots()

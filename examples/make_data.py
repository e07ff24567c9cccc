"""Write the files of `examples/data`: a small folder of texts and questions about them.

    python examples/make_data.py [FOLDER]

The texts come from the held-out half of the generated encyclopedia, whose names occur in no
training text. Most files hold one passage; four are long articles of many sections.
Beside the folder, `questions.json` lists questions with their answers and the files that they come
from. The output is the same every time.
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

from tools.pocket_factory.world import RELATIONS, Corpus, Passage, Question, make_corpus

SEED = 3
PASSAGES = 80
SINGLE_FILES = 28
# Long articles: file, title, opening line, kinds of their sections, most sections.
ARTICLES = (
    ("people.md", "Notable people", "Short lives, in no special order.", ("person",), 7),
    ("towns.md", "A traveller's guide to the towns", "What to know before you go.", ("town",), 7),
    ("waters.txt", "Rivers and lakes", "", ("river", "lake"), 6),
    ("plants-and-animals.md", "Plants and animals", "A field notebook.", ("plant", "animal"), 8),
)


def main(folder: Path) -> None:
    """Write every file into `folder`, which is made where it is missing."""
    corpus = make_corpus(random.Random(SEED), PASSAGES, "test", words=(40, 180), two_passage=1.0)
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.md"), *folder.glob("*.txt")):
        old.unlink()
    places = write_articles(corpus, folder)
    rest = [index for index in range(len(corpus.passages)) if index not in places]
    for number, index in enumerate(rest[:SINGLE_FILES]):
        passage = corpus.passages[index]
        suffix = ".md" if number % 2 else ".txt"
        path = free_path(folder, passage.title, suffix)
        heading = f"# {passage.title}\n\n" if suffix == ".md" else ""
        path.write_text(heading + paragraphs(passage) + "\n", encoding="utf-8")
        places[index] = path.name
    chosen = choose(corpus, places)
    entries = [{"question": q.text, "answer": q.answer, "files": sorted({places[at] for at in q.gold})} for q in chosen]
    written = json.dumps(entries, indent=2, ensure_ascii=False)
    (folder.parent / "questions.json").write_text(written + "\n", encoding="utf-8")


def write_articles(corpus: Corpus, folder: Path) -> dict[int, str]:
    """Write the long articles and return the file of each passage that went into one."""
    places: dict[int, str] = {}
    for name, title, opening, kinds, most in ARTICLES:
        markdown = name.endswith(".md")
        sections = [at for at, p in enumerate(corpus.passages) if p.kind in kinds][:most]
        parts = [f"# {title}" if markdown else title.upper(), *([opening] if opening else [])]
        for at in sections:
            passage = corpus.passages[at]
            parts.append(f"## {passage.title}" if markdown else passage.title)
            parts.append(paragraphs(passage))
            places[at] = name
        (folder / name).write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return places


def paragraphs(passage: Passage) -> str:
    """Return the text with a blank line after every fifth sentence or so."""
    sentences = re.split(r"(?<=\.) ", passage.text)
    cuts = range(0, max(1, len(sentences) - 2), 5)
    ends = [*list(cuts)[1:], len(sentences)]
    return "\n\n".join(" ".join(sentences[a:b]) for a, b in zip(cuts, ends, strict=True))


def free_path(folder: Path, title: str, suffix: str) -> Path:
    """Return a path for a title; a second text about the same subject gets "-notes"."""
    stem = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    taken = any((folder / (stem + ending)).exists() for ending in (".md", ".txt"))
    return folder / (stem + ("-notes" if taken else "") + suffix)


def choose(corpus: Corpus, places: dict[int, str]) -> list[Question]:
    """Choose nine questions over one file and three over two, of many types and files."""
    usable = [q for q in corpus.questions if all(at in places for at in q.gold)]
    single: list[Question] = []
    for kind in ("town", "year", "quantity", "person", "list", "date", "choice", "region", "river"):
        seen = {places[q.gold[0]] for q in single}
        single.append(
            next(
                q
                for q in usable
                if len(q.gold) == 1 and RELATIONS[q.kind].draw.kind == kind and places[q.gold[0]] not in seen
            )
        )
    double = [
        next(q for q in usable if q.kind.startswith(form) and len({places[at] for at in q.gold}) == 2)
        for form in ("bridge", "compare", "pair")
    ]
    return [*single[:3], double[0], *single[3:6], double[1], *single[6:], double[2]]


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data")

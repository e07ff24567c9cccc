"""Sentences about events (who did what, where, when, why, with whom, for how much), and questions about each part."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

from tools.pocket_factory.frames import Made, sentence, upper
from tools.pocket_factory.values import Pools

# base form, past, participle and sort of the object
_VERBS = [
    tuple(line.split())
    for line in (Path(__file__).parent / "verbs.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]
_PEOPLE = ("person",)
JOINED = 0.4  # share of the passages of one person that are one sentence


class Events:
    """Draws passages of one to four events."""

    def __init__(self, pools: Pools) -> None:
        self.pools = pools

    def one(
        self, rng: random.Random, who: str | None = None, *, plain: bool = False
    ) -> tuple[str, list[tuple[str, str]], list[str], str]:
        """A sentence, its questions, questions that it does not answer, its subject; `plain` puts the subject first."""
        d = partial(self.pools.draw, rng)
        base, past, participle, sort = rng.choice(_VERBS)
        subject = who or (
            d("person")
            if rng.random() < 0.75
            else rng.choice((d("given"), "the " + d("job"), d("org"), "the " + d("adj") + " " + d("job")))
        )
        thing = d(sort)
        living = sort in _PEOPLE
        parts: dict[str, tuple[str, str]] = {}  # name -> (as in the sentence, answer)
        if rng.random() < 0.5:
            place = d("place")
            parts["where"] = (f"in {place}", place)
        elif rng.random() < 0.25:
            spot = d("prepspot")
            parts["where"] = (spot, spot)
        if rng.random() < 0.6:
            kind = rng.choice(("year", "year", "date", "day", "month", "clock"))
            time = d(kind)
            parts["when"] = (
                {
                    "year": f"in {time}",
                    "date": f"on {time}",
                    "day": f"on {time}",
                    "month": f"in {time}",
                    "clock": f"at {time}",
                }[kind],
                time,
            )
            parts["whenkind"] = (kind, kind)
        if rng.random() < 0.2:
            other = d("person")
            parts["with"] = (f"{rng.choice(('with', 'together with', 'with'))} {other}", other)
        if rng.random() < 0.15 and sort in ("thing", "object", "building", "address", "software", "org", "animal"):
            money = d("money")
            parts["price"] = (f"for {money}", money)
        if rng.random() < 0.15:
            reason = d("because")
            parts["why"] = (f"because {reason}", reason.removeprefix("of "))
        elif rng.random() < 0.1:
            goal = d("task")
            parts["purpose"] = (f"to {goal}", goal)
        if rng.random() < 0.08 and not living:
            how = d("object")
            parts["how"] = (f"with {how}", how)
        middle = [parts[n][0] for n in ("with", "price", "how", "where") if n in parts]
        rng.shuffle(middle)
        late = [parts[n][0] for n in ("why", "purpose") if n in parts]
        when = parts["when"][0] if "when" in parts else ""
        x = 1.0 if plain else rng.random()
        tail = " ".join(middle)
        if when and x < 0.3:
            said = f"{when}, {subject} {past} {thing} {tail}".strip()
        elif x < 0.5:
            said = (
                f"{thing} was {participle} {tail} by {subject} {when}".strip()
                if rng.random() < 0.5
                else f"{thing} was {participle} by {subject} {tail} {when}"
            )
        elif x < 0.56:
            said = f"it was {subject} who {past} {thing} {tail} {when}"
        elif x < 0.62 and "where" in parts:
            rest = " ".join(m for m in middle if m != parts["where"][0])
            said = f"{parts['where'][0]}, {subject} {past} {thing} {rest} {when}"
        else:
            said = f"{subject} {past} {thing} {tail} {when}".strip()
        said = " ".join((said + " " + " ".join(late)).split())
        was = "was"
        q: list[tuple[str, str]] = [
            (f"Who {past} {thing}?", subject),
            (f"By whom was {thing} {participle}?", subject),
            (f"who {past} {thing}", subject),
            (f"Who was it that {past} {thing}?", subject),
            (
                f"{'Whom' if living and rng.random() < 0.5 else 'Who' if living else 'What'} did {subject} {base}?",
                thing,
            ),
            (f"Tell me {'whom' if living else 'what'} {subject} {past}.", thing),
            (f"{'Which person' if living else 'What'} was {participle} by {subject}?", thing),
        ]
        u: list[str] = []
        if "where" in parts:
            a = parts["where"][1]
            q += [
                (f"Where did {subject} {base} {thing}?", a),
                (f"Where was {thing} {participle}?", a),
                (f"In which place did {subject} {base} {thing}?", a),
                (f"place where {thing} was {participle}", a),
            ]
        else:
            u += [f"Where did {subject} {base} {thing}?", f"Where was {thing} {participle}?"]
        if "when" in parts:
            a, kind = parts["when"][1], parts["whenkind"][1]
            q += [
                (f"When did {subject} {base} {thing}?", a),
                (f"When was {thing} {participle}?", a),
                (f"{thing} {participle} when", a),
            ]
            ask = {
                "year": "In which year",
                "date": "On what date",
                "day": "On which day",
                "month": "In which month",
                "clock": "At what time",
            }[kind]
            q += [
                (f"{ask} did {subject} {base} {thing}?", a),
                (f"{ask} was {thing} {participle}?", a),
                (f"What {ask.split()[-1]} was it when {subject} {past} {thing}?", a),
            ]
        else:
            u += [f"When did {subject} {base} {thing}?", f"In which year was {thing} {participle}?"]
        if "with" in parts:
            a = parts["with"][1]
            q += [
                (f"With whom did {subject} {base} {thing}?", a),
                (f"Who did {subject} {base} {thing} with?", a),
                (f"Who was with {subject}?", a),
            ]
        else:
            u.append(f"With whom did {subject} {base} {thing}?")
        if "price" in parts:
            a = parts["price"][1]
            q += [
                (f"How much did {thing} cost?", a),
                (f"For how much did {subject} {base} {thing}?", a),
                (f"What was the price of {thing}?", a),
                (f"price of {thing}", a),
            ]
        elif not living:
            u += [f"How much did {thing} cost?", f"For how much was {thing} {participle}?"]
        if "why" in parts:
            a = parts["why"][1]
            q += [
                (f"Why did {subject} {base} {thing}?", a),
                (f"Why was {thing} {participle}?", a),
                (f"For what reason did {subject} {base} {thing}?", a),
            ]
        else:
            u.append(f"Why did {subject} {base} {thing}?")
        if "purpose" in parts:
            a = "to " + parts["purpose"][1] if rng.random() < 0.0 else parts["purpose"][1]
            q += [
                (f"What did {subject} {base} {thing} for?", a),
                (f"For what purpose did {subject} {base} {thing}?", a),
            ]
        if "how" in parts:
            a = parts["how"][1]
            q += [(f"With what did {subject} {base} {thing}?", a), (f"What did {subject} use to {base} {thing}?", a)]
        # yes or no
        if rng.random() < 0.5:
            yes = rng.random() < 0.5
            other = thing if yes else d(sort)
            if yes or other != thing:
                q.append((f"Did {subject} {base} {other}?", "Yes" if yes else "No"))
                q.append((f"{upper(was)} {other} {participle} by {subject}?", "Yes" if yes else "No"))
        stranger = d("person")
        u += [
            f"{'Whom' if living else 'What'} did {stranger} {base}?",
            f"Where did {stranger} {base} {thing}?",
            f"Who {past} {d(sort)}?",
        ]
        return sentence(rng, said), q, u, subject

    def make(self, rng: random.Random, count: int | None = None) -> Made:
        """A passage of one to four events, often of the same person."""
        count = count or rng.choice((1, 1, 1, 2, 2, 3, 4))
        shared = self.pools.draw(rng, "person") if rng.random() < 0.4 else None
        texts, asked, misses, names = [], [], [], []
        joined = shared is not None and count > 1 and rng.random() < JOINED
        for _ in range(count):
            said, q, u, who = self.one(rng, shared, plain=joined)
            if shared and count > 1:  # "What did Anna do?" has several answers: keep questions that name an event
                q = [
                    (question, answer)
                    for question, answer in q
                    if answer not in question
                    and not (
                        question.startswith(
                            ("What did", "Who did", "Whom did", "Tell me", "What was", "Which person", "Who was with")
                        )
                    )
                ]
                u = [one for one in u if shared not in one or count == 1]
            texts.append(said)
            asked += q
            misses += u
            names.append(who)
        if shared and joined:  # Anna sold the boat in May, painted the shed and moved to Lund
            parts = [text.rstrip(".!").removeprefix(upper(shared)).strip() for text in texts]
            texts = [sentence(rng, f"{shared} {', '.join(parts[:-1])} and {parts[-1]}")]
        rng.shuffle(misses)
        return Made(names[0], " ".join(texts), asked, misses[:4], "event")

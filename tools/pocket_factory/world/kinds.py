"""The kinds of subjects: their names, their nouns, their relations and their filler sentences."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

from .catalogue_events import EVENTS
from .catalogue_nature import LANDSCAPE, SPECIES
from .catalogue_people import COMPANIES, PEOPLE, PLACES
from .catalogue_works import BOOKS, BUILDINGS, INVENTIONS
from .relations import MONTHS, Relation

RELATIONS: dict[str, Relation] = {
    relation.name: relation
    for group in (
        PEOPLE, PLACES, COMPANIES, LANDSCAPE, SPECIES, BOOKS, EVENTS, BUILDINGS, INVENTIONS
    )
    for relation in group
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A kind of subject.

    Attributes:
        name: As in `Passage.kind`.
        weight: Share among the subjects of a corpus, not normalised.
        noun: As in "the town", "it is a town"; empty means the last word of the name ("the tower").
        article: Whether running text puts "the" before the name.
        relations: Names of the relations that its subjects can have.
        patterns: Name patterns for `Names.pattern`; empty for people and places of a pool.
        fillers: Sentences without a fact that a question asks for.
    """

    name: str
    weight: int
    noun: str
    article: bool
    relations: tuple[str, ...]
    patterns: tuple[str, ...] = ()
    fillers: tuple[str, ...] = ()


_ANY_FILLERS = (
    "Much more could be said about {o}.",
    "Many stories are told about {o}, and few of them are true.",
    "Old records about {o} are kept in a small archive.",
    "Several students have written essays about {o}.",
    "A short account of {o} can be found in most guides.",
    "Not every source agrees on the details.",
    "The older books on the subject are hard to find today.",
    "Most of what is known comes from letters and old newspapers.",
    "A fire destroyed many of the early papers.",
    "Some further notes are kept in a private archive and have never been printed.",
    "The details were checked again a few years ago, and nothing had to be changed.",
    "Readers often ask for more, but the sources are silent.",
)
_PERSON = (
    "People described {o} as patient and kind.",
    "{s} rose early and worked until dusk.",
    "{s} wrote long letters and kept every reply.",
    "{s} disliked noise and loved long walks.",
    "Neighbours often saw {o} at the window, reading by candlelight.",
    "A small portrait of {o} has survived.",
    "{s} never spoke about the early years.",
    "Few people understood how carefully {s} prepared every piece of work.",
)
_PLACE = (
    "Travellers like {o} best in the early morning.",
    "In winter {s} is often covered in fog.",
    "Painters have often come to {o} for the light.",
    "A narrow road leads to {o}.",
    "The views around {o} are calm and wide.",
    "Children learn old songs about {o} at school.",
    "In spring the hills nearby are green, and the air smells of rain.",
    "Storms are rare here, but they can be violent.",
)
_SPECIES = (
    "{s} is shy of the wind and the cold.",
    "Old herbals and bestiaries rarely mention {o}.",
    "Farmers believe that {s} brings good luck.",
    "{s} is protected by law in many places.",
    "In hard winters {s} becomes rare.",
    "Drawings of {o} hang in many schools.",
    "Nobody knows exactly how old {s} can become.",
    "It is easily confused with its close relatives.",
)
_COMPANY = (
    "Visitors are welcome on weekdays.",
    "{s} survived two wars and a great flood.",
    "{s} is known for fair wages.",
    "Many families have worked for {o} for generations.",
    "The early account books of {o} have been lost.",
    "A plain brass plate marks the entrance.",
)
_BOOK = (
    "The first readers did not know what to think of {o}.",
    "{s} is still read aloud on long evenings.",
    "{s} has been translated many times.",
    "Copies of {o} are rare and expensive.",
    "The last chapter is the most famous one.",
    "Schools often choose a few lines of {o} for young readers.",
    "It was read by people of every age.",
)
_EVENT = (
    "Old people still talk about {o}.",
    "The weather was better than anyone had hoped.",
    "Songs about {o} were sung for many years.",
    "A painting of {o} hangs in the national gallery.",
    "Newspapers wrote about {o} for weeks.",
    "Preparations took longer than planned.",
)
_BUILDING = (
    "Pigeons nest under the roof of {o}.",
    "In the evening {s} glows in the low sun.",
    "{s} has been repaired several times.",
    "Photographs of {o} are sold at every corner.",
    "At first many people found it ugly.",
    "Repairs were long delayed, because money was short.",
)
_INVENTION = (
    "A working model of {o} is shown to schools.",
    "{s} was mocked at first.",
    "Early versions of {o} broke down again and again.",
    "{s} is simple to use and easy to repair.",
    "Few drawings of {o} have survived.",
    "It makes a low humming sound.",
)

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("person", 18, "", False,
             ("birthplace", "birth_year", "profession", "teacher", "assistant", "residence",
              "death_date", "collection"), (), _PERSON),
        Kind("town", 14, "town", False,
             ("region", "population", "mayor", "founded", "exports", "river", "altitude",
              "market_day"), (), _PLACE),
        Kind("river", 7, "river", True,
             ("region", "length", "source", "mouth", "fish", "surveyor", "chart_year"), (), _PLACE),
        Kind("lake", 6, "lake", False,
             ("region", "depth", "area", "islands", "fish", "surveyor", "chart_year"),
             ("Lake @",), _PLACE),
        Kind("mountain", 7, "mountain", False,
             ("region", "height", "rock", "climber", "ascent_year", "ores"), (), _PLACE),
        Kind("plant", 9, "plant", True,
             ("family", "flower_colour", "habitat", "describer", "described_year",
              "native_region", "plant_height", "flowering", "uses"),
             ("@ orchid", "@ lily", "@ fern", "@ rose", "@ thistle", "@ violet", "@ ~"), _SPECIES),
        Kind("animal", 7, "animal", True,
             ("family", "fur_colour", "habitat", "describer", "described_year",
              "native_region", "weight", "diet"),
             ("@ hare", "@ otter", "@ fox", "@ goat", "@ deer", "@ badger", "@ ~"), _SPECIES),
        Kind("company", 9, "company", False,
             ("founder", "seat", "founded", "products", "employees", "director", "emblem"),
             ("@ Works", "@ Mills", "@ Foundry", "@ Brothers", "@ Glass", "@ Instruments"),
             _COMPANY),
        Kind("book", 10, "book", False,
             ("author", "published", "genre", "language", "pages", "setting", "dedicatee"),
             ("The @ Letters", "The @ Chronicle", "The Garden of @", "A Winter in @",
              "The Road to @", "The @ Mirror", "Songs of @"), _BOOK),
        Kind("battle", 6, "battle", True,
             ("battle_date", "winner", "commander", "battle_town", "losses", "duration"),
             ("Battle of @", "Battle of @ Field", "Battle of @ Ford"), _EVENT),
        Kind("expedition", 5, "expedition", True,
             ("leader", "departure", "port", "destination", "members", "findings"),
             ("@ Expedition",), _EVENT),
        Kind("festival", 6, "festival", True,
             ("founded", "founder", "director", "host", "month", "visitors", "theme"),
             ("@ Festival",), _EVENT),
        Kind("bridge", 7, "bridge", False,
             ("crosses", "architect", "opened", "span", "material", "arches"),
             ("@ Bridge",), _BUILDING),
        Kind("building", 8, "", False,
             ("architect", "completed", "tower_height", "town", "material", "rooms", "owner"),
             ("@ Tower", "@ Hall", "@ Library", "@ Museum", "@ Theatre", "@ Abbey"), _BUILDING),
        Kind("invention", 6, "", True,
             ("inventor", "invented_year", "workshop", "metal", "purpose", "patented"),
             ("@ engine", "@ pump", "@ loom", "@ press", "@ lamp", "@ mill"), _INVENTION),
    )
}  # fmt: skip


def fillers(kind: Kind) -> tuple[str, ...]:
    """Return the filler sentences that fit a kind."""
    return kind.fillers + _ANY_FILLERS


def reference(kind: str, name: str) -> str:
    """Return the subject as it is named in running text: "the River Orvane", "Lake Orvane"."""
    binomial = kind in ("plant", "animal") and name.rsplit(maxsplit=1)[-1] not in _SPECIES_NOUNS
    return f"the {name}" if KINDS[kind].article and not binomial else name


def noun(kind: str, name: str) -> str:
    """Return the common noun of a subject: "town", "tower"."""
    return KINDS[kind].noun or name.rsplit(maxsplit=1)[-1].lower()


def pronouns(kind: str, name: str) -> tuple[str, str, str]:
    """Return subject, object and possessive pronoun; a given name always has the same gender."""
    if kind != "person":
        return "it", "it", "its"
    female = zlib.crc32(name.split(maxsplit=1)[0].encode()) & 1
    return ("she", "her", "her") if female else ("he", "him", "his")


_SPECIES_NOUNS = frozenset(pattern.split()[-1] for kind in ("plant", "animal") for pattern in KINDS[kind].patterns)


def _vocabulary() -> frozenset[str]:
    """Collect every ordinary word of the encyclopedia, in lower case."""
    texts = [*MONTHS, "New Port Upper Old River Mount Peak yes no and the a an"]
    texts.append("it its he him his she her")
    for relation in RELATIONS.values():
        texts += [*relation.says, *relation.asks, *relation.leads, *relation.pair]
        texts += [*relation.same, *relation.role, *(text for text, _ in relation.compare)]
        texts += [*relation.draw.items, relation.draw.unit]
    for kind in KINDS.values():
        texts += [kind.noun, *kind.patterns, *fillers(kind)]
    return frozenset(word.lower() for text in texts for word in re.findall(r"[A-Za-z]+", text))


VOCABULARY: frozenset[str] = _vocabulary()

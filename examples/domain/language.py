"""How one says things in the harbour gazette: kinds of subjects, their relations, and the words for them.

The gazette is a second invented world beside that of `tools.pocket_factory.world`: ships, lighthouses, comets, dyes,
board games and cheeses instead of towns, rivers and battles. This table is knowledge of a language and of no fact: the
generator writes passages and held-out questions with it, the templated LLM reads passages and asks what is trained.

Marks: ``{s}`` the subject, ``{v}`` the value. Predicates follow the subject ("left the yard in {v}") and can be joined
by "and"; sentences hold the subject anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PoolName = Literal["person", "place"]


@dataclass(frozen=True, slots=True)
class Relation:
    """One relation and its language.

    Attributes:
        name: Unique among all kinds.
        noun: "the {noun} of {s}" is the value.
        values: A pool of invented names, the words of a closed set, or (low, high, step, unit) of a number;
            a year is a number with an empty unit.
        predicates: Statements that follow the subject.
        sentences: Statements that hold the subject anywhere.
        asks: Questions of the training data.
        held_out: Questions that only the test asks: never in the training data.
    """

    name: str
    noun: str
    values: PoolName | tuple[str, ...] | tuple[int, int, int, str]
    predicates: tuple[str, ...]
    sentences: tuple[str, ...]
    asks: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of subject.

    Attributes:
        name: Its noun ("ship").
        patterns: Of its names; "@" becomes an invented word.
        article: Whether running text puts "the" before the name.
        relations: What is told of it.
    """

    name: str
    patterns: tuple[str, ...]
    article: bool
    relations: tuple[Relation, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


# One phrase per line would double the length of these tables.
# fmt: off

SHIP = (
    Relation("home_port", "home port", "place",
        ("belongs to the port of {v}", "has {v} as its home port"),
        ("The name of {v} is painted on {s}.",),
        ("To which port does {s} belong?", "What is the home port of {s}?"),
        ("Which port is the home of {s}?", "What port does {s} belong to?")),
    Relation("launched", "year of launching", (1890, 2015, 1, ""),
        ("left the yard in {v}", "has been on the water since {v}"),
        ("The life of {s} at sea began in {v}.",),
        ("When did {s} leave the yard?", "Since which year has {s} been on the water?"),
        ("In what year did {s} leave the yard?", "Which year saw {s} on the water first?")),
    Relation("cargo", "cargo", _words("tea, timber, salt, silk, wool, honey, marble, wine, wheat, leather"),
        ("carries {v}", "is loaded with {v}"),
        ("Workers know {s} for its {v}.",),
        ("What does {s} carry?", "What is the cargo of {s}?", "With what is {s} loaded?"),
        ("Which goods does {s} carry?", "What cargo does {s} bring?")),
    Relation("captain", "captain", "person",
        ("sails under Captain {v}", "obeys Captain {v}"),
        ("The captain of {s} is {v}.",),
        ("Who is the captain of {s}?", "Under which captain does {s} sail?"),
        ("What is the name of the captain of {s}?", "Which captain does {s} obey?")),
    Relation("crew", "size of the crew", (8, 90, 1, "sailors"),
        ("has a crew of {v}", "is worked by {v}"),
        ("There is room for {v} on {s}.",),
        ("How many sailors work on {s}?", "How large is the crew of {s}?"),
        ("How many sailors are there on {s}?", "What number of sailors does the crew of {s} have?")),
    Relation("hull", "colour of the hull", _words("black, green, yellow, grey, white, violet, red, amber"),
        ("has a {v} hull", "is painted {v}"),
        ("People on land know {s} by its {v} colour.",),
        ("What colour is the hull of {s}?", "In which colour is {s} painted?"),
        ("Which colour has the hull of {s}?", "How is {s} painted?")),
)

LIGHTHOUSE = (
    Relation("reef", "rock", "place",
        ("stands on the rock of {v}", "marks the rock of {v}"),
        ("Boats near {v} see {s} first.",),
        ("On which rock does {s} stand?", "Which rock does {s} mark?"),
        ("What is the name of the rock of {s}?", "Which rock is marked by {s}?")),
    Relation("first_lit", "year of the first light", (1890, 2015, 1, ""),
        ("was first lit in {v}", "has given light since {v}"),
        ("The lamp of {s} was new in {v}.",),
        ("When was {s} first lit?", "Since which year has {s} given light?"),
        ("In what year was {s} first lit?", "Which year gave {s} its first light?")),
    Relation("reach", "reach of the light", (4, 60, 1, "miles"),
        ("is seen from {v}", "throws its light over {v}"),
        ("The light of {s} reaches {v}.",),
        ("From how many miles is {s} seen?", "Over what distance does {s} throw its light?"),
        ("How many miles does the light of {s} reach?", "How far is {s} seen?")),
    Relation("keeper", "keeper", "person",
        ("is kept by {v}", "is the home of {v}"),
        ("{v} keeps the lamp of {s} clean.",),
        ("Who keeps {s}?", "Whose home is {s}?"),
        ("Who is the keeper of {s}?", "By whom is {s} kept?")),
    Relation("fuel", "fuel", _words("oil, gas, oak, timber, sulphur, wax, fish, bark"),
        ("burns {v}", "is fed with {v}"),
        ("Every month a boat brings {v} to {s}.",),
        ("What does {s} burn?", "With what is {s} fed?"),
        ("Which fuel does {s} burn?", "What is {s} fed with?")),
    Relation("sound", "sound in fog", _words("bells, horns, drums, songs, gongs"),
        ("warns by {v} in fog", "uses {v} in fog"),
        ("When there is fog {v} are heard from {s}.",),
        ("By what does {s} warn in fog?", "What does {s} use in fog?"),
        ("Which sound does {s} use in fog?", "How does {s} warn boats in fog?")),
)

COMET = (
    Relation("discoverer", "discoverer", "person",
        ("was discovered by {v}", "was first seen by {v}"),
        ("{v} found {s} one night.",),
        ("Who discovered {s}?", "By whom was {s} first seen?"),
        ("Who was the first to see {s}?", "Whose discovery is {s}?")),
    Relation("return_year", "year of return", (2030, 2190, 1, ""),
        ("will return in {v}", "is expected in {v}"),
        ("The next visit of {s} is due in {v}.",),
        ("When will {s} return?", "In which year is {s} expected?"),
        ("In which year will {s} return?", "When is {s} expected?")),
    Relation("tail", "colour of the tail", _words("green, white, blue, yellow, grey, violet, silver, gold"),
        ("shows a {v} tail", "has a tail of {v} light"),
        ("The tail of {s} looks {v}.",),
        ("What colour is the tail of {s}?", "Which tail does {s} show?"),
        ("In what colour does the tail of {s} shine?", "How does the tail of {s} look?")),
    Relation("core", "core", _words("iron, zinc, nickel, salt, sulphur, chalk, glass, sand, ice, stone"),
        ("has a core of {v}", "is a ball of {v}"),
        ("Inside {s} there is {v}.",),
        ("What is the core of {s} made of?", "Of what is {s} a ball?"),
        ("What is the core of {s}?", "Of what is {s} made inside?")),
    Relation("fragments", "number of pieces", (2, 60, 1, "pieces"),
        ("has broken into {v}", "travels in {v}"),
        ("Glasses show {v} of {s}.",),
        ("Into how many pieces has {s} broken?", "In how many pieces does {s} travel?"),
        ("How many pieces of {s} are there?", "What number of pieces has {s} broken into?")),
    Relation("sky", "place of the first sight", "place",
        ("was seen first over {v}", "appeared first in the sky of {v}"),
        ("The sky over {v} showed {s} first.",),
        ("Over which place was {s} seen first?", "In the sky of which place did {s} appear first?"),
        ("Where was {s} seen first?", "Which place saw {s} first?")),
)

DYE = (
    Relation("mixer", "maker", "person",
        ("was first mixed by {v}", "is a secret of {v}"),
        ("{v} mixed {s} for the first time.",),
        ("Who first mixed {s}?", "Whose secret is {s}?"),
        ("By whom was {s} first mixed?", "Who knows the secret of {s}?")),
    Relation("heat", "heat", (40, 96, 1, "degrees"),
        ("works best at {v}", "is used at {v}"),
        ("The water for {s} must have {v}.",),
        ("At how many degrees does {s} work best?", "At which heat is {s} used?"),
        ("How many degrees does {s} need?", "What is the best heat for {s}?")),
    Relation("smell", "smell", _words("honey, wine, tea, fish, leather, roses, salt"),
        ("smells of {v}", "leaves a smell of {v}"),
        ("In the room with {s} one thinks of {v}.",),
        ("What does {s} smell of?", "Which smell does {s} leave?"),
        ("How does {s} smell?", "What is the smell of {s}?")),
    Relation("stuff", "stuff", _words("silk, wool, leather, paper, glass, oak, fur, hair"),
        ("is good for {v}", "holds only on {v}"),
        ("Nothing colours {v} like {s}.",),
        ("What is {s} good for?", "On what does {s} hold?"),
        ("For what is {s} good?", "Which stuff does {s} hold on?")),
    Relation("origin", "origin", _words("berries, roots, seeds, shells, flowers, leaves, stones, bark"),
        ("is made from {v}", "is won from {v}"),
        ("It takes a cart of {v} for a glass of {s}.",),
        ("From what is {s} made?", "From what is {s} won?"),
        ("What is {s} made from?", "What is the origin of {s}?")),
    Relation("shade", "shade", _words("yellow, red, blue, green, black, violet, grey, white"),
        ("gives a {v} shade", "turns things {v}"),
        ("What was dipped into {s} comes out {v}.",),
        ("Which shade does {s} give?", "What colour do things turn with {s}?"),
        ("What shade does one get with {s}?", "In what colour do things come out of {s}?")),
)

GAME = (
    Relation("designer", "designer", "person",
        ("was thought up by {v}", "is the idea of {v}"),
        ("The box of {s} bears the name of {v}.",),
        ("Who thought up {s}?", "Whose idea is {s}?"),
        ("By whom was {s} thought up?", "Who had the idea of {s}?")),
    Relation("playing_time", "time of a round", (10, 95, 5, "minutes"),
        ("takes {v} to play", "is over within {v}"),
        ("A round of {s} needs {v}.",),
        ("How long does {s} take to play?", "Within how many minutes is {s} over?"),
        ("How many minutes does {s} take?", "What time does a round of {s} take?")),
    Relation("pieces", "pieces", _words("coins, shells, stones, keys, bells, maps, knives, stamps, seeds"),
        ("is played with {v}", "comes with a box of {v}"),
        ("The players of {s} move {v}.",),
        ("With what is {s} played?", "What is in the box that comes with {s}?"),
        ("Which pieces is {s} played with?", "What comes in the box of {s}?")),
    Relation("goal", "goal", _words("trade, gold, war, school, winter, fishing, travel"),
        ("is about {v}", "is a game of {v}"),
        ("All rules of {s} turn on {v}.",),
        ("What is {s} about?", "Of what is {s} a game?"),
        ("What is the goal of {s}?", "What do the rules of {s} turn on?")),
    Relation("age", "lowest age", (4, 18, 1, "years"),
        ("is meant for players above {v}", "is not for children under {v}"),
        ("The lowest age for {s} is {v}.",),
        ("Above what age is {s} meant for players?", "What is the lowest age for {s}?"),
        ("From what age on is {s} meant for players?", "How old must players of {s} be?")),
    Relation("picture", "picture on the box", _words("bear, fox, hare, goat, deer, badger, otter, rose, lamp"),
        ("shows a {v} on its box", "has a {v} on every card"),
        ("People know {s} by the picture of a {v}.",),
        ("What does {s} show on its box?", "What is on every card of {s}?"),
        ("Which picture does the box of {s} show?", "What does every card of {s} have?")),
)

CHEESE = (
    Relation("milk", "milk", _words("goat, deer, cow, horse, bear, otter, fox, hare"),
        ("is made from {v} milk", "is a {v} cheese"),
        ("Only {v} milk goes into {s}.",),
        ("From which milk is {s} made?", "What milk is {s} made from?"),
        ("Which milk goes into {s}?", "What kind of milk is {s} made of?")),
    Relation("ripening", "time in the cellar", (2, 96, 1, "weeks"),
        ("lies in the cellar for {v}", "must rest for {v}"),
        ("Nobody eats {s} before {v} have passed.",),
        ("How long does {s} lie in the cellar?", "For how many weeks must {s} rest?"),
        ("How many weeks does {s} lie in the cellar?", "What time must {s} rest?")),
    Relation("rind", "cover", _words("paper, salt, leaves, honey, sand, wax, flowers, wheat"),
        ("is covered with {v}", "is rolled in {v}"),
        ("Under its {v} {s} is soft.",),
        ("With what is {s} covered?", "In what is {s} rolled?"),
        ("What covers {s}?", "What is {s} rolled in?")),
    Relation("dairy", "dairy", "place",
        ("comes from the farm of {v}", "is sold at {v}"),
        ("The farm of {v} sells {s}.",),
        ("From which farm does {s} come?", "Where is {s} sold?"),
        ("Which farm sells {s}?", "Where does {s} come from?")),
    Relation("maker", "cheesemaker", "person",
        ("is turned daily by {v}", "is the pride of {v}"),
        ("{v} is proud of {s}.",),
        ("By whom is {s} turned daily?", "Whose pride is {s}?"),
        ("Who turns {s} daily?", "Of whom is {s} the pride?")),
    Relation("taste", "taste", _words("rich, bitter, sweet, mild, salty, nutty, dry"),
        ("tastes {v}", "has a {v} taste"),
        ("Visitors call {s} {v}.",),
        ("How does {s} taste?", "What taste does {s} have?"),
        ("What is the taste of {s}?", "Which taste has {s}?")),
)
# fmt: on

KINDS: tuple[Kind, ...] = (
    Kind("ship", ("@", "@ Queen", "@ Star", "Lady @"), True, SHIP),
    Kind("lighthouse", ("@ Light", "@ Lamp", "@ Head"), True, LIGHTHOUSE),
    Kind("comet", ("Comet @",), False, COMET),
    Kind("dye", ("@ red", "@ water", "@ powder"), False, DYE),
    Kind("board game", ("Race to @", "Castle @", "Kings of @", "The @ Game"), False, GAME),
    Kind("cheese", ("@ Blue", "@ Wheel", "@ Round"), False, CHEESE),
)

# "{k}" is the noun of the kind with its article.
OPENINGS: tuple[str, ...] = ("{s} is {k}.", "This entry is about {s}, {k}.", "Next on our list is {s}, {k}.")

# Sentences that state nothing anybody asks about; "{s}" as above.
FILLERS: tuple[str, ...] = (
    "No two visitors agree about {s}.",
    "Three letters about {s} have reached us.",
    "What we wrote last month was wrong.",
    "Pictures of {s} sell well in summer.",
    "Our reader was not allowed to come near.",
    "We were asked to say no more.",
    "Old men talk about {s} every winter.",
    "A play about {s} was planned.",
    "More will follow next month.",
    "We thank all who wrote to us.",
)

# Syllables of invented names. Those of the other world end with a vowel or with a single l, n, r or k: none is shared.
FIRST: tuple[str, ...] = tuple(
    onset + rime
    for onset in _words("B, D, F, G, H, K, L, M, N, P, R, S, T, V, W")
    for rime in _words("ost, oss, ass, est, old, ist, ork, ind, orm")
)
LAST: tuple[str, ...] = _words("ark, old, ost, ist, ind, ant, ork, orm, eld, ang, ing, and, ard, ort, ald, arn, ord")

"""How one says things in the harbour gazette: kinds of subjects, their relations, and the words for them.

The gazette is a second invented world beside that of `clara_core.training.world`: ships, lighthouses, comets, dyes,
board games and cheeses instead of towns, rivers and battles. This table is knowledge of a language and of no fact: the
generator writes passages and held-out questions with it, the templated LLM reads passages and asks what is trained.

Marks: ``{s}`` the subject, ``{v}`` the value. Predicates follow the subject ("was launched in {v}") and can be joined
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
        ("Which port name is painted on {s}?", "Which port is the home of {s}?")),
    Relation("launched", "year of launching", (1890, 2015, 1, ""),
        ("left the yard in {v}", "has been on the water since {v}"),
        ("The life of {s} at sea began in {v}.",),
        ("When did {s} leave the yard?", "Since which year has {s} been on the water?"),
        ("In what year did {s} first go to sea?", "What year began the life of {s} at sea?")),
    Relation("cargo", "cargo", _words("tea, timber, salt, silk, wool, honey, marble, wine, wheat, leather"),
        ("carries {v}", "is loaded with {v}"),
        ("Workers know {s} for its {v}.",),
        ("What does {s} carry?", "What is the cargo of {s}?", "With what is {s} loaded?"),
        ("Which goods does {s} bring?", "What is found on board {s}?")),
    Relation("captain", "captain", "person",
        ("sails under Captain {v}", "obeys Captain {v}"),
        ("The captain of {s} is {v}.",),
        ("Who is the captain of {s}?", "Under which captain does {s} sail?"),
        ("Who gives the orders on {s}?", "Whose orders are obeyed on {s}?")),
    Relation("crew", "size of the crew", (8, 90, 1, "sailors"),
        ("has a crew of {v}", "is worked by {v}"),
        ("There is room for {v} on {s}.",),
        ("How many sailors work on {s}?", "How large is the crew of {s}?"),
        ("For how many sailors is there room on {s}?", "What number of sailors does {s} need?")),
    Relation("hull", "colour of the hull", _words("black, green, yellow, grey, white, violet, red, amber"),
        ("has a {v} hull", "is painted {v}"),
        ("People on land know {s} by its {v} colour.",),
        ("What colour is the hull of {s}?", "In which colour is {s} painted?"),
        ("By which colour do people know {s}?", "How does the hull of {s} look?")),
)

LIGHTHOUSE = (
    Relation("reef", "rock", "place",
        ("stands on the rock of {v}", "marks the rock of {v}"),
        ("Boats near {v} see {s} first.",),
        ("On which rock does {s} stand?", "Which rock does {s} mark?"),
        ("What is the name of the rock under {s}?", "Near which rock do boats see {s}?")),
    Relation("first_lit", "year of the first light", (1890, 2015, 1, ""),
        ("was first lit in {v}", "has given light since {v}"),
        ("The lamp of {s} was new in {v}.",),
        ("When was {s} first lit?", "Since which year has {s} given light?"),
        ("In what year was the lamp of {s} new?", "What was the first year of {s}?")),
    Relation("reach", "reach of the light", (4, 60, 1, "miles"),
        ("is seen from {v}", "throws its light over {v}"),
        ("The light of {s} reaches {v}.",),
        ("From how many miles is {s} seen?", "Over what distance does {s} throw its light?"),
        ("How far does the light of {s} reach?", "How many miles does {s} cover?")),
    Relation("keeper", "keeper", "person",
        ("is kept by {v}", "is the home of {v}"),
        ("{v} keeps the lamp of {s} clean.",),
        ("Who keeps {s}?", "Whose home is {s}?"),
        ("Who works at the lamp of {s}?", "What is the name of the keeper of {s}?")),
    Relation("fuel", "fuel", _words("oil, gas, oak, timber, sulphur, wax, fish, bark"),
        ("burns {v}", "is fed with {v}"),
        ("Every month a boat brings {v} to {s}.",),
        ("What does {s} burn?", "With what is {s} fed?"),
        ("What does the boat bring to {s} every month?", "Which fuel does {s} use?")),
    Relation("sound", "sound in fog", _words("bells, horns, drums, songs, gongs"),
        ("warns by {v} in fog", "uses {v} in fog"),
        ("When there is fog {v} are heard from {s}.",),
        ("By what does {s} warn in fog?", "What does {s} use in fog?"),
        ("What is heard from {s} when there is fog?", "Which sound comes from {s}?")),
)

COMET = (
    Relation("discoverer", "discoverer", "person",
        ("was discovered by {v}", "was first seen by {v}"),
        ("{v} found {s} one night.",),
        ("Who discovered {s}?", "By whom was {s} first seen?"),
        ("Who found {s}?", "Whose discovery is {s}?")),
    Relation("return_year", "year of return", (2030, 2190, 1, ""),
        ("will return in {v}", "is expected in {v}"),
        ("The next visit of {s} is due in {v}.",),
        ("When will {s} return?", "In which year is {s} expected?"),
        ("For what year is the next visit of {s} due?", "When can {s} be seen again?")),
    Relation("tail", "colour of the tail", _words("green, white, blue, yellow, grey, violet, silver, gold"),
        ("shows a {v} tail", "has a tail of {v} light"),
        ("The tail of {s} looks {v}.",),
        ("What colour is the tail of {s}?", "Which tail does {s} show?"),
        ("How does the tail of {s} look?", "In which colour does {s} appear?")),
    Relation("core", "core", _words("iron, zinc, nickel, salt, sulphur, chalk, glass, sand, ice, stone"),
        ("has a core of {v}", "is a ball of {v}"),
        ("Inside {s} there is {v}.",),
        ("What is the core of {s} made of?", "Of what is {s} a ball?"),
        ("What is inside {s}?", "What would be found in {s}?")),
    Relation("moon_count", "number of pieces", (2, 60, 1, "pieces"),
        ("has broken into {v}", "travels in {v}"),
        ("Glasses show {v} of {s}.",),
        ("Into how many pieces has {s} broken?", "In how many pieces does {s} travel?"),
        ("How many pieces of {s} do glasses show?", "What number of pieces is left of {s}?")),
    Relation("sky", "place of the first sight", "place",
        ("was seen first over {v}", "appeared first in the sky of {v}"),
        ("The sky over {v} showed {s} first.",),
        ("Over which place was {s} seen first?", "In the sky of which place did {s} appear first?"),
        ("Where did people see {s} first?", "Which place had {s} in its sky first?")),
)

DYE = (
    Relation("mixer", "maker", "person",
        ("was first mixed by {v}", "is a secret of {v}"),
        ("{v} mixed {s} for the first time.",),
        ("Who first mixed {s}?", "Whose secret is {s}?"),
        ("By whom was {s} made for the first time?", "To whom do people owe {s}?")),
    Relation("heat", "heat", (40, 96, 1, "degrees"),
        ("works best at {v}", "is used at {v}"),
        ("The water for {s} must have {v}.",),
        ("At how many degrees does {s} work best?", "At which heat is {s} used?"),
        ("How hot must the water for {s} be?", "What heat does {s} need?")),
    Relation("smell", "smell", _words("honey, wine, tea, fish, leather, roses, salt"),
        ("smells of {v}", "leaves a smell of {v}"),
        ("In the room with {s} one thinks of {v}.",),
        ("What does {s} smell of?", "Which smell does {s} leave?"),
        ("Of what does one think in the room with {s}?", "How does {s} smell?")),
    Relation("stuff", "stuff", _words("silk, wool, leather, paper, glass, oak, fur, hair"),
        ("is good for {v}", "holds only on {v}"),
        ("Nothing colours {v} like {s}.",),
        ("What is {s} good for?", "On what does {s} hold?"),
        ("What is coloured with {s}?", "Which stuff takes {s}?")),
    Relation("origin", "origin", _words("berries, roots, seeds, shells, flowers, leaves, stones, bark"),
        ("is made from {v}", "is won from {v}"),
        ("It takes a cart of {v} for a glass of {s}.",),
        ("From what is {s} made?", "From what is {s} won?"),
        ("What goes into {s}?", "What is the source of {s}?")),
    Relation("shade", "shade", _words("yellow, red, blue, green, black, violet, grey, white"),
        ("gives a {v} shade", "turns things {v}"),
        ("What was dipped into {s} comes out {v}.",),
        ("Which shade does {s} give?", "What colour do things turn with {s}?"),
        ("How does a thing come out of {s}?", "What is the colour of {s}?")),
)

GAME = (
    Relation("designer", "designer", "person",
        ("was thought up by {v}", "is the idea of {v}"),
        ("The box of {s} bears the name of {v}.",),
        ("Who thought up {s}?", "Whose idea is {s}?"),
        ("Which name does the box of {s} bear?", "Who made the rules of {s}?")),
    Relation("playing_time", "time of a round", (10, 95, 5, "minutes"),
        ("takes {v} to play", "is over within {v}"),
        ("A round of {s} needs {v}.",),
        ("How long does {s} take to play?", "Within how many minutes is {s} over?"),
        ("How much time does a round of {s} need?", "How many minutes does one need for {s}?")),
    Relation("pieces", "pieces", _words("coins, shells, stones, keys, bells, maps, knives, stamps, seeds"),
        ("is played with {v}", "comes with a box of {v}"),
        ("The players of {s} move {v}.",),
        ("With what is {s} played?", "What is in the box that comes with {s}?"),
        ("What do the players of {s} move?", "Which things does one need for {s}?")),
    Relation("goal", "goal", _words("trade, gold, war, school, winter, fishing, travel"),
        ("is about {v}", "is a game of {v}"),
        ("All rules of {s} turn on {v}.",),
        ("What is {s} about?", "Of what is {s} a game?"),
        ("On what do the rules of {s} turn?", "What is the subject of {s}?")),
    Relation("age", "lowest age", (4, 18, 1, "years"),
        ("is meant for players above {v}", "is not for children under {v}"),
        ("The lowest age for {s} is {v}.",),
        ("Above what age is {s} meant for players?", "What is the lowest age for {s}?"),
        ("How old must one be for {s}?", "From which age on can {s} be played?")),
    Relation("picture", "picture on the box", _words("bear, fox, hare, goat, deer, badger, otter, rose, lamp"),
        ("shows a {v} on its box", "has a {v} on every card"),
        ("People know {s} by the picture of a {v}.",),
        ("What does {s} show on its box?", "What is on every card of {s}?"),
        ("By which picture do people know {s}?", "Which picture is on {s}?")),
)

CHEESE = (
    Relation("milk", "milk", _words("goat, deer, cow, horse, bear, otter, fox, hare"),
        ("is made from {v} milk", "is a {v} cheese"),
        ("Only {v} milk goes into {s}.",),
        ("From which milk is {s} made?", "What milk is {s} made from?"),
        ("Which animal gives the milk for {s}?", "What kind of milk goes into {s}?")),
    Relation("ripening", "time in the cellar", (2, 96, 1, "weeks"),
        ("lies in the cellar for {v}", "must rest for {v}"),
        ("Nobody eats {s} before {v} have passed.",),
        ("How long does {s} lie in the cellar?", "For how many weeks must {s} rest?"),
        ("How many weeks pass before one eats {s}?", "After what time is {s} ready?")),
    Relation("rind", "cover", _words("paper, salt, leaves, honey, sand, wax, flowers, wheat"),
        ("is covered with {v}", "is rolled in {v}"),
        ("Under its {v} {s} is soft.",),
        ("With what is {s} covered?", "In what is {s} rolled?"),
        ("Under what is {s} soft?", "What is on the outside of {s}?")),
    Relation("dairy", "dairy", "place",
        ("comes from the farm of {v}", "is sold at {v}"),
        ("The farm of {v} sells {s}.",),
        ("From which farm does {s} come?", "Where is {s} sold?"),
        ("Which farm sells {s}?", "Where would one buy {s}?")),
    Relation("maker", "cheesemaker", "person",
        ("is turned daily by {v}", "is the pride of {v}"),
        ("{v} is proud of {s}.",),
        ("By whom is {s} turned daily?", "Whose pride is {s}?"),
        ("Who makes {s}?", "Who is proud of {s}?")),
    Relation("taste", "taste", _words("rich, bitter, sweet, mild, salty, nutty, dry"),
        ("tastes {v}", "has a {v} taste"),
        ("Visitors call {s} {v}.",),
        ("How does {s} taste?", "What taste does {s} have?"),
        ("What do visitors call {s}?", "How would one describe {s}?")),
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

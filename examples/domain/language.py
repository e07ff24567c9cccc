"""How one says things in the harbour gazette: kinds of subjects, their relations, and the words for them.

The gazette is a second invented world beside that of `clara_core.training.world`: ships, telescopes, comets, compounds,
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
        ("is registered in {v}", "has {v} as its home port"),
        ("The stern of {s} bears the name of {v}.",),
        ("Which port is {s} registered in?", "What is the home port of {s}?", "Where is {s} registered?"),
        ("Which harbour does {s} call its own?", "Whose port name stands on the stern of {s}?")),
    Relation("launched", "year of launching", (1890, 2015, 1, ""),
        ("was launched in {v}", "left the slipway in {v}"),
        ("{s} first touched water in {v}.",),
        ("When was {s} launched?", "In which year did {s} leave the slipway?"),
        ("What year did {s} first touch water?", "Since when has {s} been afloat?")),
    Relation("cargo", "cargo", _words("tea, timber, salt, cement, oranges, copper wire, sugar, cotton, marble, cocoa"),
        ("carries {v}", "is loaded with {v}"),
        ("The hold of {s} is filled with {v}.", "Dockers know {s} for its {v}."),
        ("What does {s} carry?", "What is the cargo of {s}?", "With what is {s} loaded?"),
        ("What fills the hold of {s}?", "Which goods travel on {s}?")),
    Relation("captain", "captain", "person",
        ("sails under Captain {v}", "obeys Captain {v}"),
        ("The captain of {s} is {v}.",),
        ("Who is the captain of {s}?", "Under which captain does {s} sail?"),
        ("Whose orders are obeyed on {s}?", "Who commands the crew of {s}?")),
    Relation("crew", "size of the crew", (8, 90, 1, "sailors"),
        ("has a crew of {v}", "is worked by {v}"),
        ("There are bunks for {v} on {s}.",),
        ("How many sailors work on {s}?", "How large is the crew of {s}?"),
        ("How many bunks does {s} have?", "What number of sailors serve on {s}?")),
    Relation("hull", "colour of the hull", _words("crimson, navy blue, ivory, olive, charcoal, turquoise, maroon"),
        ("has {v} paint on its hull", "is painted {v}"),
        ("One knows {s} by its {v} hull.",),
        ("What colour is the hull of {s}?", "In which colour is {s} painted?"),
        ("By what hull colour does one know {s}?", "Which paint covers {s}?")),
)

TELESCOPE = (
    Relation("mirror", "width of the mirror", (30, 980, 10, "centimetres"),
        ("has a mirror of {v}", "gathers light with a mirror {v} wide"),
        ("The mirror of {s} measures {v} across.",),
        ("How wide is the mirror of {s}?", "What does the mirror of {s} measure?"),
        ("What is the size of the mirror in {s}?", "How many centimetres across is the glass of {s}?")),
    Relation("summit", "site", "place",
        ("stands on the summit of {v}", "was set up on {v} Summit"),
        ("The road to {s} ends at {v}.",),
        ("On which summit does {s} stand?", "Where was {s} set up?"),
        ("What summit would a visitor of {s} climb?", "Which place is the site of {s}?")),
    Relation("first_light", "year of first light", (1890, 2015, 1, ""),
        ("saw first light in {v}", "has watched the sky since {v}"),
        ("First light came to {s} in {v}.",),
        ("When did {s} see first light?", "Since when has {s} watched the sky?"),
        ("What was the year of first light for {s}?", "In what year were the first images taken with {s}?")),
    Relation("target", "main target", _words(
        "pulsars, quasars, sunspots, asteroids, double stars, dust clouds, red dwarfs, supernovas, black holes"),
        ("is used to study {v}", "searches for {v}"),
        ("Most nights of {s} are given to {v}.",),
        ("What is {s} used to study?", "For what does {s} search?"),
        ("To which objects are most nights of {s} given?", "What is watched with {s}?")),
    Relation("keeper", "chief observer", "person",
        ("is entrusted to {v}", "has {v} as its chief observer"),
        ("The chief observer at {s} is {v}.",),
        ("To whom is {s} entrusted?", "Who is the chief observer at {s}?"),
        ("Which observer is in charge of {s}?", "Whose staff works with {s}?")),
    Relation("cooling", "coolant", _words("helium, dry ice, cold brine, ammonia, nitrogen, chilled glycol"),
        ("is cooled with {v}", "needs {v} to stay cold"),
        ("Pipes bring {v} to the camera of {s}.",),
        ("With what is {s} cooled?", "What does {s} need to stay cold?"),
        ("Which coolant runs to the camera of {s}?", "What keeps {s} cold?")),
)

COMET = (
    Relation("discoverer", "discoverer", "person",
        ("was discovered by {v}", "was first reported by {v}"),
        ("The honour of finding {s} belongs to {v}.",),
        ("Who discovered {s}?", "By whom was {s} first reported?"),
        ("To whom belongs the honour of finding {s}?", "Whose discovery is {s}?")),
    Relation("period", "orbital period", (3, 400, 1, "orbits a millennium"),
        ("completes {v}", "manages {v}"),
        ("Tables give {v} for {s}.",),
        ("How many orbits does {s} complete in a millennium?", "How often does {s} circle the sun?"),
        ("What number of orbits do tables give for {s}?", "At what rate does {s} go around the sun?")),
    Relation("tail", "colour of the tail", _words("emerald, pale pink, violet, milky white, amber, cobalt, ashen"),
        ("trails {v} gas", "shows a tail of {v} light"),
        ("The tail of {s} looks {v}.",),
        ("What colour is the tail of {s}?", "Which colour of gas does {s} trail?"),
        ("How does the tail of {s} look?", "Of what tint is the light behind {s}?")),
    Relation("constellation", "constellation", _words(
        "Orion, Lyra, Pegasus, Draco, Cygnus, Hydra, Perseus, Aquila, Cassiopeia, Andromeda"),
        ("was first sighted in {v}", "appeared at first among the stars of {v}"),
        ("The first plate of {s} shows it in {v}.",),
        ("In which constellation was {s} first sighted?", "Among which stars did {s} appear at first?"),
        ("Which constellation is on the first plate of {s}?", "Where in the sky was {s} found?")),
    Relation("return_year", "year of return", (2030, 2190, 1, ""),
        ("will return in {v}", "is expected back in {v}"),
        ("The next visit of {s} is due in {v}.",),
        ("When will {s} return?", "In which year is {s} expected back?"),
        ("For what year is the next visit of {s} due?", "When can {s} be seen again?")),
    Relation("ice", "main ice", _words("methane, carbon dioxide, ethanol, cyanide, formaldehyde, argon, sulphur"),
        ("consists mostly of {v}", "has a core of frozen {v}"),
        ("Probes found frozen {v} on {s}.",),
        ("Of what does {s} mostly consist?", "What is the core of {s} made of?"),
        ("What frozen matter did probes find on {s}?", "Which substance makes up most of {s}?")),
)

COMPOUND = (
    Relation("chemist", "first chemist", "person",
        ("was isolated by {v}", "was made for the first time by {v}"),
        ("{v} was the chemist who isolated {s}.",),
        ("Who isolated {s}?", "By whom was {s} made for the first time?"),
        ("Which chemist do we owe {s} to?", "Who prepared the first sample of {s}?")),
    Relation("melting", "melting point", (40, 960, 2, "degrees"),
        ("melts at {v}", "turns liquid at {v}"),
        ("The melting point of {s} is {v}.",),
        ("At what temperature does {s} melt?", "What is the melting point of {s}?"),
        ("How hot must {s} be to turn liquid?", "At how many degrees does {s} stop being solid?")),
    Relation("smell", "smell", _words("almonds, garlic, vanilla, vinegar, burnt rubber, mint, cloves, ginger"),
        ("smells of {v}", "gives off an odour of {v}"),
        ("A flask of {s} fills the room with the scent of {v}.",),
        ("What does {s} smell of?", "Which odour does {s} give off?"),
        ("What scent comes from a flask of {s}?", "How does {s} smell?")),
    Relation("solvent", "solvent", _words("acetone, benzene, alcohol, ether, turpentine, toluene, chloroform"),
        ("dissolves in {v}", "is soluble only in {v}"),
        ("A spoon of {v} is enough to dissolve {s}.",),
        ("In what does {s} dissolve?", "What is the solvent of {s}?"),
        ("Which liquid takes up {s}?", "What would one pour on {s} to dissolve it?")),
    Relation("effect", "use", _words(
        "bleaching paper, easing fever, killing moths, hardening steel, dyeing silk, curing leather, cleaning lenses"),
        ("is good for {v}", "serves for {v}"),
        ("Workshops buy {s} for {v}.",),
        ("What is {s} good for?", "What does {s} serve for?"),
        ("Why do workshops buy {s}?", "Which task makes one need {s}?")),
    Relation("crystal", "shape of the crystals", _words("needles, cubes, prisms, flakes, rods, pyramids, hexagons"),
        ("forms {v}", "crystallises as {v}"),
        ("Under the lens {s} shows {v}.",),
        ("What does {s} form when it crystallises?", "As what does {s} crystallise?"),
        ("What shape have the crystals of {s}?", "What is seen under the lens of {s}?")),
)

GAME = (
    Relation("designer", "designer", "person",
        ("was thought up by {v}", "is the idea of {v}"),
        ("The box of {s} carries the signature of {v}.",),
        ("Who thought up {s}?", "Whose idea is {s}?"),
        ("Which name is signed on the box of {s}?", "Who made the rules of {s}?")),
    Relation("playing_time", "playing time", (10, 240, 5, "minutes"),
        ("takes {v} to play", "is over within {v}"),
        ("A round of {s} needs {v}.",),
        ("How long does {s} take to play?", "Within how many minutes is {s} over?"),
        ("What time does a round of {s} need?", "How many minutes should one plan for {s}?")),
    Relation("pieces", "pieces", _words("dice, tokens, marbles, domino tiles, glass beads, cards, pegs, discs"),
        ("is played with {v}", "comes with a bag of {v}"),
        ("The players of {s} move {v} over the board.",),
        ("With what is {s} played?", "What is in the bag that comes with {s}?"),
        ("What do the players of {s} move?", "Which pieces belong to {s}?")),
    Relation("goal", "goal", _words(
        "catching thieves, building canals, trading spices, escaping mazes, breeding dragons, solving riddles"),
        ("is about {v}", "rewards players for {v}"),
        ("One wins {s} by {v}.",),
        ("What is {s} about?", "For what does {s} reward players?"),
        ("How does one win {s}?", "What brings victory in {s}?")),
    Relation("age", "youngest age", (4, 18, 1, "years"),
        ("is meant for players above {v}", "suits nobody below {v}"),
        ("The lowest age for {s} is {v}.",),
        ("Above what age is {s} meant for players?", "What is the lowest age for {s}?"),
        ("How old must one be for {s}?", "From which age on can {s} be played?")),
    Relation("award", "award", _words(
        "Silver Pawn, Golden Crown, Red Joker, Black Knight, Glass Tower, Paper Moon, Iron Rook"),
        ("won the {v}", "was given the {v}"),
        ("The jury of the {v} chose {s}.",),
        ("Which award did {s} win?", "What was {s} given by the jury?"),
        ("By which prize was {s} honoured?", "What trophy went to {s}?")),
)

CHEESE = (
    Relation("milk", "milk", _words("goat, sheep, cow, buffalo, camel, yak, mare, reindeer"),
        ("is made from {v} milk", "is a {v} cheese"),
        ("Only {v} milk goes into {s}.",),
        ("From which milk is {s} made?", "What milk is {s} made from?"),
        ("Which animal is milked for {s}?", "What kind of milk goes into {s}?")),
    Relation("ripening", "time of ripening", (2, 96, 1, "weeks"),
        ("ripens for {v}", "rests in the cellar for {v}"),
        ("Nobody eats {s} before {v} have passed.",),
        ("How long does {s} ripen?", "For how many weeks does {s} rest in the cellar?"),
        ("How many weeks pass before anybody eats {s}?", "What is the age of ripe {s}?")),
    Relation("rind", "rind", _words("ash, beeswax, chestnut leaves, red mould, cracked pepper, hay, paprika"),
        ("is covered with {v}", "wears a rind of {v}"),
        ("The rind of {s} consists of {v}.",),
        ("With what is {s} covered?", "What is the rind of {s}?"),
        ("What does one cut through first in {s}?", "Of what does the outside of {s} consist?")),
    Relation("dairy", "dairy", "place",
        ("comes from the dairy of {v}", "is produced at {v}"),
        ("The dairy of {v} sells {s}.",),
        ("From which dairy does {s} come?", "Where is {s} produced?"),
        ("Which dairy sells {s}?", "At what place can one watch the making of {s}?")),
    Relation("affineur", "cheesemaker", "person",
        ("is turned daily by {v}", "was created by {v}"),
        ("The recipe of {s} is a secret of {v}.",),
        ("Who created {s}?", "By whom is {s} turned daily?"),
        ("Who keeps the recipe of {s} a secret?", "Which cheesemaker stands behind {s}?")),
    Relation("taste", "taste", _words("nutty, smoky, peppery, sour, sweet, bitter, earthy, buttery, tangy, fruity"),
        ("tastes {v}", "leaves a {v} taste"),
        ("Judges describe {s} as {v}.",),
        ("How does {s} taste?", "What taste does {s} leave?"),
        ("As what do judges describe {s}?", "Which flavour has {s}?")),
)
# fmt: on

KINDS: tuple[Kind, ...] = (
    Kind("ship", ("@", "@ Queen", "@ Swallow", "Lady @"), True, SHIP),
    Kind("telescope", ("@ Reflector", "@ Array", "@ Eye"), True, TELESCOPE),
    Kind("comet", ("Comet @",), False, COMET),
    Kind("compound", ("@ acid", "@ sulphate", "@ resin", "@ oxide"), False, COMPOUND),
    Kind("board game", ("Dungeons of @", "Castle @", "Race for @", "The @ Gambit"), False, GAME),
    Kind("cheese", ("@ Blue", "@ Brie", "@ Wheel"), False, CHEESE),
)

# "{k}" is the noun of the kind with its article.
OPENINGS: tuple[str, ...] = ("{s} is {k}.", "This entry is about {s}, {k}.", "Among other things we list {s}, {k}.")

# Sentences that state nothing anybody asks about; "{s}" as above.
FILLERS: tuple[str, ...] = (
    "No two visitors agree about {s}.",
    "The gazette has printed three letters about {s}.",
    "An error in an earlier issue has been corrected.",
    "Postcards of {s} sell quickly in summer.",
    "Our reporter was not allowed to take pictures.",
    "The lawyers asked us to add nothing further.",
    "Experts argue about {s} every winter.",
    "A film about {s} was planned but never shot.",
    "More will follow in the next issue.",
    "The editors thank all who sent corrections.",
)

# Syllables of invented names. The other world's begin with one consonant and end with a vowel, l, n, r: none is shared.
FIRST: tuple[str, ...] = tuple(
    onset + vowel
    for onset in _words(
        "bl, br, ch, cl, cr, dr, dw, fl, fr, gl, gr, kl, kr, pl, pr, qu, sk, sl, sm, sn, sp, st, th, tr, tw"
    )
    for vowel in "aeio"
)
LAST: tuple[str, ...] = _words(
    "bix, bock, dax, deck, dith, doff, fisk, fuss, gask, giff, goth, gud, hox, huck, jabb, jick, joth, kuff, lask,"
    " liff, lusk, mith, mox, muck, nack, noff, pash, pock, puff, rask, rith, sash, tuck, tusk, vack, vuff, wick,"
    " wisk, woff, wuth"
)

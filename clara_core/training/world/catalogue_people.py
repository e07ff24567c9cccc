"""Relations of people, towns and companies."""

from __future__ import annotations

from .relations import Draw, Relation, choice, listing, quantity

# fmt: off  (one phrase per line would double the length of these tables)

PEOPLE: tuple[Relation, ...] = (
    Relation(
        "birthplace",
        Draw("town"),
        says=(
            "was born in {v}",
            "came from {v}",
            "{v} was the birthplace of {o}.",
            "{p} native town was {v}.",
        ),
        leads=("Born in {v}", "A native of {v}"),
        asks=(
            "Where was {s} born?",
            "In which town was {s} born?",
            "What is the birthplace of {s}?",
            "What was the native town of {s}?",
        ),
        pair=("In which towns were {a} and {b} born?", "What are the birthplaces of {a} and {b}?"),
        same=(
            "Were {a} and {b} born in the same town?",
            "Did {a} and {b} come from the same town?",
        ),
        role=("the town where {s} was born", "the birthplace of {s}"),
    ),
    Relation(
        "birth_year",
        Draw("year"),
        says=(
            "was born in {v}",
            "came into the world in {v}",
            "{p} year of birth was {v}.",
            "The birth of {o} fell in the year {v}.",
        ),
        leads=("Born in {v}",),
        asks=(
            "In what year was {s} born?",
            "When was {s} born?",
            "What is the year of birth of {s}?",
            "Which year saw the birth of {s}?",
        ),
        pair=(
            "In which years were {a} and {b} born?",
            "What are the years of birth of {a} and {b}?",
        ),
        compare=(
            ("Who was born first, {a} or {b}?", "min"),
            ("Who was older, {a} or {b}?", "min"),
            ("Who was born later, {a} or {b}?", "max"),
        ),
        same=("Were {a} and {b} born in the same year?",),
    ),
    Relation(
        "profession",
        choice(
            "botanist, chemist, painter, sculptor, composer, surgeon, lawyer, printer, glazier,"
            " mapmaker, poet, geologist, merchant, carpenter, judge, baker, weaver, gardener"
        ),
        says=(
            "was a {v} by profession",
            "worked as a {v}",
            "made a living as a {v}",
            "By profession {s} was a {v}.",
        ),
        leads=("A {v} by profession", "Trained as a {v}"),
        asks=(
            "What was the profession of {s}?",
            "In which profession did {s} work?",
            "By profession, what was {s}?",
            "As what did {s} make a living?",
        ),
        pair=(
            "What were the professions of {a} and {b}?",
            "In which professions did {a} and {b} work?",
        ),
        same=(
            "Did {a} and {b} have the same profession?",
            "Did {a} and {b} work in the same profession?",
        ),
    ),
    Relation(
        "teacher",
        Draw("person"),
        says=(
            "studied under {v}",
            "was a pupil of {v}",
            "{p} teacher was {v}.",
            "{v} taught {o} for several years.",
        ),
        leads=("Taught by {v}", "A pupil of {v}"),
        asks=(
            "Who was the teacher of {s}?",
            "Who taught {s}?",
            "Under whom did {s} study?",
            "Whose pupil was {s}?",
        ),
        pair=("Who were the teachers of {a} and {b}?", "Under whom did {a} and {b} study?"),
        same=("Did {a} and {b} have the same teacher?",),
        role=("the teacher of {s}", "the person who taught {s}"),
    ),
    Relation(
        "assistant",
        Draw("person"),
        says=(
            "was assisted by {v}",
            "hired {v} as an assistant",
            "{p} assistant was {v}.",
            "{v} was for years the assistant of {o}.",
        ),
        leads=("Assisted by {v}",),
        asks=(
            "Who was the assistant of {s}?",
            "By whom was {s} assisted?",
            "Who assisted {s}?",
            "Whom did {s} hire as an assistant?",
        ),
        pair=("Who were the assistants of {a} and {b}?",),
        role=("the assistant of {s}", "the person who assisted {s}"),
    ),
    Relation(
        "residence",
        Draw("town"),
        says=(
            "lived in {v}",
            "settled in {v}",
            "{p} house still stands in {v}.",
            "In later years {s} made a home in {v}.",
        ),
        leads=("Long settled in {v}",),
        asks=(
            "Where did {s} live?",
            "In which town did {s} live?",
            "In which town stands the house of {s}?",
            "Which town was the home of {s}?",
        ),
        pair=("In which towns did {a} and {b} live?",),
        same=("Did {a} and {b} live in the same town?",),
        role=("the town where {s} lived",),
    ),
    Relation(
        "death_date",
        Draw("date", low=30, high=85, after="birth_year"),
        says=(
            "died on {v}",
            "passed away on {v}",
            "{p} life ended on {v}.",
            "The death of {o} on {v} was widely mourned.",
        ),
        asks=(
            "When did {s} die?",
            "On what date did {s} die?",
            "What is the date of the death of {s}?",
            "On which day did the life of {s} end?",
        ),
        pair=("On what dates did {a} and {b} die?",),
        compare=(("Who died first, {a} or {b}?", "min"), ("Who died later, {a} or {b}?", "max")),
    ),
    Relation(
        "collection",
        listing(
            "coins, maps, shells, fossils, stamps, masks, clocks, keys, drums, knives, lamps, bells"
        ),
        says=(
            "collected {v}",
            "owned a large collection of {v}",
            "{p} rooms were full of {v}.",
            "Friends remembered {o} as a collector of {v}.",
        ),
        asks=(
            "What did {s} collect?",
            "Which things did {s} collect?",
            "What was in the collection of {s}?",
            "Of what was {s} a collector?",
        ),
    ),
)

PLACES: tuple[Relation, ...] = (
    Relation(
        "region",
        Draw("region"),
        says=(
            "lies in the region of {v}",
            "is {an} in the region of {v}",
            "The region around {o} is called {v}.",
            "{s} belongs to the region of {v}.",
        ),
        leads=("Situated in the region of {v}",),
        asks=(
            "In which region does {s} lie?",
            "In which region is {s}?",
            "Which region does {s} belong to?",
            "In which region lies {s}?",
        ),
        pair=("In which regions do {a} and {b} lie?",),
        same=("Do {a} and {b} lie in the same region?", "Are {a} and {b} in the same region?"),
    ),
    Relation(
        "population",
        quantity("inhabitants", 400, 90000, 100),
        says=(
            "has {v}",
            "is home to {v}",
            "At the last count {s} had {v}.",
            "The census found {v} in {o}.",
        ),
        leads=("With {v}",),
        asks=(
            "How many inhabitants does {s} have?",
            "What is the population of {s}?",
            "How many people live in {s}?",
        ),
        pair=(
            "How many inhabitants do {a} and {b} have?",
            "What are the populations of {a} and {b}?",
        ),
        compare=(
            ("Which has more inhabitants, {a} or {b}?", "max"),
            ("Which has fewer inhabitants, {a} or {b}?", "min"),
        ),
    ),
    Relation(
        "mayor",
        Draw("person"),
        says=(
            "is governed by Mayor {v}",
            "elected {v} as mayor",
            "The mayor of {o} is {v}.",
            "{v} serves as mayor of {o}.",
        ),
        leads=("Governed by Mayor {v}",),
        asks=(
            "Who is the mayor of {s}?",
            "Who serves as mayor of {s}?",
            "What is the name of the mayor of {s}?",
            "Which mayor governs {s}?",
        ),
        pair=("Who are the mayors of {a} and {b}?",),
        same=("Do {a} and {b} have the same mayor?",),
        role=("the mayor of {s}",),
    ),
    Relation(
        "founded",
        Draw("year"),
        says=(
            "was founded in {v}",
            "dates from {v}",
            "{p} history began in {v}.",
            "The founding of {o} took place in {v}.",
        ),
        leads=("Founded in {v}",),
        asks=(
            "In what year was {s} founded?",
            "When was {s} founded?",
            "From which year does {s} date?",
            "What is the founding year of {s}?",
        ),
        pair=("In which years were {a} and {b} founded?",),
        compare=(
            ("Which was founded first, {a} or {b}?", "min"),
            ("Which is older, {a} or {b}?", "min"),
            ("Which was founded later, {a} or {b}?", "max"),
        ),
        same=("Were {a} and {b} founded in the same year?",),
    ),
    Relation(
        "exports",
        listing(
            "copper, salt, timber, wool, wheat, honey, glass, cheese, leather, marble, silk,"
            " paper, wine, amber, tin, linen"
        ),
        says=(
            "exports {v}",
            "sends {v} to other towns",
            "The main exports of {o} are {v}.",
            "{p} merchants trade in {v}.",
        ),
        asks=(
            "What does {s} export?",
            "What are the main exports of {s}?",
            "Which goods does {s} export?",
            "In which goods do the merchants of {s} trade?",
        ),
    ),
    Relation(
        "river",
        Draw("river"),
        says=(
            "stands on the {v}",
            "lies on the banks of the {v}",
            "The {v} flows through {o}.",
            "{p} old mills are driven by the {v}.",
        ),
        leads=("Built on the banks of the {v}",),
        asks=(
            "On which river does {s} stand?",
            "Which river flows through {s}?",
            "On the banks of which river lies {s}?",
        ),
        pair=("On which rivers do {a} and {b} stand?",),
        same=("Do {a} and {b} stand on the same river?",),
        role=("the river that flows through {s}",),
    ),
    Relation(
        "altitude",
        quantity("metres", 4, 900, 2),
        says=(
            "lies at an altitude of {v}",
            "stands {v} above the sea",
            "The altitude of {o} is {v}.",
            "{p} church stands at an altitude of {v}.",
        ),
        asks=(
            "At what altitude does {s} lie?",
            "What is the altitude of {s}?",
            "How far above the sea does {s} stand?",
        ),
        compare=(
            ("Which lies higher, {a} or {b}?", "max"),
            ("Which lies lower, {a} or {b}?", "min"),
        ),
        pair=("At what altitudes do {a} and {b} lie?",),
    ),
    Relation(
        "market_day",
        choice("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"),
        says=(
            "holds its market on {v}",
            "has its market day on {v}",
            "The weekly market of {o} is on {v}.",
            "{p} square fills with market stalls on {v}.",
        ),
        asks=(
            "On which day does {s} hold its market?",
            "What is the market day of {s}?",
            "On which day of the week is the market of {s}?",
        ),
        pair=("On which days do {a} and {b} hold their markets?",),
        same=("Do {a} and {b} hold their markets on the same day?",),
    ),
)

COMPANIES: tuple[Relation, ...] = (
    Relation(
        "founder",
        Draw("person"),
        says=(
            "was founded by {v}",
            "was set up by {v}",
            "The founder of {o} was {v}.",
            "{v} was the founder of {o}.",
        ),
        leads=("Founded by {v}",),
        asks=(
            "Who was the founder of {s}?",
            "Who founded {s}?",
            "By whom was {s} founded?",
            "Who set up {s}?",
        ),
        pair=("Who founded {a} and {b}?", "Who were the founders of {a} and {b}?"),
        same=(
            "Do {a} and {b} have the same founder?",
            "Were {a} and {b} founded by the same person?",
        ),
        role=("the founder of {s}", "the person who founded {s}"),
    ),
    Relation(
        "seat",
        Draw("town"),
        says=(
            "has its seat in {v}",
            "is based in {v}",
            "The seat of {o} is in {v}.",
            "{p} head office stands in {v}.",
        ),
        leads=("Based in {v}",),
        asks=(
            "Where is the seat of {s}?",
            "In which town is {s} based?",
            "In which town does {s} have its seat?",
            "Where is {s} based?",
        ),
        pair=("In which towns are {a} and {b} based?", "Where are the seats of {a} and {b}?"),
        same=("Are {a} and {b} based in the same town?",),
        role=("the town where {s} is based", "the seat of {s}"),
    ),
    Relation(
        "products",
        listing(
            "pumps, bicycles, clocks, lamps, pianos, ploughs, boilers, scales, looms, cameras,"
            " stoves, bells, wagons, mirrors"
        ),
        says=(
            "makes {v}",
            "produces {v}",
            "The main products of {o} are {v}.",
            "{p} workshops turn out {v}.",
        ),
        asks=(
            "What does {s} make?",
            "What are the main products of {s}?",
            "Which goods does {s} produce?",
            "What do the workshops of {s} turn out?",
        ),
    ),
    Relation(
        "employees",
        quantity("workers", 20, 9000, 10),
        says=(
            "employs {v}",
            "has a staff of {v}",
            "The workforce of {o} numbers {v}.",
            "{p} payroll counts {v}.",
        ),
        leads=("With {v}",),
        asks=(
            "How many workers does {s} employ?",
            "How large is the staff of {s}?",
            "What is the size of the workforce of {s}?",
        ),
        pair=("How many workers do {a} and {b} employ?",),
        compare=(
            ("Which employs more workers, {a} or {b}?", "max"),
            ("Which employs fewer workers, {a} or {b}?", "min"),
        ),
    ),
    Relation(
        "director",
        Draw("person"),
        says=(
            "is directed by {v}",
            "is run by {v}",
            "The director of {o} is {v}.",
            "{v} is the director of {o}.",
        ),
        leads=("Directed by {v}",),
        asks=("Who is the director of {s}?", "Who runs {s}?", "By whom is {s} directed?"),
        pair=("Who are the directors of {a} and {b}?",),
        same=("Do {a} and {b} have the same director?",),
        role=("the director of {s}", "the person who runs {s}"),
    ),
    Relation(
        "emblem",
        choice(
            "a lion, an anchor, a star, a stag, a key, a crown, an oak, a swan, a wheel, a bee,"
            " a tower, a horse"
        ),
        says=(
            "uses {v} as its emblem",
            "took {v} as its mark",
            "The emblem of {o} is {v}.",
            "{p} letters bear the image of {v}.",
        ),
        asks=(
            "What is the emblem of {s}?",
            "What does {s} use as its emblem?",
            "Which image is the mark of {s}?",
        ),
        pair=("What are the emblems of {a} and {b}?",),
        same=("Do {a} and {b} use the same emblem?",),
    ),
)

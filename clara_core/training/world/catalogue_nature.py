"""Relations of rivers, lakes, mountains, plants and animals."""

from __future__ import annotations

from .relations import Draw, Relation, choice, listing, quantity

# fmt: off  (one phrase per line would double the length of these tables)

LANDSCAPE: tuple[Relation, ...] = (
    Relation(
        "length",
        quantity("kilometres", 20, 900, 2),
        says=(
            "is {v} long",
            "runs for {v}",
            "The length of {o} is {v}.",
            "From source to mouth {s} measures {v}.",
        ),
        leads=("Running for {v}",),
        asks=("How long is {s}?", "What is the length of {s}?", "For what distance runs {s}?"),
        pair=("How long are {a} and {b}?", "What are the lengths of {a} and {b}?"),
        compare=(("Which is longer, {a} or {b}?", "max"), ("Which is shorter, {a} or {b}?", "min")),
    ),
    Relation(
        "source",
        Draw("mountain"),
        says=(
            "rises on {v}",
            "has its source on {v}",
            "The source of {o} lies on {v}.",
            "{p} waters come down from {v}.",
        ),
        leads=("Rising on {v}",),
        asks=(
            "Where does {s} rise?",
            "On which mountain does {s} rise?",
            "On which mountain is the source of {s}?",
        ),
        pair=("On which mountains do {a} and {b} rise?",),
        same=("Do {a} and {b} rise on the same mountain?",),
        role=("the mountain where {s} rises",),
    ),
    Relation(
        "mouth",
        Draw("town"),
        says=(
            "reaches the sea at {v}",
            "flows into the sea near {v}",
            "The mouth of {o} is at {v}.",
            "{p} long journey to the sea ends at {v}.",
        ),
        asks=(
            "Where does {s} reach the sea?",
            "At which town does {s} reach the sea?",
            "Where is the mouth of {s}?",
            "Near which town is the mouth of {s}?",
        ),
        pair=("At which towns do {a} and {b} reach the sea?",),
        role=("the town at the mouth of {s}",),
    ),
    Relation(
        "fish",
        listing("trout, pike, perch, eels, carp, salmon, bream, crayfish, roach, sturgeon, tench"),
        says=(
            "is rich in {v}",
            "abounds in {v}",
            "Anglers come to {o} for {v}.",
            "{p} waters hold {v}.",
        ),
        asks=(
            "Which fish live in {s}?",
            "What do anglers catch in {s}?",
            "In which fish is {s} rich?",
        ),
    ),
    Relation(
        "surveyor",
        Draw("person"),
        says=(
            "was first charted by {v}",
            "was mapped by {v}",
            "The first map of {o} was drawn by {v}.",
            "{v} drew the first map of {o}.",
        ),
        leads=("First charted by {v}",),
        asks=(
            "Who first charted {s}?",
            "Who drew the first map of {s}?",
            "By whom was {s} first charted?",
            "Who mapped {s}?",
        ),
        pair=("Who first charted {a} and {b}?",),
        same=("Were {a} and {b} first charted by the same person?",),
        role=("the person who first charted {s}",),
    ),
    Relation(
        "chart_year",
        Draw("year"),
        says=(
            "was first charted in {v}",
            "has been on the maps since {v}",
            "The charting of {o} dates from {v}.",
            "{p} shores were first charted in {v}.",
        ),
        leads=("First charted in {v}",),
        asks=(
            "In what year was {s} first charted?",
            "When was {s} first charted?",
            "Since which year has {s} been on the maps?",
            "What year saw the first charting of {s}?",
        ),
        pair=("In which years were {a} and {b} first charted?",),
        compare=(
            ("Which was charted first, {a} or {b}?", "min"),
            ("Which was charted later, {a} or {b}?", "max"),
        ),
    ),
    Relation(
        "depth",
        quantity("metres", 6, 480, 2),
        says=(
            "is {v} deep",
            "reaches a depth of {v}",
            "The depth of {o} is {v}.",
            "{p} deepest point lies {v} down.",
        ),
        leads=("With a depth of {v}",),
        asks=("How deep is {s}?", "What is the depth of {s}?", "What depth does {s} reach?"),
        pair=("How deep are {a} and {b}?", "What are the depths of {a} and {b}?"),
        compare=(
            ("Which is deeper, {a} or {b}?", "max"),
            ("Which is less deep, {a} or {b}?", "min"),
        ),
    ),
    Relation(
        "area",
        quantity("square kilometres", 2, 600, 1),
        says=(
            "covers {v}",
            "has an area of {v}",
            "The area of {o} is {v}.",
            "{p} surface measures {v}.",
        ),
        leads=("With an area of {v}",),
        asks=("What is the area of {s}?", "What area does {s} cover?", "How large is {s}?"),
        pair=("What are the areas of {a} and {b}?",),
        compare=(
            ("Which covers the larger area, {a} or {b}?", "max"),
            ("Which covers the smaller area, {a} or {b}?", "min"),
        ),
    ),
    Relation(
        "islands",
        quantity("islands", 2, 60),
        says=(
            "contains {v}",
            "is dotted with {v}",
            "Boatmen have counted {v} in {o}.",
            "Anyone who sails {o} will pass {v}.",
        ),
        asks=(
            "How many islands are there in {s}?",
            "How many islands does {s} contain?",
            "What is the number of islands in {s}?",
        ),
        pair=("How many islands do {a} and {b} contain?",),
        compare=(
            ("Which contains more islands, {a} or {b}?", "max"),
            ("Which contains fewer islands, {a} or {b}?", "min"),
        ),
    ),
    Relation(
        "height",
        quantity("metres", 500, 7000, 10),
        says=(
            "is {v} high",
            "rises to {v}",
            "The height of {o} is {v}.",
            "{p} summit stands at {v}.",
        ),
        leads=("With a height of {v}",),
        asks=("How high is {s}?", "What is the height of {s}?", "To what height rises {s}?"),
        pair=("How high are {a} and {b}?", "What are the heights of {a} and {b}?"),
        compare=(("Which is higher, {a} or {b}?", "max"), ("Which is lower, {a} or {b}?", "min")),
    ),
    Relation(
        "rock",
        choice("granite, basalt, limestone, slate, marble, gneiss, sandstone, chalk, quartz"),
        says=(
            "consists of {v}",
            "is a mass of {v}",
            "The rock of {o} is {v}.",
            "{p} cliffs are of {v}.",
        ),
        leads=("A mass of {v}",),
        asks=(
            "What rock does {s} consist of?",
            "Of which rock consists {s}?",
            "What is the rock of {s}?",
        ),
        pair=("Of which rocks do {a} and {b} consist?",),
        same=("Do {a} and {b} consist of the same rock?",),
    ),
    Relation(
        "climber",
        Draw("person"),
        says=(
            "was first climbed by {v}",
            "was conquered by {v}",
            "The first ascent of {o} was made by {v}.",
            "{v} was the first to stand on top of {o}.",
        ),
        leads=("First climbed by {v}",),
        asks=(
            "Who first climbed {s}?",
            "Who made the first ascent of {s}?",
            "By whom was {s} first climbed?",
            "Who was the first to stand on top of {s}?",
        ),
        pair=("Who first climbed {a} and {b}?",),
        same=("Were {a} and {b} first climbed by the same person?",),
        role=("the person who first climbed {s}",),
    ),
    Relation(
        "ascent_year",
        Draw("year"),
        says=(
            "was first climbed in {v}",
            "remained unclimbed until {v}",
            "The first ascent of {o} took place in {v}.",
            "{p} summit was first reached in {v}.",
        ),
        leads=("First climbed in {v}",),
        asks=(
            "In what year was {s} first climbed?",
            "When was {s} first climbed?",
            "In which year took place the first ascent of {s}?",
        ),
        pair=("In which years were {a} and {b} first climbed?",),
        compare=(
            ("Which was climbed first, {a} or {b}?", "min"),
            ("Which was climbed later, {a} or {b}?", "max"),
        ),
        same=("Were {a} and {b} first climbed in the same year?",),
    ),
    Relation(
        "ores",
        listing("copper, tin, silver, lead, zinc, iron, gold, nickel, sulphur, cobalt"),
        says=("contains {v}", "yields {v}", "Miners dig for {v} on {o}.", "{p} mines produce {v}."),
        asks=(
            "What is mined on {s}?",
            "What do the mines of {s} produce?",
            "Which ores are found on {s}?",
        ),
    ),
)

SPECIES: tuple[Relation, ...] = (
    Relation(
        "family",
        Draw("family"),
        says=(
            "belongs to the {v} family",
            "is a member of the {v} family",
            "Scholars place {o} in the {v} family.",
            "{p} family is called {v}.",
        ),
        leads=("A member of the {v} family",),
        asks=(
            "To which family does {s} belong?",
            "What is the family of {s}?",
            "Which family does {s} belong to?",
            "In which family do scholars place {s}?",
        ),
        pair=("To which families do {a} and {b} belong?", "What are the families of {a} and {b}?"),
        same=(
            "Do {a} and {b} belong to the same family?",
            "Are {a} and {b} members of the same family?",
        ),
    ),
    Relation(
        "flower_colour",
        choice("red, white, yellow, blue, purple, pink, orange, violet, cream, scarlet, green"),
        says=(
            "has {v} flowers",
            "bears {v} flowers",
            "The flowers of {o} are {v}.",
            "{p} petals are {v}.",
        ),
        asks=(
            "What colour are the flowers of {s}?",
            "What is the flower colour of {s}?",
            "Of what colour are the petals of {s}?",
        ),
        pair=("What colours are the flowers of {a} and {b}?",),
        same=("Do {a} and {b} have flowers of the same colour?",),
    ),
    Relation(
        "fur_colour",
        choice("black, white, grey, brown, red, golden, silver, cream, russet, spotted, striped"),
        says=(
            "has {v} fur",
            "wears a {v} coat",
            "The fur of {o} is {v}.",
            "{p} winter coat is {v}.",
        ),
        asks=(
            "What colour is the fur of {s}?",
            "What is the fur colour of {s}?",
            "What does the coat of {s} look like?",
        ),
        pair=("What colours are the furs of {a} and {b}?",),
        same=("Do {a} and {b} have fur of the same colour?",),
    ),
    Relation(
        "habitat",
        choice(
            "dry meadows, wet forests, reed beds, salt marshes, stony gorges, sand dunes,"
            " pine woods, deep valleys, mountain pastures, peat bogs, old orchards"
        ),
        says=("is found in {v}", "prefers {v}", "Walkers meet {o} in {v}.", "{p} habitat is {v}."),
        leads=("At home in {v}",),
        asks=(
            "What is the habitat of {s}?",
            "What kind of place does {s} prefer?",
            "In which habitat is {s} found?",
            "In what kind of place do walkers meet {s}?",
        ),
        pair=("What are the habitats of {a} and {b}?",),
        same=("Do {a} and {b} share the same habitat?",),
    ),
    Relation(
        "describer",
        Draw("person"),
        says=(
            "was first described by {v}",
            "was named by {v}",
            "The first description of {o} was written by {v}.",
            "{v} first described {o}.",
        ),
        leads=("First described by {v}",),
        asks=(
            "Who first described {s}?",
            "By whom was {s} first described?",
            "Who wrote the first description of {s}?",
            "Who named {s}?",
        ),
        pair=("Who first described {a} and {b}?", "By whom were {a} and {b} first described?"),
        same=("Were {a} and {b} first described by the same person?",),
        role=("the person who first described {s}",),
    ),
    Relation(
        "described_year",
        Draw("year"),
        says=(
            "was first described in {v}",
            "has been known to science since {v}",
            "The first description of {o} dates from {v}.",
            "{p} scientific name dates from {v}.",
        ),
        leads=("First described in {v}",),
        asks=(
            "In what year was {s} first described?",
            "When was {s} first described?",
            "Since which year has science known {s}?",
        ),
        pair=("In which years were {a} and {b} first described?",),
        compare=(
            ("Which was described first, {a} or {b}?", "min"),
            ("Which was described later, {a} or {b}?", "max"),
        ),
        same=("Were {a} and {b} first described in the same year?",),
    ),
    Relation(
        "native_region",
        Draw("region"),
        says=(
            "is native to {v}",
            "occurs only in {v}",
            "The home of {o} is the region of {v}.",
            "Outside {v}, {s} is unknown.",
        ),
        leads=("Native to {v}",),
        asks=(
            "To which region is {s} native?",
            "In which region does {s} occur?",
            "Which region is the home of {s}?",
        ),
        pair=("To which regions are {a} and {b} native?",),
        same=("Are {a} and {b} native to the same region?",),
    ),
    Relation(
        "plant_height",
        quantity("centimetres", 5, 240),
        says=(
            "grows to {v}",
            "reaches a height of {v}",
            "The stem of {o} measures {v}.",
            "{p} full height is {v}.",
        ),
        leads=("Growing to {v}",),
        asks=("How tall is {s}?", "What is the full height of {s}?", "To what height grows {s}?"),
        pair=("How tall are {a} and {b}?",),
        compare=(
            ("Which grows taller, {a} or {b}?", "max"),
            ("Which stays shorter, {a} or {b}?", "min"),
        ),
    ),
    Relation(
        "flowering",
        choice("March, April, May, June, July, August, September, October"),
        says=(
            "flowers in {v}",
            "is in bloom in {v}",
            "The blossom of {o} opens in {v}.",
            "{p} flowering month is {v}.",
        ),
        asks=(
            "In which month does {s} flower?",
            "When does {s} flower?",
            "What is the flowering month of {s}?",
        ),
        pair=("In which months do {a} and {b} flower?",),
        same=("Do {a} and {b} flower in the same month?",),
    ),
    Relation(
        "uses",
        listing("dyes, soap, tea, ropes, medicine, perfume, baskets, paper, candles, ink, glue"),
        says=(
            "is used for {v}",
            "provides material for {v}",
            "Villagers turn {o} into {v}.",
            "{p} leaves and roots are used for {v}.",
        ),
        asks=(
            "What is {s} used for?",
            "For which things is {s} used?",
            "Into what do villagers turn {s}?",
        ),
    ),
    Relation(
        "weight",
        quantity("kilograms", 2, 190),
        says=(
            "weighs {v}",
            "reaches a weight of {v}",
            "The weight of {o} is {v}.",
            "On the scales {s} shows {v}.",
        ),
        leads=("Weighing {v}",),
        asks=(
            "How much does {s} weigh?",
            "What is the weight of {s}?",
            "What weight does {s} reach?",
        ),
        pair=("How much do {a} and {b} weigh?", "What are the weights of {a} and {b}?"),
        compare=(
            ("Which is heavier, {a} or {b}?", "max"),
            ("Which is lighter, {a} or {b}?", "min"),
        ),
    ),
    Relation(
        "diet",
        listing(
            "beetles, berries, seeds, roots, snails, eggs, worms, mushrooms, frogs, nuts,"
            " grass, moss"
        ),
        says=(
            "feeds on {v}",
            "lives on {v}",
            "The diet of {o} consists of {v}.",
            "{p} favourite foods are {v}.",
        ),
        asks=("What does {s} feed on?", "What does {s} eat?", "What is the diet of {s}?"),
    ),
)

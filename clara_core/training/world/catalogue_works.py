"""Relations of books, events, buildings and inventions."""

from __future__ import annotations

from .relations import Draw, Relation, choice, listing, quantity

# fmt: off  (one phrase per line would double the length of these tables)

BOOKS: tuple[Relation, ...] = (
    Relation(
        "author",
        Draw("person"),
        says=(
            "was written by {v}",
            "is the work of {v}",
            "The author of {o} is {v}.",
            "{v} wrote {o} in a single winter.",
        ),
        leads=("Written by {v}",),
        asks=(
            "Who is the author of {s}?",
            "Who wrote {s}?",
            "By whom was {s} written?",
            "Whose work is {s}?",
        ),
        pair=("Who wrote {a} and {b}?", "Who are the authors of {a} and {b}?"),
        same=(
            "Were {a} and {b} written by the same author?",
            "Do {a} and {b} have the same author?",
        ),
        role=("the author of {s}", "the person who wrote {s}"),
    ),
    Relation(
        "published",
        Draw("year"),
        says=(
            "was published in {v}",
            "first appeared in {v}",
            "The first edition of {o} came out in {v}.",
            "{p} year of publication is {v}.",
        ),
        leads=("Published in {v}",),
        asks=(
            "In what year was {s} published?",
            "When was {s} published?",
            "What is the year of publication of {s}?",
        ),
        pair=("In which years were {a} and {b} published?",),
        compare=(
            ("Which was published first, {a} or {b}?", "min"),
            ("Which was published later, {a} or {b}?", "max"),
        ),
        same=("Were {a} and {b} published in the same year?",),
    ),
    Relation(
        "genre",
        choice(
            "novel, ballad, comedy, tragedy, travelogue, satire, romance, memoir, fable,"
            " mystery, play, sermon"
        ),
        says=(
            "is a {v}",
            "is usually described as a {v}",
            "In form {s} is a {v}.",
            "Critics regard {o} as a {v}.",
        ),
        leads=("Conceived as a {v}",),
        asks=(
            "What is the genre of {s}?",
            "To which genre does {s} belong?",
            "As what do critics regard {s}?",
        ),
        pair=("To which genres do {a} and {b} belong?", "What are the genres of {a} and {b}?"),
        same=("Do {a} and {b} belong to the same genre?",),
    ),
    Relation(
        "language",
        Draw("language"),
        says=(
            "was written in the {v} language",
            "was first printed in the {v} language",
            "The original language of {o} is {v}.",
            "{p} text is in the {v} language.",
        ),
        leads=("Written in the {v} language",),
        asks=(
            "In which language was {s} written?",
            "What is the original language of {s}?",
            "What is the language of {s}?",
        ),
        pair=("In which languages were {a} and {b} written?",),
        same=("Were {a} and {b} written in the same language?",),
    ),
    Relation(
        "pages",
        quantity("pages", 40, 900, 2),
        says=(
            "has {v}",
            "runs to {v}",
            "The first edition of {o} fills {v}.",
            "In print {s} takes up {v}.",
        ),
        asks=(
            "How many pages does {s} have?",
            "What is the number of pages of {s}?",
            "How many pages does the first edition of {s} fill?",
        ),
        pair=("How many pages do {a} and {b} have?",),
        compare=(
            ("Which has more pages, {a} or {b}?", "max"),
            ("Which has fewer pages, {a} or {b}?", "min"),
        ),
    ),
    Relation(
        "setting",
        Draw("town"),
        says=(
            "is set in {v}",
            "takes place in {v}",
            "The story of {o} unfolds in {v}.",
            "{p} scene is the town of {v}.",
        ),
        leads=("Set in {v}",),
        asks=(
            "Where is {s} set?",
            "In which town is {s} set?",
            "In which town unfolds the story of {s}?",
        ),
        pair=("In which towns are {a} and {b} set?",),
        same=("Are {a} and {b} set in the same town?",),
        role=("the town where {s} is set",),
    ),
    Relation(
        "dedicatee",
        Draw("person"),
        says=(
            "is dedicated to {v}",
            "was written for {v}",
            "The dedication of {o} names {v}.",
            "{p} first page bears a greeting to {v}.",
        ),
        leads=("Dedicated to {v}",),
        asks=(
            "To whom is {s} dedicated?",
            "For whom was {s} written?",
            "Whom does the dedication name in {s}?",
        ),
        pair=("To whom are {a} and {b} dedicated?",),
        role=("the person to whom {s} is dedicated",),
    ),
)

EVENTS: tuple[Relation, ...] = (
    Relation(
        "battle_date",
        Draw("date"),
        says=(
            "was fought on {v}",
            "took place on {v}",
            "The date of {o} is {v}.",
            "The guns of {o} were heard on {v}.",
        ),
        leads=("Fought on {v}",),
        asks=("When was {s} fought?", "On what date was {s} fought?", "What is the date of {s}?"),
        pair=("On what dates were {a} and {b} fought?",),
        compare=(
            ("Which was fought first, {a} or {b}?", "min"),
            ("Which was fought later, {a} or {b}?", "max"),
        ),
    ),
    Relation(
        "winner",
        Draw("country"),
        says=(
            "was won by {v}",
            "ended in a victory for {v}",
            "The winner of {o} was {v}.",
            "{v} won {o} against all odds.",
        ),
        leads=("Won by {v}",),
        asks=("Who won {s}?", "Which country won {s}?", "Which country was the winner of {s}?"),
        pair=("Which countries won {a} and {b}?", "Who won {a} and {b}?"),
        same=("Were {a} and {b} won by the same country?",),
    ),
    Relation(
        "commander",
        Draw("person"),
        says=(
            "was directed by General {v}",
            "made General {v} famous",
            "The commander at {o} was General {v}.",
            "General {v} commanded the army at {o}.",
        ),
        asks=(
            "Who was the commander at {s}?",
            "Who commanded the army at {s}?",
            "Which general was made famous by {s}?",
        ),
        pair=("Who were the commanders at {a} and {b}?",),
        role=("the commander at {s}",),
    ),
    Relation(
        "battle_town",
        Draw("town"),
        says=(
            "was fought near {v}",
            "took place in the fields near {v}",
            "The site of {o} lies near {v}.",
            "A monument near {v} recalls {o}.",
        ),
        leads=("Fought near {v}",),
        asks=(
            "Near which town was {s} fought?",
            "Where was {s} fought?",
            "Near which town is the site of {s}?",
        ),
        pair=("Near which towns were {a} and {b} fought?",),
        same=("Were {a} and {b} fought near the same town?",),
        role=("the town near the site of {s}",),
    ),
    Relation(
        "losses",
        quantity("soldiers", 100, 9000, 100),
        says=(
            "cost the lives of {v}",
            "ended in the death of {v}",
            "In {o} died {v}.",
            "The losses of {o} came to {v}.",
        ),
        asks=(
            "How many soldiers died in {s}?",
            "How many soldiers fell in {s}?",
            "What were the losses of {s}?",
        ),
        pair=("How many soldiers died in {a} and {b}?",),
        compare=(
            ("Which cost more lives, {a} or {b}?", "max"),
            ("Which cost fewer lives, {a} or {b}?", "min"),
        ),
    ),
    Relation(
        "duration",
        quantity("hours", 2, 70),
        says=(
            "lasted {v}",
            "went on for {v}",
            "The fighting of {o} was over after {v}.",
            "It took {v} to decide {o}.",
        ),
        asks=(
            "How long did {s} last?",
            "For how many hours went on {s}?",
            "How many hours did it take to decide {s}?",
        ),
        pair=("How long did {a} and {b} last?",),
        compare=(("Which lasted longer, {a} or {b}?", "max"),),
    ),
    Relation(
        "leader",
        Draw("person"),
        says=(
            "was led by {v}",
            "was under the command of {v}",
            "The leader of {o} was {v}.",
            "{v} led {o} from the first day to the last.",
        ),
        leads=("Led by {v}",),
        asks=("Who was the leader of {s}?", "Who led {s}?", "By whom was {s} led?"),
        pair=("Who led {a} and {b}?", "Who were the leaders of {a} and {b}?"),
        same=("Were {a} and {b} led by the same person?",),
        role=("the leader of {s}", "the person who led {s}"),
    ),
    Relation(
        "departure",
        Draw("date"),
        says=(
            "set out on {v}",
            "began on {v}",
            "The first day of {o} was {v}.",
            "The ships of {o} left on {v}.",
        ),
        asks=(
            "When did {s} set out?",
            "On what date did {s} begin?",
            "What was the first day of {s}?",
        ),
        pair=("On what dates did {a} and {b} set out?",),
        compare=(
            ("Which set out first, {a} or {b}?", "min"),
            ("Which set out later, {a} or {b}?", "max"),
        ),
    ),
    Relation(
        "port",
        Draw("town"),
        says=(
            "set out from {v}",
            "started at {v}",
            "The ships of {o} sailed from {v}.",
            "The people of {v} still speak of the departure of {o}.",
        ),
        leads=("Starting at {v}",),
        asks=(
            "From which town did {s} set out?",
            "Where did {s} start?",
            "From where sailed the ships of {s}?",
        ),
        pair=("From which towns did {a} and {b} set out?",),
        same=("Did {a} and {b} set out from the same town?",),
        role=("the starting point of {s}", "the town from which {s} set out"),
    ),
    Relation(
        "destination",
        Draw("region"),
        says=(
            "explored the region of {v}",
            "went to the region of {v}",
            "The goal of {o} was the region of {v}.",
            "{s} made the region of {v} known.",
        ),
        asks=(
            "Which region was the goal of {s}?",
            "Which region did {s} explore?",
            "To which region went {s}?",
        ),
        pair=("Which regions did {a} and {b} explore?",),
        same=("Did {a} and {b} explore the same region?",),
    ),
    Relation(
        "members",
        quantity("members", 5, 120),
        says=(
            "had {v}",
            "was made up of {v}",
            "At the start {s} counted {v}.",
            "The roll of {o} lists {v}.",
        ),
        leads=("With {v}",),
        asks=("How many members had {s}?", "How many members did {s} have?", "How large was {s}?"),
        pair=("How many members did {a} and {b} have?",),
        compare=(
            ("Which had more members, {a} or {b}?", "max"),
            ("Which had fewer members, {a} or {b}?", "min"),
        ),
    ),
    Relation(
        "findings",
        listing("plants, fossils, maps, shells, drawings, ores, furs, masks, seeds, feathers"),
        says=(
            "brought back {v}",
            "returned with {v}",
            "The finds of {o} were {v}.",
            "{p} chests were filled with {v}.",
        ),
        asks=("What did {s} bring back?", "What were the finds of {s}?", "With what returned {s}?"),
    ),
    Relation(
        "host",
        Draw("town"),
        says=(
            "is held in {v}",
            "takes place in {v}",
            "The host of {o} is the town of {v}.",
            "Every year {s} fills the streets of {v}.",
        ),
        leads=("Held in {v}",),
        asks=("Where is {s} held?", "In which town is {s} held?", "Which town is the host of {s}?"),
        pair=("In which towns are {a} and {b} held?",),
        same=("Are {a} and {b} held in the same town?",),
        role=("the town that hosts {s}",),
    ),
    Relation(
        "month",
        choice(
            "January, February, March, April, May, June, July, August, September, October,"
            " November, December"
        ),
        says=(
            "is held in {v}",
            "falls in {v}",
            "The month of {o} is {v}.",
            "The bells announce {o} in {v}.",
        ),
        asks=(
            "In which month is {s} held?",
            "What is the month of {s}?",
            "In which month falls {s}?",
        ),
        pair=("In which months are {a} and {b} held?",),
        same=("Are {a} and {b} held in the same month?",),
    ),
    Relation(
        "visitors",
        quantity("visitors", 300, 60000, 100),
        says=(
            "attracts {v}",
            "draws {v}",
            "Last year {s} welcomed {v}.",
            "The organisers of {o} expect {v}.",
        ),
        leads=("With {v}",),
        asks=(
            "How many visitors does {s} attract?",
            "How many visitors come to {s}?",
            "How many visitors are expected at {s}?",
        ),
        pair=("How many visitors do {a} and {b} attract?",),
        compare=(
            ("Which attracts more visitors, {a} or {b}?", "max"),
            ("Which attracts fewer visitors, {a} or {b}?", "min"),
        ),
    ),
    Relation(
        "theme",
        choice(
            "folk music, kites, cheese, lanterns, puppets, rowing, poetry, wine, horses,"
            " flowers, dance, choral song"
        ),
        says=(
            "is devoted to {v}",
            "celebrates {v}",
            "The theme of {o} is {v}.",
            "Visitors come to {o} for {v}.",
        ),
        leads=("Devoted to {v}",),
        asks=("What is the theme of {s}?", "To what is {s} devoted?", "What is celebrated at {s}?"),
        pair=("What are the themes of {a} and {b}?",),
        same=("Do {a} and {b} have the same theme?",),
    ),
)

BUILDINGS: tuple[Relation, ...] = (
    Relation(
        "architect",
        Draw("person"),
        says=(
            "was designed by {v}",
            "is the work of {v}",
            "The architect of {o} was {v}.",
            "{v} drew the plans for {o}.",
        ),
        leads=("Designed by {v}",),
        asks=(
            "Who was the architect of {s}?",
            "Who designed {s}?",
            "By whom was {s} designed?",
            "Who drew the plans for {s}?",
        ),
        pair=("Who designed {a} and {b}?", "Who were the architects of {a} and {b}?"),
        same=("Were {a} and {b} designed by the same architect?",),
        role=("the architect of {s}", "the person who designed {s}"),
    ),
    Relation(
        "completed",
        Draw("year"),
        says=(
            "was completed in {v}",
            "has stood since {v}",
            "The last stone of {o} was laid in {v}.",
            "{p} completion fell in the year {v}.",
        ),
        leads=("Completed in {v}",),
        asks=(
            "In what year was {s} completed?",
            "When was {s} completed?",
            "Since which year has stood {s}?",
        ),
        pair=("In which years were {a} and {b} completed?",),
        compare=(
            ("Which was completed first, {a} or {b}?", "min"),
            ("Which was completed later, {a} or {b}?", "max"),
        ),
        same=("Were {a} and {b} completed in the same year?",),
    ),
    Relation(
        "opened",
        Draw("date"),
        says=(
            "was opened on {v}",
            "has been in use since {v}",
            "The opening of {o} took place on {v}.",
            "The first carts crossed {o} on {v}.",
        ),
        leads=("Opened on {v}",),
        asks=(
            "When was {s} opened?",
            "On what date was {s} opened?",
            "On which day took place the opening of {s}?",
        ),
        pair=("On what dates were {a} and {b} opened?",),
        compare=(
            ("Which was opened first, {a} or {b}?", "min"),
            ("Which was opened later, {a} or {b}?", "max"),
        ),
    ),
    Relation(
        "crosses",
        Draw("river"),
        says=(
            "crosses the {v}",
            "spans the {v}",
            "Travellers use {o} to cross the {v}.",
            "The {v} flows under {o}.",
        ),
        leads=("Spanning the {v}",),
        asks=(
            "Which river does {s} cross?",
            "Which river is crossed by {s}?",
            "Which river flows under {s}?",
        ),
        pair=("Which rivers do {a} and {b} cross?",),
        same=("Do {a} and {b} cross the same river?",),
        role=("the river crossed by {s}", "the river under {s}"),
    ),
    Relation(
        "span",
        quantity("metres", 20, 900, 2),
        says=(
            "is {v} long",
            "has a length of {v}",
            "The length of {o} is {v}.",
            "From end to end {s} measures {v}.",
        ),
        leads=("With a length of {v}",),
        asks=("How long is {s}?", "What is the length of {s}?", "What length has {s}?"),
        pair=("How long are {a} and {b}?", "What are the lengths of {a} and {b}?"),
        compare=(("Which is longer, {a} or {b}?", "max"), ("Which is shorter, {a} or {b}?", "min")),
    ),
    Relation(
        "arches",
        quantity("arches", 2, 24),
        says=(
            "has {v}",
            "rests on {v}",
            "Walkers can count {v} under {o}.",
            "In all {s} is carried by {v}.",
        ),
        asks=(
            "How many arches does {s} have?",
            "On how many arches rests {s}?",
            "How many arches are there under {s}?",
        ),
        pair=("How many arches do {a} and {b} have?",),
        compare=(
            ("Which has more arches, {a} or {b}?", "max"),
            ("Which has fewer arches, {a} or {b}?", "min"),
        ),
    ),
    Relation(
        "material",
        choice(
            "grey stone, red brick, cast iron, oak timber, white marble, pale limestone,"
            " black basalt, yellow sandstone"
        ),
        says=(
            "is built of {v}",
            "is made of {v}",
            "The material of {o} is {v}.",
            "{p} walls are of {v}.",
        ),
        leads=("Built of {v}",),
        asks=(
            "Of what is {s} built?",
            "What is the material of {s}?",
            "Of which material are the walls of {s}?",
        ),
        pair=("What are the materials of {a} and {b}?",),
        same=("Are {a} and {b} built of the same material?",),
    ),
    Relation(
        "tower_height",
        quantity("metres", 8, 190),
        says=(
            "is {v} high",
            "rises {v} above the street",
            "The height of {o} is {v}.",
            "{p} roof reaches a height of {v}.",
        ),
        leads=("With a height of {v}",),
        asks=(
            "How high is {s}?",
            "What is the height of {s}?",
            "How far above the street rises {s}?",
        ),
        pair=("How high are {a} and {b}?", "What are the heights of {a} and {b}?"),
        compare=(("Which is higher, {a} or {b}?", "max"), ("Which is lower, {a} or {b}?", "min")),
    ),
    Relation(
        "town",
        Draw("town"),
        says=(
            "stands in {v}",
            "is {an} in the town of {v}",
            "Visitors find {o} in the centre of {v}.",
            "The town council of {v} looks after {o}.",
        ),
        leads=("Situated in {v}",),
        asks=("Where does {s} stand?", "In which town is {s}?", "In which town stands {s}?"),
        pair=("In which towns do {a} and {b} stand?",),
        same=("Do {a} and {b} stand in the same town?",),
        role=("the town where {s} stands",),
    ),
    Relation(
        "rooms",
        quantity("rooms", 3, 120),
        says=(
            "has {v}",
            "contains {v}",
            "A guide leads guests of {o} through {v}.",
            "In all {s} counts {v}.",
        ),
        leads=("With {v}",),
        asks=(
            "How many rooms does {s} have?",
            "How many rooms are there in {s}?",
            "What is the number of rooms in {s}?",
        ),
        pair=("How many rooms do {a} and {b} have?",),
        compare=(
            ("Which has more rooms, {a} or {b}?", "max"),
            ("Which has fewer rooms, {a} or {b}?", "min"),
        ),
    ),
    Relation(
        "owner",
        Draw("person"),
        says=(
            "belongs to {v}",
            "is the property of {v}",
            "The owner of {o} is {v}.",
            "{v} owns {o} and pays for repairs.",
        ),
        asks=("Who is the owner of {s}?", "Who owns {s}?", "To whom belongs {s}?"),
        pair=("Who owns {a} and {b}?", "Who are the owners of {a} and {b}?"),
        same=("Do {a} and {b} have the same owner?",),
        role=("the owner of {s}", "the person who owns {s}"),
    ),
)

INVENTIONS: tuple[Relation, ...] = (
    Relation(
        "inventor",
        Draw("person"),
        says=(
            "was invented by {v}",
            "is an invention of {v}",
            "The inventor of {o} was {v}.",
            "{v} invented {o} after years of trials.",
        ),
        leads=("Invented by {v}",),
        asks=("Who was the inventor of {s}?", "Who invented {s}?", "By whom was {s} invented?"),
        pair=("Who invented {a} and {b}?", "Who were the inventors of {a} and {b}?"),
        same=("Were {a} and {b} invented by the same person?",),
        role=("the inventor of {s}", "the person who invented {s}"),
    ),
    Relation(
        "invented_year",
        Draw("year"),
        says=(
            "was invented in {v}",
            "was first shown in {v}",
            "The idea of {o} goes back to {v}.",
            "{p} year of invention is {v}.",
        ),
        leads=("Invented in {v}",),
        asks=(
            "In what year was {s} invented?",
            "When was {s} invented?",
            "What is the year of invention of {s}?",
        ),
        pair=("In which years were {a} and {b} invented?",),
        compare=(
            ("Which was invented first, {a} or {b}?", "min"),
            ("Which was invented later, {a} or {b}?", "max"),
        ),
        same=("Were {a} and {b} invented in the same year?",),
    ),
    Relation(
        "workshop",
        Draw("town"),
        says=(
            "was first built in {v}",
            "comes from a workshop in {v}",
            "The first copy of {o} was made in {v}.",
            "{p} parts are cast in {v}.",
        ),
        leads=("First built in {v}",),
        asks=(
            "Where was {s} first built?",
            "In which town was {s} first built?",
            "In which town was made the first copy of {s}?",
        ),
        pair=("In which towns were {a} and {b} first built?",),
        same=("Were {a} and {b} first built in the same town?",),
        role=("the town where {s} was first built",),
    ),
    Relation(
        "metal",
        choice("brass, copper, steel, bronze, tin, zinc, iron, pewter"),
        says=(
            "is made of {v}",
            "consists mainly of {v}",
            "The main metal of {o} is {v}.",
            "{p} wheels are of {v}.",
        ),
        leads=("Made of {v}",),
        asks=(
            "Of which metal is {s} made?",
            "What is the main metal of {s}?",
            "Of what metal are the wheels of {s}?",
        ),
        pair=("Of which metals are {a} and {b} made?",),
        same=("Are {a} and {b} made of the same metal?",),
    ),
    Relation(
        "purpose",
        choice(
            "grinding corn, pumping water, cutting timber, spinning wool, pressing oil,"
            " printing maps, measuring rain, polishing glass, lifting stones, sorting seeds"
        ),
        says=(
            "is used for {v}",
            "was built for {v}",
            "The purpose of {o} is {v}.",
            "Most people know {o} as a device for {v}.",
        ),
        leads=("Used for {v}",),
        asks=("What is {s} used for?", "What is the purpose of {s}?", "For what was {s} built?"),
        pair=("What are the purposes of {a} and {b}?",),
        same=("Do {a} and {b} serve the same purpose?",),
    ),
    Relation(
        "patented",
        Draw("date", low=0, high=12, after="invented_year"),
        says=(
            "was patented on {v}",
            "received a patent on {v}",
            "The patent for {o} is dated {v}.",
            "{p} patent was granted on {v}.",
        ),
        leads=("Patented on {v}",),
        asks=(
            "When was {s} patented?",
            "On what date was {s} patented?",
            "What is the date of the patent for {s}?",
        ),
        pair=("On what dates were {a} and {b} patented?",),
        compare=(
            ("Which was patented first, {a} or {b}?", "min"),
            ("Which was patented later, {a} or {b}?", "max"),
        ),
    ),
)

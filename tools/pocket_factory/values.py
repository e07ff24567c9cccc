"""Values of every sort that a text may name: people, places, things, numbers, times, codes. All by chance."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from typing import Any

MONTHS = "January February March April May June July August September October November December".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
NUMBERS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
).split()
COLOURS = (
    "red blue green yellow black white brown grey orange purple pink silver golden dark blue light green cream beige turquoise violet"
).replace("dark blue", "dark_blue").replace("light green", "light_green").split()
JOBS = (
    "nurse teacher baker carpenter plumber engineer lawyer farmer painter pilot driver cook waiter electrician librarian accountant "
    "architect dentist surgeon journalist photographer gardener mechanic programmer chemist physicist biologist historian translator "
    "tailor butcher fisherman miner soldier sailor judge mayor clerk secretary porter guide singer violinist pianist composer sculptor "
    "poet novelist actor dancer weaver potter blacksmith shoemaker watchmaker optician pharmacist vet midwife firefighter caretaker"
).split()
NATIONS = (
    "French German Spanish Italian Polish Dutch Swedish Danish Norwegian Finnish Russian Greek Turkish Hungarian Czech Irish Scottish "
    "Welsh English British American Canadian Mexican Brazilian Chilean Indian Chinese Japanese Korean Egyptian Kenyan Nigerian Australian"
).split()
LANGUAGES = "French German Spanish Italian Polish Dutch Swedish English Latin Greek Turkish Hindi Arabic Russian Japanese Welsh".split()
CURRENCIES = "euros dollars pounds francs kronor zloty rupees yen pesos".split()
SIGNS = ["€", "$", "£", "EUR ", "USD ", "CHF "]
RELATIONS = "brother sister mother father cousin uncle aunt neighbour friend colleague boss teacher doctor dentist landlord grandmother grandfather wife husband son daughter nephew niece".split()
MATERIALS = "oak pine steel copper brass wool cotton linen silk leather glass clay stone granite marble paper plastic rubber concrete bamboo tin slate".split()
PLANTS = "tomatoes potatoes carrots onions beans peas roses tulips apples pears plums cherries lettuce garlic pumpkins spinach basil lavender".split()
FOODS = (
    "flour sugar butter milk eggs salt rice lentils cheese cream yeast oats honey olive oil,tomato paste,lemon juice,baking powder,"
    "chicken stock,soy sauce,red onion"
).replace("olive oil", "olive_oil")
FOODS = [f.replace("_", " ") for part in FOODS.split(",") for f in (part.split() if part.startswith("flour") else [part])]
DISHES = "onion soup,lemon cake,lentil stew,apple pie,rye bread,fish curry,potato salad,mushroom risotto,oat biscuits,plum jam,bean chilli,carrot muffins,rice pudding,pea soup,cheese tart,pancakes,dumplings,gingerbread,banana bread,vegetable lasagne".split(",")
SHOPKINDS = (
    "Bakery Café Bookshop Pharmacy Museum Library Gallery Theatre Cinema Clinic Garage Gym Pool Market Restaurant Bistro Hotel Inn Nursery "
    "Hardware_Store Laundry Workshop Brewery Dairy Winery Florist Butcher School Institute Bank Post_Office Health_Centre Sports_Hall "
    "Community_Centre Town_Hall Zoo Botanical_Garden Archive Studio Salon"
).replace("_", " ").split(" ")
SHOPKINDS = [s for s in SHOPKINDS if s not in ("Hardware", "Store", "Post", "Office", "Health", "Centre", "Sports", "Hall", "Community", "Town", "Botanical", "Garden")] + [
    "Hardware Store", "Post Office", "Health Centre", "Sports Hall", "Community Centre", "Town Hall", "Botanical Garden"]
ITEMS = (
    "kettle lamp chair table bicycle drill printer router laptop camera heater fridge oven washing machine,dishwasher,coffee machine,"
    "lawn mower,sewing machine,tent,backpack,jacket,boots,umbrella,toaster,blender,vacuum cleaner,fan,radio,keyboard,monitor,headset,"
    "speaker,battery,charger,scooter,helmet,stroller,mattress,sofa,desk,bookcase,mirror,carpet,curtain,ladder,hammer,saw,pump,boiler,"
    "thermostat,smoke alarm,doorbell,lock,key,suitcase,watch,telescope,microscope,piano,guitar,drone,tablet,phone,scanner,projector"
)
ITEMS = ITEMS.split(",")[0].split()[:-2] + ["washing machine"] + ITEMS.split(",")[1:]
ROOMS = "kitchen,bathroom,cellar,attic,garage,hall,meeting room,library,office,living room,bedroom,garden,basement,laundry room,canteen,reception,workshop,store room,conference room".split(",")
EVENTS = (
    "meeting,concert,wedding,workshop,lecture,exhibition,market,festival,race,match,training,conference,fair,party,course,tour,open day,"
    "funeral,auction,hearing,interview,exam,rehearsal,picnic,parade,flea market,book club,board meeting,annual meeting,fire drill,"
    "school play,film night,blood drive,job fair,summer camp,quiz night,choir practice,yoga class,parents' evening"
).split(",")
ANIMALS = "dog cat horse cow goat sheep parrot rabbit hamster tortoise donkey goose duck owl fox badger hedgehog bat otter beaver wolf bear".split()
SUBJECTS = "mathematics history biology physics chemistry geography music drama economics law medicine philosophy Latin statistics engineering".split()
VEHICLES = "bus train tram ferry car bike taxi plane boat van truck".split()
TOPICS = "the budget,the new roof,the parking,the website,the heating,the summer fair,the timetable,the accounts,the leaking tap,staff training,the car park,the merger,the audit,the playground,noise at night,the lift".split(",")

Draw = Callable[[random.Random], str]


class Pools:
    """Names that were collected from sources, and draws of every sort of value."""

    def __init__(self, lists: dict[str, Any]) -> None:
        self.lists = lists
        self.kinds: dict[str, Callable[[random.Random], str]] = {
            name.removeprefix("v_"): getattr(self, name) for name in dir(self) if name.startswith("v_")
        }

    def draw(self, rng: random.Random, kind: str) -> str:
        """A value of a sort."""
        return self.kinds[kind](rng)

    # --- names ---------------------------------------------------------------------------------------------

    def made(self, r: random.Random) -> str:
        """A word that nobody knows."""
        if r.random() < 0.5:
            starts, chain = self.lists["starts"], self.lists["chain"]
            word = r.choice(starts)
            while len(word) < 11:
                following = chain.get(word[-2:])
                if not following:
                    break
                letter = r.choice(following)
                if letter == "$":
                    if len(word) > 3:
                        break
                    continue
                word += letter
            return word.capitalize()
        parts = r.choice((1, 2, 2, 2, 3))
        return "".join(
            r.choice(("b", "br", "c", "ch", "d", "dr", "f", "g", "gr", "h", "j", "k", "kl", "l", "m", "n", "p", "pr", "qu", "r", "s", "sh", "st", "t", "th", "tr", "v", "w", "y", "z"))
            + r.choice("aeiouaeiouy") + (r.choice("nrlstkmpdx") if r.random() < 0.45 else "")
            for _ in range(parts)
        ).capitalize()

    def v_given(self, r: random.Random) -> str:
        return r.choice(self.lists["given"]) if r.random() < 0.85 else self.made(r)

    def v_family(self, r: random.Random) -> str:
        return r.choice(self.lists["family"]) if r.random() < 0.8 else self.made(r)

    def v_person(self, r: random.Random) -> str:
        x = r.random()
        if x < 0.72:
            return f"{self.v_given(r)} {self.v_family(r)}"
        if x < 0.82:
            return f"{r.choice(('Dr', 'Dr', 'Mr', 'Mrs', 'Ms', 'Professor', 'Captain', 'Dr.', 'Mr.', 'Mrs.', 'Sister', 'Judge'))} {self.v_family(r)}"
        if x < 0.88:
            return f"{self.v_given(r)} {r.choice(string.ascii_uppercase)}. {self.v_family(r)}"
        if x < 0.92:
            return f"{self.v_given(r)} {self.v_given(r)} {self.v_family(r)}"
        if x < 0.95:
            return f"{self.v_given(r)} {r.choice(('van', 'de', 'von', 'du', 'al', 'da'))} {self.v_family(r)}"
        return self.v_given(r)

    def v_place(self, r: random.Random) -> str:
        return r.choice(self.lists["cities"]) if r.random() < 0.75 else self.made(r) + r.choice(("", "", "", "ton", "ford", "berg", "ville", "mouth", " Bay", " Hill"))

    def v_country(self, r: random.Random) -> str:
        return r.choice(self.lists["countries"])

    def v_surname_word(self, r: random.Random) -> str:
        return self.v_family(r)

    def v_street(self, r: random.Random) -> str:
        name = r.choice((self.v_family, self.v_cap, self.made, self.v_cap))(r)
        return f"{name} {r.choice(('Street', 'Street', 'Road', 'Lane', 'Avenue', 'Square', 'Hill', 'Way', 'Court', 'Quay', 'Row'))}"

    def v_address(self, r: random.Random) -> str:
        return r.choice((f"{r.randint(1, 220)} {self.v_street(r)}", f"{self.v_street(r)} {r.randint(1, 99)}", f"{r.randint(1, 99)}{r.choice('abc')} {self.v_street(r)}"))

    def v_spot(self, r: random.Random) -> str:
        """A place inside of a place, as it stands after "in", "at" or "on"."""
        return r.choice((
            lambda: f"the {r.choice(ROOMS)}", lambda: f"the {self.v_noun(r)}", lambda: f"{self.v_street(r)}", lambda: f"{self.v_place(r)}",
            lambda: f"the {r.choice(ROOMS)} on the {r.choice(('first', 'second', 'third', 'ground', 'top'))} floor",
            lambda: f"room {r.randint(1, 40)}{r.choice(('', '', 'A', 'B'))}", lambda: f"the {self.v_place(r)} {r.choice(SHOPKINDS)}",
            lambda: f"the {r.choice(('old', 'new', 'north', 'south', 'east', 'west', 'main', 'small', 'large'))} {r.choice(ROOMS)}",
            lambda: f"the {self.v_adj(r)} {r.choice(('drawer', 'cupboard', 'shelf', 'box', 'cabinet', 'shed', 'barn', 'tower', 'hut', 'yard'))}",
            lambda: f"{r.choice(('Hall', 'Gate', 'Platform', 'Building', 'Room', 'Studio', 'Lab'))} {r.choice((str(r.randint(1, 30)), r.choice(string.ascii_uppercase)))}",
        ))()

    def v_prepspot(self, r: random.Random) -> str:
        return r.choice((
            lambda: f"under the {self.v_noun(r)}", lambda: f"behind the {self.v_noun(r)}", lambda: f"next to the {self.v_noun(r)}",
            lambda: f"in the {r.choice(ROOMS)}", lambda: f"on the {self.v_adj(r)} {r.choice(('shelf', 'table', 'wall', 'desk'))}", lambda: f"at the {self.v_place(r)} {r.choice(SHOPKINDS)}",
            lambda: f"in the {self.v_adj(r)} {r.choice(('drawer', 'cupboard', 'box', 'bag', 'shed', 'safe'))}", lambda: f"in {self.v_place(r)}",
            lambda: f"near the {r.choice(('entrance', 'exit', 'stairs', 'window', 'lift', 'door', 'river', 'church', 'station', 'bridge'))}",
            lambda: f"on {self.v_street(r)}", lambda: f"at {self.v_address(r)}", lambda: f"between the {self.v_noun(r)} and the {self.v_noun(r)}",
        ))()

    def v_noun(self, r: random.Random) -> str:
        return r.choice(self.lists["nouns"])

    def v_adj(self, r: random.Random) -> str:
        return r.choice(self.lists["adjectives"])

    def v_cap(self, r: random.Random) -> str:
        return self.v_noun(r).capitalize()

    def v_thing(self, r: random.Random) -> str:
        """A thing with "the" or a name of its own."""
        return r.choice((
            lambda: f"the {r.choice(ITEMS)}", lambda: f"the {self.v_adj(r)} {r.choice(ITEMS)}", lambda: f"the {self.v_adj(r)} {self.v_noun(r)}", lambda: f"the {self.v_noun(r)}",
            lambda: self.v_product(r), lambda: f"the {self.v_noun(r)} {r.choice(('key', 'door', 'box', 'room', 'table', 'report', 'plan', 'fund', 'list', 'team'))}", lambda: f"the {r.choice(ITEMS)} in the {r.choice(ROOMS)}",
            lambda: f"{self.v_given(r)}'s {r.choice(ITEMS)}",
        ))()

    def v_object(self, r: random.Random) -> str:
        """A thing that is new to the reader: "a red kettle", "two lamps"."""
        return r.choice((
            lambda: self.a(f"{self.v_adj(r)} {r.choice(ITEMS)}"), lambda: self.a(self.v_noun(r)), lambda: self.a(f"{self.v_adj(r)} {self.v_noun(r)}"), lambda: f"{r.choice(NUMBERS[1:12])} {r.choice(ITEMS)}s",
            lambda: self.a(f"{r.choice(COLOURS)} {self.v_noun(r)}").replace("_", " "), lambda: self.a(r.choice(ITEMS)), lambda: f"{self.a(self.v_noun(r))} and {self.a(self.v_noun(r))}",
            lambda: self.a(f"{r.choice(MATERIALS)} {self.v_noun(r)}"),
        ))()

    @staticmethod
    def a(words: str) -> str:
        return f"{'an' if words[0].lower() in 'aeiou' else 'a'} {words}"

    def v_item(self, r: random.Random) -> str:
        return r.choice(ITEMS)

    def v_food(self, r: random.Random) -> str:
        return r.choice(FOODS)

    def v_dish(self, r: random.Random) -> str:
        return r.choice(DISHES) if r.random() < 0.7 else f"{self.v_adj(r)} {self.v_noun(r)} {r.choice(('soup', 'cake', 'stew', 'salad', 'pie', 'bread', 'sauce'))}"

    def v_org(self, r: random.Random) -> str:
        x = r.random()
        if x < 0.3:
            return r.choice(self.lists["companies"])
        if x < 0.5:
            return f"{self.v_family(r)} {r.choice(('& Sons', 'Ltd', 'Group', 'Systems', 'Foods', 'Instruments', 'Textiles', 'Press', 'Partners', 'Logistics', 'Brothers', 'Motors', 'Pharma', 'Energy', 'Trust'))}"
        if x < 0.75:
            return f"{self.made(r)}{r.choice(('', '', ' Labs', ' Works', ' Software', ' Bank', ' AG', ' Inc', ' Media', ' Airlines'))}"
        return f"the {self.v_place(r)} {r.choice(('Chess Club', 'Rowing Club', 'Choir', 'Council', 'Water Company', 'Housing Association', 'Fire Brigade', 'Football Club', 'History Society', 'University', 'Hospital', 'Orchestra', 'Food Bank'))}"

    def v_shop(self, r: random.Random) -> str:
        kind = r.choice(SHOPKINDS)
        return r.choice((
            lambda: f"the {self.v_place(r)} {kind}", lambda: f"the {self.v_cap(r)} {self.v_cap(r)} {kind}", lambda: f"{self.v_family(r)}'s {kind}", lambda: f"the {kind.lower()}", lambda: f"the {self.v_street(r)} {kind}",
            lambda: f"the {kind.lower()} on {self.v_street(r)}", lambda: f"{kind} {self.v_family(r)}", lambda: f"the {self.v_adj(r).capitalize()} {self.v_cap(r)}", lambda: f"the {kind.lower()} in {self.v_place(r)}",
            lambda: f"{self.made(r)} {kind}",
        ))()

    def v_product(self, r: random.Random) -> str:
        return r.choice((
            lambda: f"the {self.made(r)} {r.randint(2, 9)}00", lambda: f"the {self.made(r)} {r.choice(ITEMS)}", lambda: f"the {self.made(r)} {r.choice(string.ascii_uppercase)}{r.randint(1, 99)}",
            lambda: f"the {r.choice(ITEMS)} {self.made(r)}", lambda: f"{self.made(r)} Pro", lambda: f"model {r.choice(string.ascii_uppercase)}{r.choice(string.ascii_uppercase)}-{r.randint(10, 999)}",
        ))()

    def v_software(self, r: random.Random) -> str:
        return r.choice((lambda: self.made(r).lower(), lambda: f"{self.v_noun(r)}{r.choice(('kit', 'lint', 'db', 'py', 'flow', 'box', 'sync', 'd', 'ctl'))}", lambda: f"{self.made(r)}", lambda: f"lib{self.v_noun(r)}", lambda: f"{self.v_noun(r)}-{self.v_noun(r)}", lambda: f"{self.v_cap(r)}{self.v_cap(r)}"))()

    def v_title(self, r: random.Random) -> str:
        title = r.choice((
            lambda: f"The {self.v_adj(r).capitalize()} {self.v_cap(r)}", lambda: f"The {self.v_cap(r)} of {self.v_place(r)}", lambda: f"{self.v_cap(r)} and {self.v_cap(r)}", lambda: f"The {self.v_cap(r)}'s {self.v_cap(r)}",
            lambda: f"A {self.v_cap(r)} in {r.choice(MONTHS)}", lambda: f"{self.v_adj(r).capitalize()} {self.v_cap(r)}s", lambda: f"{self.v_given(r)} and the {self.v_cap(r)}", lambda: f"The {self.v_cap(r)}",
        ))()
        return f'"{title}"' if r.random() < 0.15 else title

    def v_event(self, r: random.Random) -> str:
        e = r.choice(EVENTS)
        return r.choice((
            lambda: f"the {e}", lambda: f"the {self.v_adj(r)} {e}", lambda: f"the {self.v_place(r)} {e}", lambda: f"the {r.choice(('spring', 'summer', 'autumn', 'winter', 'annual', 'weekly', 'monthly', 'first', 'second', 'next', 'last'))} {e}",
            lambda: f"the {self.v_noun(r)} {e}", lambda: f"{self.v_given(r)}'s {e}",
        ))()

    def v_river(self, r: random.Random) -> str:
        return f"the {self.made(r) if r.random() < 0.6 else self.v_family(r)}" + r.choice(("", " River"))

    def v_building(self, r: random.Random) -> str:
        return r.choice((lambda: f"the {self.v_place(r)} {r.choice(('Bridge', 'Tower', 'Cathedral', 'Castle', 'Dam', 'Lighthouse', 'Station', 'Stadium', 'Tunnel', 'Canal', 'Palace'))}", lambda: f"the {self.v_family(r)} {r.choice(('Bridge', 'Building', 'House', 'Hall', 'Tower'))}", lambda: f"{self.made(r)} {r.choice(('Castle', 'Abbey', 'Hall', 'House', 'Bridge', 'Manor'))}", lambda: f"the {self.v_adj(r)} {r.choice(('bridge', 'tower', 'wall', 'tunnel', 'pool', 'tree', 'path'))}"))()

    def v_mountain(self, r: random.Random) -> str:
        return r.choice((f"Mount {self.made(r)}", f"{self.made(r)} Peak", f"the {self.made(r)}horn", f"{self.v_family(r)} Hill"))

    def v_animal(self, r: random.Random) -> str:
        return r.choice(ANIMALS)

    def v_pet(self, r: random.Random) -> str:
        return self.v_given(r)

    def v_colour(self, r: random.Random) -> str:
        return r.choice(COLOURS).replace("_", " ") if r.random() < 0.85 else f"{r.choice(COLOURS)} and {r.choice(COLOURS)}".replace("_", " ")

    def v_job(self, r: random.Random) -> str:
        return r.choice(JOBS)

    def v_ajob(self, r: random.Random) -> str:
        return self.a(r.choice(JOBS))

    def v_nation(self, r: random.Random) -> str:
        return r.choice(NATIONS)

    def v_language(self, r: random.Random) -> str:
        return r.choice(LANGUAGES)

    def v_relation(self, r: random.Random) -> str:
        return r.choice(RELATIONS)

    def v_material(self, r: random.Random) -> str:
        return r.choice(MATERIALS)

    def v_plant(self, r: random.Random) -> str:
        return r.choice(PLANTS)

    def v_study(self, r: random.Random) -> str:
        return r.choice(SUBJECTS)

    def v_topic(self, r: random.Random) -> str:
        return r.choice(TOPICS) if r.random() < 0.6 else f"the {self.v_noun(r)}"

    def v_vehicle(self, r: random.Random) -> str:
        return r.choice(VEHICLES)

    def v_group(self, r: random.Random) -> str:
        return r.choice(("children", "guests", "members", "students", "visitors", "tenants", "employees", "customers", "pupils", "patients", "pensioners", "residents", "drivers", "cyclists", "volunteers", "passengers", "beginners"))

    def v_list(self, r: random.Random) -> str:
        parts = [r.choice((self.v_noun, self.v_food, self.v_item, self.v_colour, self.v_given))(r) for _ in range(r.choice((2, 3, 3, 4)))]
        return f"{', '.join(parts[:-1])} and {parts[-1]}"

    def v_phrase(self, r: random.Random) -> str:
        """Any short noun phrase."""
        return r.choice((lambda: f"{self.v_adj(r)} {self.v_noun(r)}", lambda: f"{self.v_noun(r)} {self.v_noun(r)}", lambda: f"the {self.v_noun(r)} of the {self.v_noun(r)}", lambda: self.v_noun(r), lambda: self.a(f"{self.v_adj(r)} {self.v_noun(r)}"), lambda: f"{self.v_adj(r)} {self.v_adj(r)} {self.v_noun(r)}"))()

    # --- clauses -----------------------------------------------------------------------------------------

    def v_action(self, r: random.Random) -> str:
        """What somebody is told to do: "press the red button", without a full stop."""
        thing = lambda: r.choice((f"the {self.v_noun(r)}", f"the {r.choice(ITEMS)}", f"the {self.v_adj(r)} {self.v_noun(r)}", f"the {r.choice(COLOURS).replace('_', ' ')} {r.choice(('button', 'switch', 'lever', 'cable', 'key', 'valve'))}"))
        verb = r.choice(("press", "clean", "replace", "remove", "close", "open", "turn off", "turn on", "unplug", "check", "call", "lift", "pull", "fill", "empty", "rinse", "dry", "wash", "hold down", "restart", "reset", "lock", "loosen", "tighten", "cover", "return", "sign", "print", "scan", "store", "shake", "heat", "cool", "water", "move", "report", "cancel", "paint", "order", "test", "update"))
        tail = r.choice(("", "", "", f" for {self.v_duration(r)}", f" with {self.a(self.v_noun(r))}", f" before {r.choice(DAYS)}", " twice", " slowly", f" and wait {self.v_duration(r)}", f" to the {r.choice(('left', 'right'))}", f" {self.v_prepspot(r)}", f" and {r.choice(('call', 'tell', 'ask'))} {self.v_person(r)}"))
        return f"{verb} {thing()}{tail}"

    def v_task(self, r: random.Random) -> str:
        """Something one wants to do: "book the hall"."""
        return f"{r.choice(('book', 'repair', 'renew', 'cancel', 'install', 'clean', 'borrow', 'return', 'rent', 'order', 'paint', 'unlock', 'sharpen', 'reset', 'print', 'join', 'feed', 'register', 'prepare', 'close', 'assemble', 'update', 'sell', 'build', 'open', 'start', 'stop'))} {r.choice(('the', 'a', 'your', 'the'))} {r.choice((self.v_noun, self.v_item, self.v_item))(r)}"

    def v_clause(self, r: random.Random) -> str:
        """A whole clause: "the roof leaked"."""
        who = r.choice((lambda: f"the {self.v_noun(r)}", lambda: f"the {r.choice(ITEMS)}", lambda: f"the {self.v_adj(r)} {self.v_noun(r)}", lambda: self.v_given(r), lambda: f"the {r.choice(JOBS)}", lambda: f"the {r.choice(ROOMS)}", lambda: self.v_org(r)))()
        what = r.choice((
            "leaked", "was too small", "broke down", "was closed", "was full", "had run out", "was late", "was ill", "did not arrive", "was too expensive", "caught fire", "was sold", "moved away", "was frozen", "failed twice", "got lost",
            "was being repaired", "fell over", "overheated", "lost its licence", "had no power", "retired", "was stolen", "flooded", "resigned", "was out of order", "made too much noise", "did not fit", "needed more space", "forgot the key",
            "missed the train", "had been damaged by frost", "was not ready", "could not pay", "smelled of gas", "had a flat tyre", "was not insured", "had changed the lock", "is too heavy", "is under repair", "is closed for cleaning", "costs too much",
        ))
        return f"{who} {what}"

    def v_because(self, r: random.Random) -> str:
        """A reason as it stands behind "because": with or without "of"."""
        if r.random() < 0.35:
            return "of " + r.choice(("heavy rain", "snow", "a strike", "the fog", "a power cut", "bad weather", "a gas leak", "roadworks", "the heat", "high costs", "an accident", f"the {self.v_noun(r)}", f"a broken {self.v_noun(r)}", f"a lack of {self.v_noun(r)}", f"the {self.v_adj(r)} {self.v_noun(r)}"))
        return self.v_clause(r)

    def v_condition(self, r: random.Random) -> str:
        return r.choice((lambda: f"the {self.v_item(r)} {r.choice(('does not start', 'is too hot', 'makes a noise', 'stops', 'leaks', 'is empty', 'blinks red', 'is lost', 'is damaged', 'is stuck', 'smells'))}", lambda: f"the {self.v_noun(r)} {r.choice(('is broken', 'is missing', 'is wet', 'falls off', 'turns blue', 'is late', 'rings', 'is locked'))}", lambda: "you lose " + r.choice(("your key", "your card", f"the {self.v_noun(r)}")), lambda: f"you see {self.a(self.v_noun(r))}", lambda: f"the {r.choice(COLOURS).replace('_', ' ')} light {r.choice(('blinks', 'comes on', 'goes out'))}"))()

    # --- numbers -----------------------------------------------------------------------------------------

    def v_int(self, r: random.Random) -> str:
        x = r.random()
        if x < 0.45:
            return str(r.randint(2, 99))
        if x < 0.6:
            return str(r.randint(100, 999))
        if x < 0.72:
            return r.choice(NUMBERS)
        if x < 0.85:
            return f"{r.randint(1, 999)},{r.randint(0, 999):03d}"
        if x < 0.9:
            return f"{r.choice(NUMBERS[19:])}-{r.choice(NUMBERS[:9])}"
        return str(r.randint(1000, 99999)) if x < 0.97 else f"{r.randint(2, 99)} million"

    def v_small(self, r: random.Random) -> str:
        return r.choice(NUMBERS[1:12]) if r.random() < 0.5 else str(r.randint(2, 40))

    def v_digit(self, r: random.Random) -> str:
        return str(r.randint(1, 12))

    def v_decimal(self, r: random.Random) -> str:
        return f"{r.uniform(0.1, 99):.{r.choice((1, 1, 2))}f}"

    def v_percent(self, r: random.Random) -> str:
        return f"{r.choice((r.randint(1, 99), round(r.uniform(0.5, 60), 1)))}{r.choice(('%', ' per cent', ' percent'))}"

    def v_year(self, r: random.Random) -> str:
        return str(r.choice((r.randint(1850, 2026), r.randint(1200, 2026))))

    def v_date(self, r: random.Random) -> str:
        d, m, y = r.randint(1, 28), r.randint(1, 12), self.v_year(r)
        name = MONTHS[m - 1]
        return r.choice((
            f"{d} {name} {y}", f"{d} {name} {y}", f"{name} {d}, {y}", f"{d} {name}", f"{name} {d}", f"{y}-{m:02d}-{d:02d}", f"{d:02d}/{m:02d}/{y}", f"{d}.{m}.{y}", f"{name} {y}", f"{d} {name[:3]} {y}", f"{d}{'th' if 3 < d < 21 or d % 10 not in (1, 2, 3) else ('st', 'nd', 'rd')[d % 10 - 1]} {name}",
        ))

    def v_day(self, r: random.Random) -> str:
        return r.choice(DAYS)

    def v_days(self, r: random.Random) -> str:
        i = r.randrange(6)
        return r.choice((f"{DAYS[i]}s", f"{DAYS[i]}s", f"{DAYS[i]}s and {DAYS[i + 1]}s", "weekdays", "weekends", "Saturdays and Sundays", f"{DAYS[i]} mornings", f"{DAYS[i]} evenings", f"the first {DAYS[i]} of the month"))

    def v_month(self, r: random.Random) -> str:
        return r.choice(MONTHS)

    def v_clock(self, r: random.Random) -> str:
        h, m = r.randint(1, 12), r.choice((0, 0, 15, 30, 45, r.randrange(0, 60, 5), r.randrange(60)))
        return r.choice((
            lambda: f"{h}:{m:02d}", lambda: f"{r.randint(0, 23):02d}:{m:02d}", lambda: f"{h} {r.choice(('am', 'pm', 'a.m.', 'p.m.'))}", lambda: f"{h}:{m:02d} {r.choice(('am', 'pm'))}", lambda: f"{h}{r.choice(('am', 'pm'))}", lambda: f"{h} o'clock", lambda: f"half past {NUMBERS[h - 1]}", lambda: f"{h}.{m:02d}", lambda: r.choice(("noon", "midnight", f"quarter to {NUMBERS[h - 1]}", f"{NUMBERS[h - 1]} o'clock", f"quarter past {NUMBERS[h - 1]}")),
        ))()

    def v_duration(self, r: random.Random) -> str:
        unit = r.choice(("minutes", "minutes", "hours", "days", "weeks", "months", "years", "seconds"))
        return r.choice((lambda: f"{r.randint(2, 90)} {unit}", lambda: f"{r.choice(NUMBERS[1:12])} {unit}", lambda: r.choice(("half an hour", "an hour", "a week", "one year", "two and a half hours", "overnight", "a month", "45 seconds")), lambda: f"{r.randint(2, 10)} to {r.randint(11, 30)} {unit}"))()

    def v_money(self, r: random.Random) -> str:
        x = r.random()
        amount = r.choice((str(r.randint(1, 99)), str(r.randint(100, 999)), f"{r.randint(1, 99)}.{r.randint(0, 99):02d}", f"{r.randint(1, 99)},{r.randint(0, 999):03d}", f"{r.randint(1, 9)}.{r.choice((5, 8, 9, 2))}0"))
        if x < 0.45:
            return f"{amount} {r.choice(CURRENCIES)}"
        if x < 0.9:
            return f"{r.choice(SIGNS)}{amount}"
        return f"{r.choice(NUMBERS[1:])} {r.choice(CURRENCIES)}"

    def v_amount(self, r: random.Random) -> str:
        """A quantity of food or of stuff."""
        return r.choice((lambda: f"{r.randint(1, 90) * 10} g", lambda: f"{r.randint(1, 90) * 10} ml", lambda: f"{r.choice(NUMBERS[:6])} {r.choice(('cups', 'spoons', 'tablespoons', 'teaspoons', 'slices'))}", lambda: f"{r.randint(2, 9)}", lambda: f"{r.randint(1, 9)}.{r.randint(1, 9)} kg", lambda: f"{r.randint(2, 9)} litres", lambda: "a pinch", lambda: "half a cup"))()

    def _measure(self, r: random.Random, units: str) -> str:
        n = r.choice((str(r.randint(2, 99)), str(r.randint(100, 999)), f"{r.randint(1, 99)}.{r.randint(1, 9)}", f"{r.randint(1, 9)},{r.randint(0, 999):03d}", r.choice(NUMBERS[1:])))
        unit = r.choice(units.split(","))
        return f"{n} {unit}"

    def v_length(self, r: random.Random) -> str:
        return self._measure(r, "metres,m,km,kilometres,feet,miles,cm,centimetres,mm,inches")

    def v_weight(self, r: random.Random) -> str:
        return self._measure(r, "kg,kilograms,grams,g,tonnes,pounds,kilos")

    def v_area(self, r: random.Random) -> str:
        return self._measure(r, "square metres,hectares,square kilometres,acres,m2")

    def v_volume(self, r: random.Random) -> str:
        return self._measure(r, "litres,ml,gallons,cubic metres,l")

    def v_speed(self, r: random.Random) -> str:
        return self._measure(r, "km/h,kilometres an hour,mph,knots,metres per second")

    def v_temperature(self, r: random.Random) -> str:
        return f"{r.choice(('', '', '-', 'minus '))}{r.choice((str(r.randint(1, 260)), r.choice(NUMBERS[:20])))}{r.choice((' degrees', '°C', ' °C', ' degrees Celsius'))}"

    def v_size(self, r: random.Random) -> str:
        return r.choice((f"{r.randint(1, 512)} {r.choice(('MB', 'GB', 'KB', 'TB'))}", f"{r.randint(10, 99)} by {r.randint(10, 99)} cm", f"{r.randint(1, 900)} x {r.randint(1, 900)} mm"))

    def v_power(self, r: random.Random) -> str:
        return self._measure(r, "watts,W,kW,volts,amps,mAh,Hz,horsepower")

    def v_frequency(self, r: random.Random) -> str:
        return r.choice((lambda: r.choice(("once a week", "twice a day", "every two weeks", "once a month", "every Sunday", "twice a year", "every morning", "daily", "every six months", "three times a week")), lambda: f"every {self.v_duration(r)}", lambda: f"{r.choice(('once', 'twice', 'three times', 'four times'))} a {r.choice(('day', 'week', 'month', 'year', 'season'))}", lambda: f"every {r.choice(DAYS)}"))()

    def v_phone(self, r: random.Random) -> str:
        d = lambda n: "".join(r.choice(string.digits) for _ in range(n))
        return r.choice((f"0{d(3)} {d(6)}", f"+{r.randint(1, 99)} {d(2)} {d(3)} {d(4)}", f"555-{d(4)}", f"({d(3)}) {d(3)}-{d(4)}", f"0{d(2)} {d(2)} {d(2)} {d(2)}", f"ext. {d(3)}", d(4), f"0{d(4)}-{d(5)}"))

    def v_code(self, r: random.Random) -> str:
        d = lambda n: "".join(r.choice(string.digits) for _ in range(n))
        u = lambda n: "".join(r.choice(string.ascii_uppercase) for _ in range(n))
        return r.choice((f"{u(1)}{d(2)}", f"{u(2)}-{d(4)}", f"{u(3)}{d(3)}", d(4), d(5), f"{u(2)}{d(2)} {u(3)}", f"{d(2)}-{u(2)}-{d(3)}", f"#{d(4)}", f"{u(1)}-{d(3)}/{d(2)}", f"{u(4)}", f"E{d(2)}", f"{u(3)}-{d(4)}-{u(1)}"))

    def v_version(self, r: random.Random) -> str:
        return r.choice((f"{r.randint(0, 12)}.{r.randint(0, 20)}", f"{r.randint(0, 12)}.{r.randint(0, 20)}.{r.randint(0, 20)}", f"v{r.randint(1, 9)}.{r.randint(0, 9)}", f"{r.randint(1, 9)}.{r.randint(0, 9)}-beta", f"{r.randint(2018, 2026)}.{r.randint(1, 12)}"))

    def v_path(self, r: random.Random) -> str:
        w = lambda: self.v_noun(r)
        return r.choice((f"/etc/{w()}.conf", f"/var/log/{w()}", f"~/{w()}/{w()}.txt", f"C:\\{w()}\\{w()}", f"{w()}.{r.choice(('txt', 'json', 'yaml', 'csv', 'log', 'pdf'))}", f"src/{w()}/{w()}.py", f"--{w()}", f"{w().upper()}_{w().upper()}", f"{w()}_{w()}"))

    def v_mail(self, r: random.Random) -> str:
        return f"{r.choice((self.v_given(r).lower(), r.choice(('info', 'office', 'help', 'contact', 'support', 'hello'))))}@{self.made(r).lower()}.{r.choice(('com', 'org', 'net', 'example', 'de', 'co.uk'))}"

    def v_url(self, r: random.Random) -> str:
        return f"{r.choice(('www.', 'https://', ''))}{self.made(r).lower()}.{r.choice(('org', 'com', 'net', 'io'))}"

    def v_port(self, r: random.Random) -> str:
        return str(r.choice((r.randint(1000, 9999), r.randint(20, 999), r.randint(10000, 65000))))

    def v_score(self, r: random.Random) -> str:
        return r.choice((f"{r.randint(0, 9)}-{r.randint(0, 9)}", f"{r.randint(0, 9)} to {r.randint(0, 9)}", f"{r.randint(0, 9)}:{r.randint(0, 9)}", f"{r.randint(20, 110)}-{r.randint(20, 110)}"))

    def v_age(self, r: random.Random) -> str:
        return r.choice((str(r.randint(2, 99)), r.choice(NUMBERS[3:])))

    def v_ordinal(self, r: random.Random) -> str:
        return r.choice(("first", "second", "third", "fourth", "fifth", "top", "ground", "sixth", "tenth"))

    def v_any(self, r: random.Random) -> str:
        """A value of any sort, for open relations."""
        return self.kinds[r.choice(ANY)](r)


ANY = (
    "person person person place place org noun phrase phrase phrase list colour job nation int int money length weight date year code code "
    "duration version phone percent title title address street made_ clause_ country language material decimal thing object"
).replace("made_", "software").replace("clause_", "noun").split()

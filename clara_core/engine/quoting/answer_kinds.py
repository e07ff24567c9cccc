"""What the answer to a question looks like: a time, a place, a number, a person, …, told by the question's words.

A small generator often quotes a price where a time was asked for. Classifying questions by their expected answer is
older than neural models (Li and Roth, 2002); here it takes a table of English patterns. A question in another language
has no kind. Runs no model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final


def _any(words: str) -> str:
    return f"(?:{'|'.join(words.split())})"


# --- parts of answers ----------------------------------------------------------------------------------------

_ONES: Final = _any("one two three four five six seven eight nine ten eleven twelve")
_TEENS: Final = _any("thirteen fourteen fifteen sixteen seventeen eighteen nineteen")
_TENS: Final = _any("twenty thirty forty fifty sixty seventy eighty ninety")
_WORDS: Final = rf"(?:{_ONES}|{_TEENS}|{_TENS}(?:-{_ONES})?)\b"
_PART: Final = rf"(?:half|both|none|a\s+{_any('half third quarter dozen hundred thousand million couple few')})\b"
_NUMBER: Final = rf"(?:[$£€¥]?\d(?>[\w.,:/%-]*)|{_WORDS}|{_PART})"
_ABOUT: Final = (
    rf"(?:(?:{_any('about around roughly nearly almost over under only exactly some every for from between within')}"
    r"|at\s+least|at\s+most|up\s+to|more\s+than|less\s+than|after|by|of)\s+)?"
)
_MONTHS: Final = (
    rf"(?:{_any('january february march april may june july august september october november december')}"
    rf"|{_any('jan feb mar apr jun jul aug sept? oct nov dec')})\b"
)
_DAYS: Final = rf"(?:{_any('mon tues wednes thurs fri satur sun')}days?|{_any('mon tue wed thu fri sat sun')}\b)"
_SPANS: Final = r"(?:(?:second|minute|min|hour|hr|day|night|week|month|year|decade)s?|centur(?:y|ies))\b"  # of time
_LENGTHS: Final = (
    rf"(?:{_any('mm cm dm m km inch inches foot feet')}|(?:yard|mile|stor(?:e?y|ie))s?"
    r"|(?:milli|centi|deci|kilo)?met(?:re|er)s?)\b"
)
_WEIGHTS: Final = rf"(?:{_any('mg g kg t oz lbs?')}|(?:kilo|milli)?gram(?:me)?s?|(?:ton|tonne|kilo|ounce|pound)s?)\b"
_DEGREES: Final = r"(?:degrees?\b|°)"
_COINS: Final = (
    rf"(?:(?:euro|cent|dollar|pound|franc|crown|rupee)s?\b|{_any('pence kroner? kronor yen p')}\b"
    rf"|{_any('eur usd gbp chf sek nok dkk')}\b|[$£€¥])"
)
_PRICE: Final = (
    rf"(?:(?:[$£€¥]|{_any('chf eur usd gbp')}\b)\s*\d|{_NUMBER}(?:\s+(?:hundred|thousand|million))?\s*{_COINS}"
    r"|\d+[.,]\d\d\b(?!\s*[a-z]?m\b)|(?:free|nothing|half|no\s+charge)\b)"
)
_UNITS: Final = rf"(?:{_SPANS}|{_LENGTHS}|{_WEIGHTS}|{_DEGREES}|{_COINS}|{_MONTHS}|(?:percent|am|pm|o'clock)\b|%)"
_NO_DATE: Final = r"(?!(?:1[5-9]|20)\d\d\b|(?<=\bin )\d{4}\b|\d+:\d\d\b|\d+(?:st|nd|rd|th)\b)"
_WHEN: Final = _any(
    "in on at from until till since before after by during about around every last next this the early late mid "
    "between to towards of end beginning"
)
_TIME: Final = (
    rf"(?:{_WHEN}\s+)*(?:\d{{1,2}}[:.]\d\d\b|\d{{1,2}}\s*(?:am|pm|o'clock)\b|{_DAYS}|{_MONTHS}"
    rf"|\d{{1,2}}(?:st|nd|rd|th)?\s+(?:of\s+)?{_MONTHS}|(?:1\d|20)\d\d\b|\d{{1,2}}(?:st|nd|rd|th)\b"
    rf"|\d{{1,4}}[./-]\d{{1,2}}[./-]\d{{1,4}}|(?:\d+|{_ONES})\s+(?:{_SPANS}|o'clock)"
    rf"|(?:a\s+)?(?:quarter|half)\s+(?:past|to)\b"
    rf"|(?:first|second|third|last)\s+(?:{_DAYS}|week|day|month)"
    rf"|{_any('noon midday midnight mornings? afternoons? evenings? nights? today tonight tomorrow yesterday')}\b"
    rf"|{_any('weekends? spring summer autumn winter easter christmas dawn dusk sunrise sunset week month year')}\b)"
)
_WHERE: Final = _any(
    "in at on by behind near to under above below beside between inside outside opposite next across along around "
    "from into through over off beneath beyond past against via upstairs downstairs here there home "
    "room platform gate hall floor"
)
_PLACE: Final = rf"(?!{_TIME})(?:{_WHERE}\b|with\s+{_any('the my your his her our their')}\b|(?-i:[A-Z]))"
_NO_NAME: Final = _any(
    "The A An It In On At If We You He She They I This That There Our Your When For To From Please No Yes All Each "
    "Every After Before Are Is Was Were Do Does Did Can Could May Will Would Should Have Has Had Dear Hi Hello Best "
    "Regards Love Thanks"
)
_NAME: Final = rf"(?-i:(?!(?i:{_DAYS}|{_MONTHS})|{_NO_NAME}\b)[A-Z])"
# A name of a place: behind "in", or with such a word in it.
_PLACE_WORDS: Final = _any(
    "Airport Avenue Bay Bridge Castle Church City Hall Harbour Hotel House Island Lake Lane Library Mountain Museum "
    "Ocean Park River Road School Sea Square Station Street University Valley"
)
_NO_PLACE: Final = rf"(?<!\bin )(?<!\bat )(?<!\bnear )(?!(?:\w+\s+){{1,2}}{_PLACE_WORDS}\b)"
_REASON: Final = (
    r"(?:because|so|due|in\s+order|as|since|out\s+of|(?:to|for)\s+(?-i:[a-z]+)|at\s+(?:my|your|his|her|our|their))\b"
)
_COLOURS: Final = _any(
    "red green blue yellow black white grey gray brown orange purple pink violet silver gold beige turquoise"
)

NUMBER: Final = re.compile(rf"(?:\d[\d.,:]*|{_WORDS})", re.IGNORECASE)
UNIT_AFTER: Final = re.compile(rf"\s(?:{_UNITS})", re.IGNORECASE)

# --- kinds ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AnswerKind:
    """What the answers to some questions look like.

    Attributes:
        name: What they are.
        asked: Matches such a question from its question word on.
        fits: Matches a text at the place where such an answer begins.
        needed: How certainly an answer has this form, between 0 and 1. If no document has one, none answers.
        repeats: Whether it may begin with a word of the question.
        avoids: Matches a text at a place where no such answer begins; None if nothing tells.
        is_thing: Whether it is one of several things of a name, as the answer to "which tram".
    """

    name: str
    asked: re.Pattern[str]
    fits: re.Pattern[str]
    needed: float = 1.0
    repeats: bool = False
    avoids: re.Pattern[str] | None = None
    is_thing: bool = False


def _kind(name: str, asked: str, fits: str, needed: float = 1.0, avoids: str | None = None) -> AnswerKind:
    avoided = None if avoids is None else re.compile(avoids, re.IGNORECASE)
    return AnswerKind(name, re.compile(asked, re.IGNORECASE), re.compile(fits, re.IGNORECASE), needed, avoids=avoided)


_COST: Final = (
    r"(?:costs?|prices?|fees?|fares?|rent|fine|charge|pay|paid|deposit|premium|reward|wages?|salary|toll|tax)\b"
)
_VERBS: Final = _any("is are was were do does did can could may might must should shall will would has have had am")
_SOMEWHERE: Final = _any("country city town village street place room building river island")

YES_OR_NO: Final = _kind("yes or no", rf"{_VERBS}\b", r"(?!)", needed=0)
_KINDS: Final = (
    _kind(
        "price",
        rf"how (?:much|high|expensive)\b.*\b{_COST}|what\b.*\b{_COST}|(?!{_VERBS}\b|.*\b(?:wh|how)).*\b{_COST}"
        rf"|how much (?:money|for|{_VERBS})\b(?!.*\bweigh)",
        _PRICE,
    ),
    _kind(
        "frequency",
        r"how often|how many times (?:a|per)\b",
        rf"{_any('once twice thrice every each daily weekly monthly yearly always never')}\b"
        rf"|{_NUMBER}\s+times|(?:on\s+)?{_DAYS}",
    ),
    _kind(
        "duration",
        r"(?:for )?how long|how much time|how far (?:ahead|in advance)",
        rf"{_ABOUT}(?:a|an|{_NUMBER})(?:\s+and\s+a\s+half|\s+(?:to|or)\s+\w+)?[\s-]*(?:{_SPANS}|{_LENGTHS})",
    ),
    _kind(
        "temperature", r"how (?:warm|hot|cold)|(?:at )?what temperature", rf"{_ABOUT}(?:{_NUMBER}\s*{_DEGREES}|minus)"
    ),
    _kind("weight", r"how heavy|(?:how much|what)\b.*\bweigh", rf"{_ABOUT}{_NUMBER}\s*{_WEIGHTS}"),
    _kind("length", r"how (?:high|tall|deep|far|wide|thick|big|large)\b", rf"{_ABOUT}{_NUMBER}\s*{_LENGTHS}"),
    _kind("age", r"how old", rf"{_ABOUT}{_NO_DATE}{_NUMBER}(?:\s*{_SPANS}|(?!\s*{_UNITS}))"),
    _kind("amount", r"how (?:much|fast|strong|loud)\b", rf"{_ABOUT}{_NO_DATE}{_NUMBER}"),
    _kind("count", r"how many|(?:what )?number of", rf"{_ABOUT}{_NO_DATE}{_NUMBER}(?!\s*{_UNITS})"),
    _kind("time", r"(?:\w+ )?when\b|(?:\w+ )?(?:what|which) (?:time|day|date|year|month|hour)", _TIME),
    _kind("place", rf"(?:\w+ )?where\b|(?:\w+ )?(?:what|which) {_SOMEWHERE}", _PLACE, needed=0.5),
    _kind(
        "person",
        r"(?:\w+ )?who(?:m|se)?\b",
        rf"{_NO_PLACE}(?:{_NAME}|{_any('my your his her its our their')}\s+[a-z])",
        needed=0.5,
        avoids=rf"(?-i:[A-Z])\w*\s+(?:\w+\s+)?{_PLACE_WORDS}\b",
    ),
    _kind("reason", r"why\b", _REASON, needed=0.5),
    _kind(
        "code",
        rf"(?:what\b|(?!{_VERBS}\b|.*\b(?:wh|how))).*\b"
        rf"{_any('number code pin password extension version postcode phone telephone')}\b",
        r"(?!\d+:\d\d\b)\S*\d",
    ),
    _kind("colour", r"(?:what|which) colou?r", rf"(?:\w+\s+)?{_COLOURS}\b"),
    _kind("name", r"what\b.*\b(?:called|names?|titled?)\b", _NAME, needed=0.5),
    YES_OR_NO,
)
_QUESTION: Final = re.compile(
    rf"\b(?:{_any('until since from by with to for in at')} )?{_any('who whom whose when where why how which what')}\b",
    re.IGNORECASE,
)
_NO_ARTICLE: Final = rf"(?!{_any('a an the this that his her its my our their your')}\b)"
_THING: Final = re.compile(rf"(?:\w+ )?(?:which|what) (?!{_VERBS}\b|of\b)(?P<noun>[^\W\d_]+)", re.IGNORECASE)


def kind_of(question: str) -> AnswerKind | None:
    """The kind of the answer that a question asks for; None if its words do not tell."""
    first = _QUESTION.search(question)
    asked = question[first.start() :] if first else question.lstrip()
    thing = _THING.match(asked)
    known = next((kind for kind in _KINDS if kind.asked.match(asked)), None)
    return _thing(thing["noun"].lower().removesuffix("s")) if known is None and thing is not None else known


def _thing(noun: str) -> AnswerKind:
    """The kind of "which tram": "tram 4", "the Harbour tram", "last tram"."""
    fits = rf"(?:the\s+)?(?-i:[A-Z])\S+\s+{noun}|{noun}\w*\s+(?:\S*\d|(?-i:[A-Z]))|{_NO_ARTICLE}[a-z]+\s+{noun}\b"
    return AnswerKind(noun, _THING, re.compile(fits, re.IGNORECASE), needed=0, repeats=True, is_thing=True)

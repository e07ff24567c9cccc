"""Synthesis with a language model that makes typical mistakes."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest

from clara_core.common.errors import LLMError
from clara_core.training.synthesis import asynthesize, synthesize
from tests.training.conftest import stage1, whole
from tests.training.teacher import TEXTS, Teacher, kind_of, passage_of

pytestmark = pytest.mark.usefixtures("no_waiting")


# --- bad replies -----------------------------------------------------------------------------------------


def first(spoiled):
    """A failure at the first request of a kind for a passage only."""
    return lambda kind, number, reply: spoiled(kind, reply) if number == 0 else reply


def always(spoiled):
    return lambda kind, number, reply: spoiled(kind, reply)


def twice_each(kind, reply):
    return json.dumps({"pairs": json.loads(reply)["pairs"] * 2}) if kind in ("simple", "complex") else reply


def german(kind, reply):
    german = {"pairs": "Paare", "question": "Frage", "answer": "Antwort", "paraphrase": "Text", "missing": "Fehlt"}
    for key, word in german.items():
        reply = reply.replace(f'"{key}"', f'"{word}"')
    return reply


def invent(kind, reply):
    if kind != "simple":
        return reply
    pairs = json.loads(reply)["pairs"]
    return json.dumps({"pairs": [*pairs, {"question": "Who painted the door?", "answer": "Nobody knows"}]})


def unanswered(kind, reply):
    if kind != "simple":
        return reply
    extra = [{"question": "Why?"}, {"question": "How?", "answer": None}, {"question": "Who?", "answer": "N/A"}]
    return json.dumps({"pairs": [*extra, *json.loads(reply)["pairs"]]})


def raising(kind, reply):
    raise ConnectionError("429 slow down")


def shouting(kind, reply):
    return reply[:-2] + reply[-2:].replace("}", "}" + " and so on" * 100_000)


MENDED = {
    "fenced": (always(lambda kind, reply: f"Sure!\n```json\n{reply}\n```\nHope [this] helps {{you}}."), None),
    "thought about": (always(lambda kind, reply: '<think>{"pairs": []}, or not?</think>' + reply), None),
    "wrapped in a list": (always(lambda kind, reply: f"[{reply}]" if kind != "verify" else reply), None),
    "broken": (first(lambda kind, reply: reply.replace('": ', '" = ')), "JSON broken or cut off"),
    "refused": (first(lambda kind, reply: "I'm sorry, but I can't help with that."), "no JSON"),
    "refused in JSON": (first(lambda kind, reply: '{"error": {"refusal": true}}'), "JSON without the requested fields"),
    "empty": (first(lambda kind, reply: " \n"), "empty reply"),
    "half": (
        first(lambda kind, reply: reply[: len(reply) * 3 // 5] if kind != "complex" else reply),
        "JSON broken or cut off",
    ),
    "endless after": (always(shouting), "reply too long"),
    "endless": (first(lambda kind, reply: '{"pairs": [' + '{"question": ["' * 200_000), "reply too long"),
    "deeply nested": (first(lambda kind, reply: "[" * 100_000), "reply too long"),
    "raised": (first(raising), "the language model raised ConnectionError"),
    "said twice": (always(twice_each), "question asked twice"),
    "other keys": (first(german), "JSON without the requested fields"),
    "invented": (always(invent), "pair not supported"),
    "unanswered": (always(unanswered), "no answer"),
    "copied": (
        first(lambda kind, reply: json.dumps({"paraphrase": TEXTS[0].upper()}) if kind == "paraphrase" else reply),
        "paraphrase copied",
    ),
    "rambled": (
        first(lambda kind, reply: json.dumps({"paraphrase": reply * 9}) if kind == "paraphrase" else reply),
        "paraphrase too long",
    ),
}


@pytest.mark.parametrize("name", MENDED)
def test_a_failure_that_passes_is_mended_and_counted(tmp_path, name):
    spoil, fault = MENDED[name]
    report = synthesize(TEXTS[:1], Teacher(spoil), tmp_path)
    assert whole(stage1(tmp_path), TEXTS[:1])
    assert (report.kept, report.dropped) == (1, {})
    if fault is None:
        assert report.faults == {}
    else:
        assert report.faults[fault] >= 1


def test_what_is_whole_of_a_reply_that_was_cut_off_is_used(tmp_path):
    def half(kind, number, reply):
        return reply[: len(reply) * 3 // 5] if kind in ("simple", "complex") and number == 0 else reply

    teacher = Teacher(half)
    report = synthesize(TEXTS[:1], teacher, tmp_path)
    assert (report.simple, report.complex) == (3, 1)
    assert "Earlier questions left facts of the passage out" in teacher.prompts[4][1]
    assert sum(report.faults.values()) == 2


def empty(kind_spoiled, reply_instead):
    return always(lambda kind, reply: reply_instead if kind == kind_spoiled else reply)


def forgetful(kind, reply):
    """Omits the last fact, even if the prompt names it."""
    return json.dumps({"pairs": json.loads(reply)["pairs"][:2]}) if kind == "simple" else reply


DROPPED = {
    "no usable question": empty("simple", "No."),
    "no usable reply about complex questions": empty("complex", '{"pairs": "none"}'),
    "no usable paraphrase": empty("paraphrase", '{"paraphrase": ""}'),
    "coverage was never verified": empty("verify", '{"missing": "nothing", "lost": [], "wrong": []}'),
    "facts still missing after the last round": empty("verify", '{"missing": [{"fact": "The date."}]}'),
}


@pytest.mark.parametrize("reason", DROPPED)
def test_a_passage_that_fails_to_the_end_is_dropped_and_counted(tmp_path, reason):
    hopeless = Teacher(DROPPED[reason])

    def llm(prompt):
        return hopeless(prompt) if passage_of(prompt) == TEXTS[1] else Teacher()(prompt)

    report = synthesize(TEXTS[:3], llm, tmp_path, max_rounds=4)
    assert whole(stage1(tmp_path), [TEXTS[0], TEXTS[2]])
    assert (report.passages, report.kept, report.dropped) == (3, 2, {reason: 1})
    assert f"dropped: 1 x {reason}" in str(report)
    assert max(hopeless.asked.values()) == 4


def test_missing_facts_are_asked_for_by_name_at_most_as_often_as_wanted(tmp_path):
    teacher = Teacher(always(forgetful))
    report = synthesize(TEXTS[:1], teacher, tmp_path)
    assert report.kept == 1  # requested alone, the third fact is among the first two
    again = [prompt for kind, prompt in teacher.prompts if kind == "simple"][1]
    assert '["The colour of Aln Bridge is dark green 0."]' in again

    stubborn = Teacher(lambda kind, number, reply: forgetful(kind, reply) if number == 0 else '{"pairs": []}')
    verify = Teacher()
    calls = lambda prompt: (verify if kind_of(prompt) == "verify" else stubborn)(prompt)  # noqa: E731
    report = synthesize(TEXTS[:1], calls, tmp_path / "stubborn")
    assert report.dropped == {"facts still missing after the last round": 1}
    assert verify.asked["verify", TEXTS[0]] == 10


def test_a_lost_fact_makes_the_paraphrase_be_asked_for_again(tmp_path):
    def short(kind, number, reply):
        return json.dumps({"paraphrase": "Ada Quill 0 and 1900."}) if kind == "paraphrase" and number == 0 else reply

    teacher = Teacher(short)
    synthesize(TEXTS[:1], teacher, tmp_path)
    assert whole(stage1(tmp_path), TEXTS[:1])
    again = [prompt for kind, prompt in teacher.prompts if kind == "paraphrase"][1]
    assert 'An earlier try left these out: ["The colour of Aln Bridge is dark green 0."]' in again


def test_a_passage_too_short_for_complex_questions_is_kept(tmp_path):
    text = "The founder of Aln Bridge is Ada Quill."
    report = synthesize([text], Teacher(), tmp_path)
    assert [(line.kind, len(line.questions)) for line in stage1(tmp_path)] == [("qa", 1), ("paraphrase", 0)]
    assert (report.kept, report.complex) == (1, 0)


def test_an_unsupported_pair_is_not_taken_a_second_time(tmp_path):
    def stubborn(kind, number, reply):
        wrong = {"question": "Who painted the door?", "answer": "Nobody knows"}
        if kind != "simple":
            return reply
        # The first time a fact is left out, so that there is a second request.
        pairs = json.loads(reply)["pairs"]
        return json.dumps({"pairs": [*(pairs[:-1] if number == 0 else pairs), wrong]})

    report = synthesize(TEXTS[:1], Teacher(stubborn), tmp_path)
    assert whole(stage1(tmp_path), TEXTS[:1])
    assert report.faults == {"pair not supported": 1, "unsupported pair again": 1}


# --- failing calls ---------------------------------------------------------------------------------------


def test_a_reply_that_does_not_come_is_waited_for_no_longer(tmp_path):
    never, teacher = threading.Event(), Teacher()

    def llm(prompt):
        if kind_of(prompt) == "complex" and not teacher.asked["complex", passage_of(prompt)]:
            teacher(prompt)
            never.wait(600)
        return teacher(prompt)

    report = synthesize(TEXTS[:1], llm, tmp_path, timeout=0.2)
    never.set()
    assert whole(stage1(tmp_path), TEXTS[:1])
    assert report.faults == {"no reply in time": 1}


def test_a_model_that_is_down_stops_the_run_and_nothing_is_lost(tmp_path):
    up = Teacher()

    def llm(prompt):
        if passage_of(prompt) in TEXTS[:2]:
            return up(prompt)
        raise ConnectionError("no route to host")

    with pytest.raises(LLMError, match="failed for 5 passages in a row, last with ConnectionError: no route to host"):
        synthesize(TEXTS, llm, tmp_path, concurrency=1)
    assert whole(stage1(tmp_path), TEXTS[:2])

    teacher = Teacher()
    report = synthesize(TEXTS, teacher, tmp_path)
    assert whole(stage1(tmp_path), TEXTS)
    assert (report.resumed, report.dropped) == (2, {})
    assert not {passage_of(prompt) for _, prompt in teacher.prompts} & set(TEXTS[:2])


def test_a_model_that_never_answers_is_an_error_however_few_the_passages(tmp_path):
    with pytest.raises(LLMError, match="failed for 1 passages in a row, last with ConnectionError: 429 slow down"):
        synthesize(TEXTS[:1], Teacher(always(raising)), tmp_path)


def test_one_passage_that_the_model_always_fails_for_stops_no_run(tmp_path):
    def llm(prompt):
        if passage_of(prompt) == TEXTS[0]:
            raise ValueError("blocked by the content filter")
        return Teacher()(prompt)

    for _ in range(2):
        report = synthesize(TEXTS[:3], llm, tmp_path)
        assert whole(stage1(tmp_path), TEXTS[1:3])
        assert report.dropped == {"the language model failed": 1}
        assert report.faults == {"the language model raised ValueError": 3}


@pytest.mark.parametrize("limit", [1, 3])
async def test_no_more_replies_are_awaited_at_a_time_than_wanted(tmp_path, limit):
    running, most, teacher = 0, 0, Teacher()

    async def llm(prompt):
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(5):
            await asyncio.sleep(0)
        running -= 1
        return teacher(prompt)

    await asynthesize(TEXTS, llm, tmp_path, concurrency=limit)
    assert most == limit


async def test_a_cancelled_run_keeps_what_is_done(tmp_path):
    async def llm(prompt):
        if passage_of(prompt) == TEXTS[3]:
            raise asyncio.CancelledError
        return Teacher()(prompt)

    with pytest.raises(asyncio.CancelledError):
        await asynthesize(TEXTS, llm, tmp_path, concurrency=1)
    assert whole(stage1(tmp_path), TEXTS[:3])
    assert (await asynthesize(TEXTS, Teacher(), tmp_path)).resumed == 3


def test_dropped_passages_are_tried_again_only_with_more_rounds(tmp_path):
    assert synthesize(TEXTS[:1], Teacher(DROPPED["coverage was never verified"]), tmp_path, max_rounds=2).kept == 0
    teacher = Teacher()
    assert synthesize(TEXTS[:1], teacher, tmp_path, max_rounds=2).kept == 0
    assert teacher.prompts == []
    assert synthesize(TEXTS[:1], teacher, tmp_path, max_rounds=3).kept == 1

"""An evaluation with a tiny engine: its results equal those of the engine, and none is lost."""

from __future__ import annotations

import asyncio
import json
import resource
import threading
from dataclasses import replace

import pytest
import torch

from clara_core import ClaraEngine, ClaraError, MemoryCache, RoleError
from clara_core.common.errors import DataError
from clara_core.data.examples import RetrievalLine
from clara_core.evaluation import (
    cover_match,
    evaluate,
    exact_match,
    f1,
    over_corpus,
    read_questions,
    recall_at_k,
    score_rankings,
)
from clara_core.evaluation.cost import align, mean_states, percentile
from clara_core.evaluation.rankings import with_gold
from clara_core.retrieval.bm25 import Bm25
from tests.engines import PASSAGES, Counter, open_engine
from tests.tiny import build

QUESTIONS = ("When was the bridge opened?", "Who sailed the Merganser?", "How high is it?", "What is made?", "Short?")
SHORT = {"max_tokens": 6, "timed": 0, "paraphrases": 0}


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> ClaraEngine:
    return open_engine(build(tmp_path_factory.mktemp("evaluation"), seed=5))


@pytest.fixture(scope="module")
def lines() -> list[RetrievalLine]:
    """Five questions with different candidates; the second has two gold passages, the last an answer of two names."""
    made = []
    for number, question in enumerate(QUESTIONS):
        docs = tuple(PASSAGES[(number + place) % len(PASSAGES)] for place in range(5))
        gold = (1, 3) if number == 1 else (4,)
        references = ("1907", "in 1907") if number == 4 else ("Ada Quill",)
        made.append(RetrievalLine(question, docs, references[0], references, gold, f"q.jsonl:{number + 1}"))
    return made


# --- results ---------------------------------------------------------------------------------------------


def test_rankings_and_answers_are_those_of_the_engine(engine, lines):
    report = evaluate(engine, lines, modes=("normal", "oracle"), top_k=2, batch=2, **SHORT)
    assert [outcome.question for outcome in report.questions] == list(QUESTIONS)
    for line, outcome in zip(lines, report.questions, strict=True):
        memories = engine.compress(line.docs)
        order = [one.index for one in engine.rank(line.question, memories)]
        assert list(outcome.rankings["memory"].top) == order
        assert outcome.rankings["memory"].gold_ranks == tuple(
            rank for rank, place in enumerate(order, start=1) if place in line.pos_index
        )
        assert list(outcome.rankings["bm25"].top) == Bm25(line.docs).rank([line.question])[0]
        normal, oracle = outcome.replies
        assert (normal.mode, oracle.mode) == ("normal", "oracle")
        assert list(normal.documents) == order[:2]
        assert list(oracle.documents) == with_gold(order, line.pos_index, 2)
        for reply in outcome.replies:
            read = [memories[place] for place in reply.documents]
            answer = engine.answer(line.question, read, max_tokens=6)
            assert reply.text == answer.text
            assert (reply.memory_tokens, reply.source_tokens) == (answer.memory_tokens, answer.source_tokens)
            measures = (exact_match, cover_match, f1)
            scores = tuple(measure(answer.text, line.references) for measure in measures)
            assert (reply.exact_match, reply.cover_match, reply.f1) == scores
        assert outcome.sizes.memory_bytes == sum(memory.nbytes for memory in memories)
        assert outcome.sizes.text_bytes == sum(len(text.encode()) for text in line.docs)
        assert outcome.sizes.text_tokens == sum(memory.source_tokens for memory in memories)


def test_figures_are_those_of_the_measures(engine, lines):
    report = evaluate(engine, lines, top_k=2, **SHORT)
    orders = [outcome.rankings["memory"].top for outcome in report.questions]
    golds = [line.pos_index for line in lines]
    assert report.metrics["retrieval"]["memory"] == score_rankings(orders, golds, ks=(1, 3, 5))
    orders = [outcome.rankings["bm25"].top for outcome in report.questions]
    assert report.metrics["retrieval"]["bm25"]["recall@3"] == pytest.approx(
        sum(recall_at_k(order, gold, 3) for order, gold in zip(orders, golds, strict=True)) / 5
    )
    said = report.metrics["answers"]["normal"]["memory"]
    assert said["f1"] == pytest.approx(sum(outcome.replies[0].f1 for outcome in report.questions) / 5)
    assert said["failed"] == 0
    sizes = [outcome.sizes for outcome in report.questions]
    assert report.metrics["size"]["memory_bytes"] == sum(one.memory_bytes for one in sizes) / 25


def test_gold_that_is_not_known_is_not_counted(engine, lines):
    unknown = [replace(line, pos_index=()) for line in lines]
    mixed = [*unknown[:2], *lines[2:]]
    metrics = evaluate(engine, mixed, **SHORT).metrics
    assert metrics["with_gold"] == 3
    assert metrics["retrieval"] == evaluate(engine, lines[2:], **SHORT).metrics["retrieval"]
    report = evaluate(engine, unknown, **SHORT)
    assert "retrieval" not in report.metrics
    assert "pos\\_index" in report.markdown() or "`pos_index`" in report.markdown()


@pytest.mark.parametrize("ranker", ["given", "bm25"])
def test_a_checkpoint_without_a_query_reasoner_reads_in_another_order(tmp_path, lines, ranker):
    engine = open_engine(build(tmp_path, roles=("encoder_adapter", "decoder_adapter")))
    with pytest.raises(RoleError, match="query reasoner"):
        evaluate(engine, lines, **SHORT)
    report = evaluate(engine, lines, ranker=ranker, top_k=3, max_tokens=4, timed=1, paraphrases=0)
    for line, outcome in zip(lines, report.questions, strict=True):
        order = list(range(5)) if ranker == "given" else Bm25(line.docs).rank([line.question])[0]
        assert list(outcome.replies[0].documents) == order[:3]
    assert set(report.metrics["retrieval"]) == {ranker, "bm25"}
    assert "rank" not in report.metrics["latency"]


def test_over_a_corpus_all_passages_are_candidates_of_all(engine, lines):
    whole = over_corpus(lines)
    assert {line.docs for line in whole} == {tuple(dict.fromkeys(text for line in lines for text in line.docs))}
    for before, after in zip(lines, whole, strict=True):
        assert [after.docs[place] for place in after.pos_index] == [before.docs[place] for place in before.pos_index]
    report = evaluate(engine, whole, **SHORT)
    memories = engine.compress(whole[0].docs)
    for line, outcome in zip(whole, report.questions, strict=True):
        assert list(outcome.rankings["memory"].top) == [one.index for one in engine.rank(line.question, memories)]


def test_a_corpus_that_no_cache_holds_is_compressed_once(engine, lines, monkeypatch):
    monkeypatch.setattr(engine, "cache", MemoryCache(max_bytes=0))
    with Counter(engine.load().model, "encode") as calls:
        evaluate(engine, over_corpus(lines), batch=1, **SHORT)
    assert calls.calls <= 1 + len(lines)  # all passages in one batch, and each question


def test_documents_that_do_not_fit_the_context_fail_alone(tmp_path, lines):
    engine = open_engine(build(tmp_path, seed=5))
    question = f"{lines[0].question} {'And why? ' * 100}"  # long documents are shortened, questions are not
    long = replace(lines[0], question=question, docs=(*lines[0].docs, " ".join(PASSAGES) * 4))
    engine.load().model.decoder.config.max_position_embeddings = 200
    report = evaluate(engine, [lines[1], long, lines[2]], ranker="given", top_k=6, max_tokens=2, timed=3, paraphrases=6)
    failed = [outcome.replies[0].failed for outcome in report.questions]
    assert [bool(reason) for reason in failed] == [False, True, False]
    assert "the context holds 200" in failed[1]
    said = report.metrics["answers"]["normal"]["memory"]
    assert said["failed"] == 1
    assert report.metrics["latency"]["questions"] == 2
    assert 0 < len(report.paraphrases) < 6  # the long one does not fit
    assert "the context" in report.markdown()


# --- the baseline ----------------------------------------------------------------------------------------


def test_a_text_llm_reads_the_same_documents_and_those_of_bm25(engine, lines):
    asked = []

    def llm(prompt: str) -> str:
        asked.append(prompt)
        return "Ada Quill"

    report = evaluate(engine, lines, top_k=1, text_llm=llm, max_tokens=4, timed=2, paraphrases=0)
    for line, outcome in zip(lines, report.questions, strict=True):
        memory, text, words = outcome.replies
        assert (memory.system, text.system, words.system) == ("memory", "text", "bm25_text")
        assert text.documents == memory.documents == outcome.rankings["memory"].top[:1]
        assert words.documents == outcome.rankings["bm25"].top[:1]
        for reply in (text, words):
            read = line.docs[reply.documents[0]]
            assert any(read in prompt and line.question in prompt for prompt in asked)
            assert (reply.text, reply.memory_tokens) == ("Ada Quill", 0)
    figures = report.metrics["answers"]["normal"]
    assert figures["text"]["exact_match"] == 4 / 5
    assert report.settings["text_llm"] == "llm"
    assert report.metrics["latency"]["text"]["p50"] >= 0


def test_models_of_langchain_and_llama_index_are_text_llms(engine, lines):
    from langchain_core.language_models import GenericFakeChatModel
    from langchain_core.messages import AIMessage
    from llama_index.core.llms import MockLLM

    chat = GenericFakeChatModel(messages=iter([AIMessage("1907")] * 10))
    for llm, said in ((chat, "1907"), (MockLLM(max_tokens=2), "text text")):
        report = evaluate(engine, lines[:2], text_llm=llm, bm25=False, **SHORT)
        assert [outcome.replies[1].text for outcome in report.questions] == [said] * 2


async def test_a_text_llm_in_a_running_loop_gets_so_many_prompts_at_a_time(engine, lines):
    both = threading.Barrier(2, timeout=120)

    def llm(prompt: str) -> str:
        both.wait()  # passes only if two questions are asked concurrently
        return "yes"

    report = evaluate(engine, lines[:2], text_llm=llm, bm25=False, batch=2, **SHORT)
    assert asyncio.get_running_loop().is_running()
    assert [outcome.replies[1].text for outcome in report.questions] == ["yes", "yes"]


def test_a_text_llm_that_fails_loses_nothing(engine, lines, tmp_path):
    broken = True

    def llm(prompt: str) -> str:
        if broken and QUESTIONS[3] in prompt:
            raise TimeoutError("no answer after 60 s")
        return prompt[-40:]

    options = {"text_llm": llm, "bm25": False, "batch": 2, "folder": tmp_path, **SHORT}
    with pytest.raises(ClaraError, match=r"q\.jsonl:4: the text LLM failed: TimeoutError: no answer after 60 s"):
        evaluate(engine, lines, **options)
    assert len((tmp_path / "questions.jsonl").read_text().splitlines()) == 2
    broken = False
    assert (
        evaluate(engine, lines, **options).questions == evaluate(engine, lines, **{**options, "folder": None}).questions
    )


# --- cost, memory beside text ----------------------------------------------------------------------------


def test_percentiles_are_nearest_ranks_in_milliseconds():
    seconds = [number / 1000 for number in range(20, 0, -1)]
    assert (percentile(seconds, 50), percentile(seconds, 95)) == (10, 19)
    assert percentile([0.5], 95) == 500


def test_latency_compresses_anew(engine, lines):
    engine.remember([text for line in lines for text in line.docs])
    with Counter(engine.load().model, "encode") as calls:
        report = evaluate(engine, lines[:1], max_tokens=2, timed=1, paraphrases=0)
    assert calls.calls >= 3  # the question twice, its candidates once, although all of them are in the cache
    latency = report.metrics["latency"]
    assert (latency["questions"], latency["passages"]) == (1, 5)
    for step in ("compress", "rank", "answer"):
        assert latency[step]["p95"] >= latency[step]["p50"] > 0


def test_mean_states_are_the_memory_and_the_rest(engine):
    memory, text = mean_states(engine, PASSAGES)
    for mean, passage in zip(memory, engine.compress(PASSAGES), strict=True):
        assert torch.allclose(mean, passage.tokens[0].mean(0), atol=1e-5)
    ids = engine.tokenizer.encode_passages(PASSAGES[2:3])
    with torch.inference_mode():
        from clara_core.model.checkpoint.config import Role

        states = engine.load().model.hidden_states(ids, Role.COMPRESSOR)[0]
    assert torch.allclose(text[2], states[: -engine.n_mem].mean(0), atol=1e-5)


def test_the_projection_keeps_what_two_dimensions_can(engine):
    points = align(engine, PASSAGES)
    memory, text = mean_states(engine, PASSAGES)
    assert points.mse == pytest.approx(float(((memory - text) ** 2).mean()))
    flat = torch.tensor(points.text + points.memory)
    assert torch.allclose(flat.mean(0), torch.zeros(2), atol=1e-4)
    both = torch.cat([text, memory])
    total = float((both - both.mean(0)).square().sum())
    assert float(flat.square().sum()) == pytest.approx(total * sum(points.explained), rel=1e-4)
    assert points.explained[0] >= points.explained[1] > 0
    with pytest.raises(ValueError, match="at least two"):
        align(engine, PASSAGES[:1])


def test_paraphrases_are_those_of_the_engine(engine, lines):
    report = evaluate(engine, lines, max_tokens=2, timed=0, paraphrases=3)
    assert len(report.paraphrases) == 3
    assert len({one.passage for one in report.paraphrases}) == 3
    for one in report.paraphrases:
        memory = engine.compress([one.passage])[0]
        assert one.again == engine.paraphrase(memory, max_tokens=max(32, int(memory.source_tokens * 1.5))).text
    assert report.metrics["paraphrase"]["passages"] == 3
    assert 0 <= report.metrics["paraphrase"]["rougeL"] <= 1


# --- a folder --------------------------------------------------------------------------------------------


def test_a_run_goes_on_after_its_last_whole_line(engine, lines, tmp_path):
    whole = evaluate(engine, lines, batch=2, folder=tmp_path, **SHORT)
    file = tmp_path / "questions.jsonl"
    written = file.read_bytes()
    second = written.index(b"\n", written.index(b"\n") + 1) + 1
    file.write_bytes(written[: second + 30])  # killed while writing the third line
    with Counter(engine.load().model, "prefill") as prompts:
        again = evaluate(engine, lines, batch=1, folder=tmp_path, **SHORT)
    assert prompts.calls == 3
    assert again.questions == whole.questions
    assert file.read_bytes() == written
    with Counter(engine.load().model, "prefill") as prompts:
        assert evaluate(engine, lines, folder=tmp_path, **SHORT).metrics == whole.metrics
    assert prompts.calls == 0


def test_fewer_questions_leave_what_was_asked_before(engine, lines, tmp_path):
    evaluate(engine, lines[:2], folder=tmp_path, **SHORT)
    evaluate(engine, lines, folder=tmp_path, **SHORT)
    report = evaluate(engine, lines[:3], folder=tmp_path, **SHORT)
    report.write(tmp_path)
    assert len(report.questions) == 3
    assert len((tmp_path / "questions.jsonl").read_text().splitlines()) == 5


def test_other_settings_and_other_data_are_refused(engine, lines, tmp_path):
    evaluate(engine, lines[:2], folder=tmp_path, **SHORT)
    before = (tmp_path / "questions.jsonl").read_bytes()
    with pytest.raises(ValueError, match="other settings: top_k was 5, is 3; choose another folder"):
        evaluate(engine, lines, top_k=3, folder=tmp_path, **SHORT)
    other = [lines[0], replace(lines[1], references=("another answer",)), *lines[2:]]
    with pytest.raises(ValueError, match=r"questions\.jsonl:2 is about another question than q\.jsonl:2"):
        evaluate(engine, other, folder=tmp_path, **SHORT)
    assert (tmp_path / "questions.jsonl").read_bytes() == before


@pytest.mark.parametrize("damage", [b"{}\n", b"no json\n", b"[1]\n", b'{"where": 1, "rankings": {}}\n', b"\xff\n"])
def test_a_damaged_line_is_named(engine, lines, tmp_path, damage):
    evaluate(engine, lines[:1], folder=tmp_path, **SHORT)
    with (tmp_path / "questions.jsonl").open("ab") as file:
        file.write(damage)
    with pytest.raises(DataError, match=r"questions\.jsonl:2: not an outcome.*delete this line"):
        evaluate(engine, lines, folder=tmp_path, **SHORT)


@pytest.mark.parametrize("damage", ["", "[]", '"x"', "{", "null"])
def test_damaged_settings_are_named(engine, lines, tmp_path, damage):
    (tmp_path / "run.json").write_text(damage)
    with pytest.raises(DataError, match=r"run\.json: not the settings of a run"):
        evaluate(engine, lines, folder=tmp_path, **SHORT)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_file_that_is_no_run_is_not_touched(engine, lines, tmp_path):
    (tmp_path / "questions.jsonl").write_text("mine\n")
    with pytest.raises(ValueError, match=r"questions\.jsonl but no run\.json"):
        evaluate(engine, lines, folder=tmp_path, **SHORT)
    assert (tmp_path / "questions.jsonl").read_text() == "mine\n"


def test_a_folder_that_cannot_be_is_named(engine, lines, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ClaraError, match=r"file/folder cannot be used for results: Not a directory"):
        evaluate(engine, lines, folder=tmp_path / "file" / "folder", **SHORT)


def test_a_full_disk_keeps_what_was_written(engine, lines, tmp_path):
    evaluate(engine, lines[:2], folder=tmp_path, **SHORT)
    kept = (tmp_path / "questions.jsonl").read_bytes()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) + 100, hard))  # room for a part of a line
    try:
        with pytest.raises(ClaraError, match=r"questions\.jsonl cannot be written: .*; 2 questions are kept there"):
            evaluate(engine, lines, folder=tmp_path, **SHORT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert len((tmp_path / "questions.jsonl").read_bytes()) == len(kept) + 100
    assert len(evaluate(engine, lines, folder=tmp_path, **SHORT).questions) == 5
    assert (tmp_path / "questions.jsonl").read_bytes().startswith(kept)


# --- the report ------------------------------------------------------------------------------------------


def test_the_report_is_a_folder(engine, lines, tmp_path):
    hostile = replace(lines[0], question="| <script> `x` ![a](b) **?**\n# y", references=("[gold](http://x)",))
    report = evaluate(engine, [hostile, *lines[1:]], max_tokens=6, timed=1, paraphrases=2)
    report.write(tmp_path / "deep" / "folder")
    folder = tmp_path / "deep" / "folder"
    assert sorted(path.name for path in folder.iterdir()) == [
        "memory.png", "metrics.json", "paraphrases.jsonl", "questions.jsonl", "recall.png", "report.md",
    ]  # fmt: skip
    facts = json.loads((folder / "metrics.json").read_text())
    assert {name: facts[name] for name in report.metrics} == json.loads(json.dumps(report.metrics))
    assert facts["recall_curves"]["memory"][2] == pytest.approx(facts["retrieval"]["memory"]["recall@3"])
    assert len(facts["recall_curves"]["memory"]) == 5
    written = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    assert [one["question"] for one in written] == [hostile.question, *QUESTIONS[1:]]
    again = [json.loads(line) for line in (folder / "paraphrases.jsonl").read_text().splitlines()]
    assert [one["passage"] for one in again] == [one.passage for one in report.paraphrases]
    for picture in ("memory.png", "recall.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    text = (folder / "report.md").read_text()
    assert "\\| \\<script\\> \\`x\\` \\!\\[a\\](b) \\*\\*?\\*\\* \\# y" in text
    assert all(line.count(" | ") < 12 for line in text.splitlines())
    recall = facts["retrieval"]["memory"]["recall@3"]
    assert f"| recall@3 | {recall:.3f} |" in text


def test_a_report_that_cannot_be_written_is_an_error(engine, lines, tmp_path):
    report = evaluate(engine, lines[:1], **SHORT)
    (tmp_path / "file").write_text("")
    with pytest.raises(ClaraError, match="cannot be written to"):
        report.write(tmp_path / "file")


# --- arguments -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, said",
    [
        ({"modes": ("normal", "best")}, "modes must be one of normal, oracle, got 'best'"),
        ({"modes": ()}, "modes is empty"),
        ({"ranker": "bge"}, "ranker must be one of memory, bm25, given, got 'bge'"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"timed": -1}, "timed must be at least 0, got -1"),
    ],
)
def test_wrong_arguments_are_found_first(engine, lines, options, said):
    with Counter(engine.load().model, "encode") as calls, pytest.raises(ValueError, match=said):
        evaluate(engine, lines, **options)
    assert calls.calls == 0


def test_questions_that_cannot_be_asked_are_named(engine, lines):
    with pytest.raises(ValueError, match="no question"):
        evaluate(engine, [])
    with pytest.raises(ValueError, match=r"q\.jsonl:3: 'oracle' needs the gold passages"):
        evaluate(engine, [*lines[:2], replace(lines[2], pos_index=())], modes=("oracle",))
    with pytest.raises(ValueError, match=r"q\.jsonl:1: a question needs candidates and gold answers"):
        evaluate(engine, [replace(lines[0], references=())])
    with pytest.raises(TypeError, match="must be a RetrievalLine, got dict"):
        evaluate(engine, [{"question": "?"}])
    with pytest.raises(TypeError, match="llm must be"):
        evaluate(engine, lines, text_llm=3)


def test_reading_a_file(tmp_path, lines):
    file = tmp_path / "q.jsonl"
    layouts = [
        {"question": "Q1", "docs": ["a", "b"], "gold_answer": "x", "pos_index": [1]},
        {"question": "Q2", "context": ["c"], "golden_answers": ["y", "z"]},
    ]
    file.write_text("".join(json.dumps(one) + "\n" for one in layouts) + "no json\n")
    first, second = read_questions(file, limit=2)
    assert (first.docs, first.references, first.pos_index) == (("a", "b"), ("x",), (1,))
    assert (second.docs, second.references, second.pos_index) == (("c",), ("y", "z"), ())
    with pytest.raises(DataError, match=rf"{file}:3: not valid JSON"):
        read_questions(file)
    file.write_text("\n")
    with pytest.raises(DataError, match="no question"):
        read_questions(file)

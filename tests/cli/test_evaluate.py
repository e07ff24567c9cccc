"""The command `clara eval`, with a trained model, a tiny one, and with invalid files."""

from __future__ import annotations

import json
import random
import sys

import pytest

from tests.engines import PASSAGES
from tests.tiny import build
from tools.pocket_factory.world import ENCYCLOPEDIA, make_corpus

FEW = ("--max-tokens", 4, "--timed", 0, "--paraphrases", 0)
GOOD = {"question": "Q?", "docs": ["a text", "another"], "answer": "x", "pos_index": [0]}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(build(tmp_path_factory.mktemp("cli")).folder)


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "questions.jsonl"
    lines = [
        {"question": f"What is number {number}?", "docs": list(PASSAGES), "answer": "1907", "pos_index": [number]}
        for number in range(3)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_a_trained_model_over_a_file(clara, tmp_path):
    corpus = make_corpus(
        random.Random(7), 20, split="test", words=(20, 60), questions_per_passage=1, two_passage=0.0, layout=0.0
    )
    file, out = tmp_path / "world.jsonl", tmp_path / "out"
    with file.open("w") as stream:
        for question in corpus.questions[:6]:
            docs = [passage.text for passage in corpus.passages[:10]]
            gold = [docs.index(corpus.passages[index].text) for index in question.gold if index < 10]
            line = {"question": question.text, "docs": docs, "gold_answer": question.answer, "pos_index": gold}
            stream.write(json.dumps(line) + "\n")
    options = ("--model", ENCYCLOPEDIA, "--device", "cpu", "--top-k", 3, "--timed", 2, "--paraphrases", 2)
    code, shown, err = clara("eval", file, *options, "--out", out, "--json")
    assert (code, err) == (0, "")
    facts = json.loads(shown)
    assert facts["settings"]["model"] == ENCYCLOPEDIA
    assert facts["questions"] == 6
    assert facts["retrieval"]["memory"]["recall@3"] >= 0.8
    assert facts["answers"]["normal"]["memory"]["f1"] > 0
    assert facts["answers"]["normal"]["memory"]["memory_tokens"] < facts["answers"]["normal"]["memory"]["source_tokens"]
    assert facts["latency"]["questions"] == 2
    assert facts["paraphrase"]["passages"] == 2
    written = json.loads((out / "metrics.json").read_text())
    assert {name: written[name] for name in facts} == facts
    assert sorted(path.name for path in out.iterdir()) == [
        "memory.png", "metrics.json", "paraphrases.jsonl", "questions.jsonl", "recall.png", "report.md", "run.json",
    ]  # fmt: skip


def test_tables_of_a_tiny_model(clara, data, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = tmp_path / "out"
    code, shown, _ = clara(
        "eval", data, "--model", tiny, "--mode", "normal", "--mode", "oracle", "--out", out, *FEW, "--top-k", 1
    )
    assert code == 0
    metrics = json.loads((out / "metrics.json").read_text())
    oracle = metrics["answers"]["oracle"]["memory"]
    assert f"oracle │ memory    │ {oracle['exact_match']:.3f}" in shown
    assert f"{metrics['retrieval']['bm25']['mrr']:.3f}" in shown
    assert str(out / "report.md") in shown
    for line in (out / "questions.jsonl").read_text().splitlines():
        outcome = json.loads(line)
        gold = {reply["mode"]: reply["documents"] for reply in outcome["replies"]}["oracle"]
        assert outcome["question"] == f"What is number {gold[0]}?"


def test_an_interrupted_run_goes_on(clara, data, tiny, tmp_path):
    options = ("eval", data, "--model", tiny, "--out", tmp_path / "out", "--json", *FEW)
    assert clara(*options, "--limit", 1)[0] == 0
    first = (tmp_path / "out" / "questions.jsonl").read_bytes()
    code, shown, _ = clara(*options)
    assert (code, json.loads(shown)["questions"]) == (0, 3)
    assert (tmp_path / "out" / "questions.jsonl").read_bytes().startswith(first)
    code, _, err = clara(*options, "--top-k", 2)
    assert (code, err.count("\n")) == (2, 1)
    assert "top_k was 5, is 2" in err


def test_over_the_corpus_of_the_file(clara, tiny, tmp_path):
    file = tmp_path / "q.jsonl"
    lines = [{**GOOD, "docs": [f"text {number}", f"text {number + 1}"]} for number in range(3)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out"
    assert clara("eval", file, "--model", tiny, "--corpus", "--no-bm25", "--out", out, *FEW)[0] == 0
    for line in (out / "questions.jsonl").read_text().splitlines():
        outcome = json.loads(line)
        assert sorted(outcome["rankings"]["memory"]["top"]) == [0, 1, 2, 3]
        assert set(outcome["rankings"]) == {"memory"}


@pytest.mark.parametrize(
    "line, said",
    [
        ("{broken", "not valid JSON"),
        ("[1]", "must be a JSON object"),
        (json.dumps({**GOOD, "docs": []}), "'docs' is an empty list"),
        (json.dumps({**GOOD, "pos_index": [2]}), "'pos_index' 2 is out of range: there are 2 candidates"),
        (json.dumps({"docs": ["a"], "answer": "x"}), "'question' is missing"),
        (json.dumps({"question": "Q", "docs": ["a"]}), "is missing"),
        (json.dumps({"question": "Q", "answer": "x"}), "is missing"),
    ],
)
def test_a_bad_line_is_named_before_anything_is_asked(clara, tiny, tmp_path, line, said):
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    code, out, err = clara("eval", file, "--model", tiny, "--out", tmp_path / "out", *FEW)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"clara: {file}:2: ")
    assert said in err
    assert not (tmp_path / "out").exists()


def test_without_a_model_the_bundled_one_answers(clara, data):
    code, shown, err = clara("eval", data, "--json", *FEW)
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith("clara: no --model: 'pocket' answers")
    assert json.loads(shown)["settings"]["model"] == "pocket"


def test_missing_files_models_and_roles(clara, data, tmp_path):
    no_reasoner = build(tmp_path / "model", roles=("encoder_adapter", "decoder_adapter")).folder
    clara("eval", tmp_path / "none.jsonl")  # output while the checkpoint was built
    code, _, err = clara("eval", tmp_path / "none.jsonl", "--model", "pocket")
    assert (code, err.count("\n")) == (2, 1)
    assert "none.jsonl" in err
    code, _, err = clara("eval", data, "--model", tmp_path / "none")
    assert (code, err.count("\n")) == (2, 1)
    code, _, err = clara("eval", data, "--model", no_reasoner, *FEW)
    assert (code, err.count("\n")) == (2, 1)
    assert "no query reasoner" in err
    assert clara("eval", data, "--model", no_reasoner, "--ranker", "given", *FEW)[0] == 0


def test_a_text_llm_of_a_file(clara, data, tiny, tmp_path):
    (tmp_path / "mine.py").write_text("def reads(prompt):\n    return '1907' if 'opened in 1907' in prompt else '?'\n")
    spec = f"python:{tmp_path / 'mine.py'}:reads"
    code, shown, _ = clara("eval", data, "--model", tiny, "--text-llm", spec, "--json", *FEW)
    facts = json.loads(shown)
    assert code == 0
    assert facts["answers"]["normal"].keys() == {"memory", "text", "bm25_text"}
    assert facts["answers"]["normal"]["text"]["exact_match"] > 0
    assert facts["settings"]["text_llm"] == spec
    code, _, err = clara("eval", data, "--model", tiny, "--text-llm", "gpt", *FEW)
    assert (code, err.count("\n")) == (2, 1)
    assert "openai:MODEL" in err


@pytest.mark.parametrize("package", ["matplotlib.figure", "sacrebleu.metrics.bleu"])
def test_a_missing_package_is_one_line_before_the_work(clara, data, tiny, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = clara("eval", data, "--model", tiny, "--out", tmp_path / "out", *FEW)
    assert (code, err.count("\n")) == (2, 1)
    assert "pip install 'clara-rag[train]'" in err
    assert not (tmp_path / "out").exists()


def test_trust_is_measured_beside_the_rest(clara, tmp_path):
    corpus = make_corpus(random.Random(9), 8, split="test", words=(20, 60), questions_per_passage=1, two_passage=0.0)
    texts = [passage.text for passage in corpus.passages]
    file = tmp_path / "world.jsonl"
    lines = [
        {"question": asked.text, "docs": texts, "gold_answer": asked.answer, "pos_index": list(asked.gold)}
        for asked in corpus.questions
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ("--top-k", 3, "--timed", 0, "--paraphrases", 0, "--no-bm25", "--model", ENCYCLOPEDIA)
    code, shown, err = clara("eval", file, *options, "--trust", "--json")
    assert code == 0, err
    trust = json.loads(shown)["trust"]
    assert trust["questions"] == 8
    assert trust["citations"] >= trust["first_ranked"] - 0.5
    assert set(trust["confidence"]) >= {"auroc", "ece", "brier", "aurc", "augrc", "coverage@2%"}
    assert 0 <= trust["again"]["exact_match"] <= 1
    code, shown, _ = clara("eval", file, *options, "--trust")
    assert code == 0
    assert "answers that pass all checks" in shown
    code, shown, _ = clara("eval", file, *options, "--json")
    assert "trust" not in json.loads(shown)

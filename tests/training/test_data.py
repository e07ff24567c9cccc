"""Training sets in the published formats: reading, refusals and their messages, writing."""

from __future__ import annotations

import gzip
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_core.common.errors import DataError
from clara_core.data.examples import line_object
from clara_core.data.jsonl import (
    STAGES,
    CompressionLine,
    InstructionLine,
    LineWriter,
    RetrievalLine,
    TrainingSet,
    check_line,
    read_lines,
    write_lines,
)

QA = {
    "data_type": "qa",
    "question": ["Where?", "When?"],
    "answers": ["In Aln.", "1907"],
    "docs": ["Opened in Aln, 1907."],
}
PARAPHRASE = {"data_type": "paraphrase", "question": [], "answers": ["It opened in 1907."], "docs": ["Opened in 1907."]}
INSTRUCTION = {"question": "When?", "docs": ["One.", "Two."], "answer": "1907"}
RETRIEVAL = {"question": "When?", "docs": ["One.", "Two.", "Three."], "gold_answer": "1907", "pos_index": [1]}
GOOD = {"stage1": QA, "stage1_2": INSTRUCTION, "contrastive": RETRIEVAL, "stage2": RETRIEVAL}


def write(path, *lines):
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return path


# --- reading ---------------------------------------------------------------------------------------------


def test_each_stage_reads_its_layout(tmp_path):
    first, second = read_lines(write(tmp_path / "a.jsonl", QA, PARAPHRASE), "stage1")
    assert first == CompressionLine("qa", ("Where?", "When?"), ("In Aln.", "1907"), ("Opened in Aln, 1907.",))
    assert second == CompressionLine("paraphrase", (), ("It opened in 1907.",), ("Opened in 1907.",))
    assert list(read_lines(write(tmp_path / "b.jsonl", INSTRUCTION), "stage1_2")) == [
        InstructionLine("When?", ("One.", "Two."), "1907", ("1907",))
    ]
    for stage in ("contrastive", "stage2"):
        assert list(read_lines(write(tmp_path / "c.jsonl", RETRIEVAL), stage)) == [
            RetrievalLine("When?", ("One.", "Two.", "Three."), "1907", ("1907",), (1,))
        ]


def test_lines_know_their_place_past_blank_lines_and_a_byte_order_mark(tmp_path):
    path = write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + json.dumps(INSTRUCTION).encode(), b"", b"  ", INSTRUCTION)
    assert [line.where for line in read_lines(path, "stage1_2")] == [f"{path}:1", f"{path}:4"]
    assert [line.where for line in TrainingSet(path, "stage1_2")] == [f"{path}:1", f"{path}:4"]


@pytest.mark.parametrize("name", ["docs", "context", "content"])
def test_names_of_the_documents(name):
    assert check_line({"question": "Q", name: ["D"], "answer": "A"}, "stage1_2", "x").docs == ("D",)


def test_of_several_answers_the_published_order_says_which_is_learned():
    found = {"question": "Q", "docs": ["D"], "gold_answer": "gold", "golden_answers": ["one", "two"], "pos_index": 0}
    line = check_line(found, "stage2", "x")
    assert (line.answer, line.references, line.pos_index) == ("one", ("one", "two", "gold"), (0,))
    line = check_line({**found, "answer": "said"}, "stage1_2", "x")
    assert (line.answer, line.references) == ("said", ("said", "one", "two", "gold"))


def test_fields_that_a_stage_can_do_without():
    assert check_line({"question": "Q", "docs": ["D"], "pos_index": [0]}, "contrastive", "x").answer == ""
    assert check_line({"question": "Q", "docs": ["D"], "answer": "A"}, "stage2", "x").pos_index == ()
    assert check_line({"question": "Q", "docs": ["D"], "answer": "A", "pos_index": None}, "stage2", "x").pos_index == ()
    assert check_line({"question": ["Q"], "answers": ["A"], "docs": ["D"]}, "stage1", "x").kind == "qa"


def test_parquet_and_gzip_hold_the_same_lines(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    lines = [{**RETRIEVAL, "question": f"Question {number}?"} for number in range(5)]
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    pa.parquet.write_table(pa.Table.from_pylist(lines), tmp_path / "a.parquet")
    plain = list(TrainingSet(write(tmp_path / "a.jsonl", *lines), "stage2"))
    assert [line.question for line in plain] == [line["question"] for line in lines]
    assert list(TrainingSet(packed, "stage2")) == list(TrainingSet(tmp_path / "a.parquet", "stage2")) == plain


def test_a_set_of_several_files_is_one_sequence(tmp_path):
    write(tmp_path / "a.jsonl", *({**INSTRUCTION, "answer": str(number)} for number in range(3)))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps({**INSTRUCTION, "answer": "3"}).encode()))
    lines = TrainingSet([tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"], "stage1_2")
    assert [line.answer for line in lines] == ["0", "1", "2", "3"]
    assert [line.answer for line in lines[1:]] == ["1", "2", "3"]
    assert (lines[-1].answer, lines[-4].answer, len(lines)) == ("3", "0", 4)
    for index in (4, -5):
        with pytest.raises(IndexError, match=f"line {index} of 4"):
            lines[index]


def test_a_set_is_read_by_several_threads_at_once(tmp_path):
    path = write(tmp_path / "a.jsonl", *({**INSTRUCTION, "answer": str(number) * 50} for number in range(200)))
    lines = TrainingSet(path, "stage1_2")
    wrong = []

    def read():
        wrong.extend(number for number in range(200) if lines[number].answer != str(number) * 50)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_only_offsets_of_a_plain_file_are_kept(tmp_path):
    path = write(tmp_path / "a.jsonl", *({**INSTRUCTION, "answer": "long " * 1000} for _ in range(100)))
    import pickle

    assert len(pickle.dumps(TrainingSet(path, "stage1_2"))) < 5_000 < path.stat().st_size / 100


# --- refusals --------------------------------------------------------------------------------------------

WRONG = [
    ("stage1", {**QA, "docs": []}, "'docs' is an empty list"),
    ("stage1", {**QA, "docs": "text"}, "'docs' must be a list of texts, got str 'text'"),
    ("stage1", {**QA, "docs": [None]}, r"'docs\[0\]' must be a text, got NoneType None"),
    ("stage1", {**QA, "answers": ["one"]}, "2 questions but 1 answers"),
    ("stage1", {**QA, "answers": ["one", " \n"]}, r"'answers\[1\]' is empty"),
    ("stage1", {**QA, "data_type": "chat"}, "'data_type' must be 'qa' or 'paraphrase', got str 'chat'"),
    ("stage1", {**PARAPHRASE, "answers": ["one", "two"]}, "exactly one answer, got 2"),
    ("stage1", {"question": ["Q"], "docs": ["D"]}, "'answers' or .* is missing; the line has 'question', 'docs'"),
    ("stage1_2", {}, "'docs' or 'context' or 'content' is missing; the line has no fields"),
    ("stage1_2", {**INSTRUCTION, "question": None}, "'question' is missing"),
    ("stage1_2", {**INSTRUCTION, "question": ["a", "b"]}, "'question' must be one text, got 2"),
    ("stage1_2", {**INSTRUCTION, "answer": ""}, "'answer' is empty"),
    ("stage1_2", {**INSTRUCTION, "answer": 7}, "'answer' must be a text, got int 7"),
    ("stage1_2", {**INSTRUCTION, "answer": "\ud83d"}, "'answer' holds half a surrogate pair"),
    ("stage2", {**RETRIEVAL, "docs": ["One.", ""]}, r"'docs\[1\]' is empty"),
    ("stage2", {**RETRIEVAL, "pos_index": [3]}, "'pos_index' 3 is out of range: there are 3 candidates"),
    ("stage2", {**RETRIEVAL, "pos_index": [-1]}, "'pos_index' -1 is out of range"),
    ("stage2", {**RETRIEVAL, "pos_index": [True]}, "whole numbers, got bool True"),
    ("stage2", {**RETRIEVAL, "pos_index": ["0"]}, "whole numbers, got str '0'"),
    ("stage2", {"question": "Q", "docs": ["D"], "pos_index": [0]}, "'answer' or .* is missing"),
    ("contrastive", {**RETRIEVAL, "pos_index": []}, "'pos_index' is missing or empty"),
    ("contrastive", {**RETRIEVAL, "gold_answer": []}, "'gold_answer' is an empty list"),
]


@pytest.mark.parametrize("stage, line, message", WRONG)
def test_a_wrong_line_is_refused_by_file_and_line(tmp_path, stage, line, message):
    path = write(tmp_path / "a.jsonl", GOOD[stage], line)
    for read in (lambda: list(read_lines(path, stage)), lambda: TrainingSet(path, stage)):
        with pytest.raises(DataError, match=message) as caught:
            read()
        assert str(caught.value).startswith(f"{path}:2: ")


@pytest.mark.parametrize(
    "raw, message",
    [
        (b"{not json}", "not valid JSON: Expecting property name"),
        (b"[1, 2]", r"must be a JSON object, got list \[1, 2\]"),
        (b'"text"', "must be a JSON object"),
        (b'{"question": "\xff"}', r"not UTF-8 \(byte 14 of the line\)"),
        (b"[" * 200_000, "not valid JSON"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        (b'{"question": "Q", "docs": NaN}', "'docs' must be a list of texts, got float nan"),
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path, raw, message):
    path = write(tmp_path / "a.jsonl", INSTRUCTION, raw, INSTRUCTION)
    with pytest.raises(DataError, match=message) as caught:
        list(read_lines(path, "stage1_2"))
    assert str(caught.value).startswith(f"{path}:2: ")


def test_a_half_line_at_the_end_is_called_what_it_is(tmp_path):
    path = write(tmp_path / "a.jsonl", INSTRUCTION)
    path.write_bytes(path.read_bytes() + b'{"question": "Wh')
    with pytest.raises(DataError, match=r":2: not valid JSON: .* the line has no line break: was the file cut off\?"):
        TrainingSet(path, "stage1_2")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"none.jsonl:1: the file cannot be read any further: No such file"):
        TrainingSet(tmp_path / "none.jsonl", "stage2")
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(os.urandom(2000).hex().encode())[:-700])
    with pytest.raises(DataError, match=r"a.jsonl.gz:1: the file cannot be read any further: Compressed file ended"):
        TrainingSet(packed, "stage2")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no parquet PAR1")
    with pytest.raises(DataError, match=r"a.parquet:1: the file cannot be read any further"):
        TrainingSet(tmp_path / "a.parquet", "stage2")
    with pytest.raises(DataError, match=r"a.csv: a data file must be one of .jsonl, .jsonl.gz, .parquet"):
        TrainingSet(tmp_path / "a.csv", "stage2")


def test_no_stage_and_no_line(tmp_path):
    with pytest.raises(ValueError, match="stage must be one of stage1, stage1_2, contrastive, stage2, got 'stage3'"):
        list(read_lines(tmp_path / "a.jsonl", "stage3"))
    with pytest.raises(ValueError, match=r"no line in .*a.jsonl"):
        TrainingSet(write(tmp_path / "a.jsonl", b""), "stage2")


# --- writing ---------------------------------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)
texts = st.lists(text, min_size=1, max_size=3, unique=True).map(tuple)


@st.composite
def lines(draw):
    stage, docs, references = draw(st.sampled_from(STAGES)), draw(texts), draw(texts)
    if stage == "stage1":
        kind = draw(st.sampled_from(["qa", "paraphrase"]))
        answers = references if kind == "qa" else references[:1]
        questions = tuple(draw(text) for _ in answers) if kind == "qa" else ()
        return stage, CompressionLine(kind, questions, answers, docs)
    if stage == "stage1_2":
        return stage, InstructionLine(draw(text), docs, references[0], references)
    positives = tuple(draw(st.lists(st.integers(0, len(docs) - 1), min_size=1, unique=True)))
    return stage, RetrievalLine(draw(text), docs, references[0], references, positives)


@given(lines())
def test_a_line_comes_back_as_it_was_written(tmp_path_factory, drawn):
    stage, line = drawn
    assert check_line(json.loads(json.dumps(line_object(line))), stage, "x") == line
    path = tmp_path_factory.getbasetemp() / "back.jsonl"
    assert write_lines(path, [line, line]) == 2
    assert list(TrainingSet(path, stage)) == [line, line]


@contextmanager
def full_disk(limit):
    """Limits the size of the files that this process writes, which has the effect of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_file_is_written_whole_or_not_at_all(tmp_path, name):
    path = tmp_path / "made" / name
    assert write_lines(path, [INSTRUCTION]) == 1
    before = path.read_bytes()

    def failing():
        yield INSTRUCTION
        raise RuntimeError("the source failed")

    with pytest.raises(RuntimeError, match="the source failed"):
        write_lines(path, failing())
    with (
        pytest.raises(DataError, match="cannot be written: File too large; its earlier content is unchanged"),
        full_disk(500),
    ):
        write_lines(path, ({"noise": os.urandom(100).hex()} for _ in range(500)))
    assert path.read_bytes() == before
    assert [left.name for left in path.parent.iterdir()] == [name]


def test_a_full_disk_leaves_whole_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    with LineWriter(path) as writer:
        writer.write({"n": 1})
        with pytest.raises(DataError, match="cannot be written: File too large"), full_disk(30):
            writer.write({"n": "x" * 100})
        writer.write({"n": 2})
    assert path.read_text() == '{"n": 1}\n{"n": 2}\n'


@pytest.mark.parametrize("tail", [b"", b'{"n": 2', b"\xff" * 200_000])
def test_a_line_that_a_killed_writer_left_half_is_cut_off(tmp_path, tail):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 1}\n' + tail)
    with LineWriter(path) as writer:
        writer.write({"n": 3})
    assert path.read_bytes() == b'{"n": 1}\n{"n": 3}\n'


def test_lines_of_a_killed_writer_are_there(tmp_path):
    path = tmp_path / "a.jsonl"
    code = (
        "import sys\nfrom clara_core.data.jsonl import LineWriter\nwriter = LineWriter(sys.argv[1])\n"
        "for n in range(10**9):\n    writer.write({'n': n, 'pad': 'x' * 5000})\n    print(n, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as process:
        acknowledged = [int(process.stdout.readline()) for _ in range(20)][-1]
        process.kill()
    LineWriter(path).close()
    numbers = [json.loads(line)["n"] for line in path.read_bytes().splitlines()]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > acknowledged


def test_writers_refuse_what_they_cannot_write(tmp_path):
    with pytest.raises(DataError, match=r"parquet files cannot be written"):
        write_lines(tmp_path / "a.parquet", [])
    with pytest.raises(DataError, match=r"lines can only be appended to a .jsonl file"):
        LineWriter(tmp_path / "a.jsonl.gz")
    (tmp_path / "a.jsonl").mkdir()
    for write_there in (lambda: LineWriter(tmp_path / "a.jsonl"), lambda: write_lines(tmp_path / "a.jsonl", [])):
        with pytest.raises(DataError, match=r"a.jsonl: cannot be written: Is a directory"):
            write_there()


def test_reading_needs_no_torch():
    code = "import sys, clara_core.data.jsonl; sys.exit('torch' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""A dataset is always split in the same way, and its shards contain each row once and in order."""

from __future__ import annotations

import json
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clara_core.common.errors import DataError
from clara_core.store.bulk import shards
from clara_core.store.bulk.shards import Columns, Rows, plan_shards, read_shard

ROWS = [
    {
        "id": f"r{number}",
        "text": f"Passage {number} 富士山\u2028 'q' \"d\"",
        "year": 1900 + number,
        "tags": ["a", {"b": None}],
    }
    for number in range(57)
]
COLUMNS = Columns(id="id")


def written(folder, kind):
    """`ROWS` in two files of a format (or one Lance dataset)."""
    source = folder / ("data.lance" if kind == "lance" else "data")
    table = pa.Table.from_pylist([{**row, "tags": row["tags"][:1]} for row in ROWS])
    if kind == "lance":
        lance = pytest.importorskip("lance")
        lance.write_dataset(table, str(source))
        return str(source)
    source.mkdir()
    (source / "_temporary").mkdir()
    for name, part in (("a", slice(0, 40)), ("b", slice(40, 57))):
        if kind == "parquet":
            pq.write_table(table[part.start : part.stop], source / f"{name}.parquet", row_group_size=7)
        else:
            lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS[part])
            (source / f"{name}.jsonl").write_text(lines + ("\n" if name == "a" else ""), encoding="utf-8")
    (source / "_temporary" / "c.jsonl").write_text("not finished")
    (source / "README.md").write_text("no data")
    return str(source)


def joined(parts):
    parts = list(parts)
    columns = zip(*parts, strict=True)
    return Rows(*(None if column[0] is None else list(chain.from_iterable(column)) for column in columns))


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "lance"])
@pytest.mark.parametrize("rows", [1, 10, 1000])
def test_shards_are_the_dataset(kind, rows, tmp_path):
    source = written(tmp_path, kind)
    planned = plan_shards(source, rows)
    assert planned == plan_shards(source, rows)
    assert len({shard.name for shard in planned}) == len(planned)
    assert sum(shard.rows for shard in planned) == len(ROWS)
    read = [list(read_shard(source, shard, COLUMNS)) for shard in planned]
    assert [sum(len(part.texts) for part in parts) for parts in read] == [shard.rows for shard in planned]
    found = joined(part for parts in read for part in parts)
    assert found.ids == [row["id"] for row in ROWS]
    assert found.texts == [row["text"] for row in ROWS]
    tags = ROWS[0]["tags"] if kind == "jsonl" else ROWS[0]["tags"][:1]
    assert found.metadatas == [{"year": row["year"], "tags": tags} for row in ROWS]
    if rows == 1000:
        assert len(planned) == (1 if kind == "lance" else 2)  # a shard belongs to one file
    if rows == 10 and kind == "parquet":
        assert [shard.rows for shard in planned] == [14, 14, 12, 14, 3]  # row groups of seven are not split


@given(lines=st.lists(st.binary(max_size=6).filter(lambda line: b"\n" not in line)), rows=st.integers(1, 5))
def test_lines_are_cut_at_their_ends(lines, rows, tmp_path_factory, monkeypatch_session):
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    path.write_bytes(b"\n".join(lines))
    cut = plan_shards(str(path), rows)
    content = path.read_bytes()
    assert b"".join(content[shard.start : shard.stop] for shard in cut) == content
    for shard in cut:
        part = content[shard.start : shard.stop]
        assert part.count(b"\n") + (not part.endswith(b"\n")) == shard.rows
    assert all(shard.rows == rows for shard in cut[:-1])


@pytest.fixture(scope="module")
def monkeypatch_session():
    """Sets blocks of a few bytes, so that lines cross their boundaries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_READ", 5)
        yield


def test_lines_across_blocks_are_whole(tmp_path, monkeypatch_session):
    source = written(tmp_path, "jsonl")
    found = joined(part for shard in plan_shards(source, 10) for part in read_shard(source, shard, COLUMNS))
    assert found.texts == [row["text"] for row in ROWS]


@pytest.mark.parametrize(
    "metadata, expected",
    [
        ({"a": 1, "b": [None, "x"]}, {"a": 1, "b": [None, "x"]}),
        ('{"a": {"b": true}}', {"a": {"b": True}}),
        (None, {}),
    ],
)
def test_a_column_named_metadata_is_the_metadata(metadata, expected):
    batch = pa.RecordBatch.from_pylist([{"text": "t", "id": "1", "metadata": metadata, "other": 3}])
    assert Columns(id="id").rows(batch) == Rows(["t"], ["1"], [expected])
    assert Columns().rows(batch) == Rows(["t"], None, [expected])
    assert Columns(metadata=("other",)).rows(batch).metadatas == [{"other": 3}]
    assert Columns(metadata=()).rows(batch).metadatas == [{}]


def test_a_map_is_metadata():
    array = pa.array([[("k", "v")]], pa.map_(pa.string(), pa.string()))
    batch = pa.RecordBatch.from_arrays([pa.array(["t"]), array], names=["text", "metadata"])
    assert Columns().rows(batch).metadatas == [{"k": "v"}]


def test_lines_need_not_have_the_same_keys():
    found = Columns(id="id").objects([{"id": "1", "text": "a", "x": 1}, {"id": "2", "text": "b", "y": [2]}])
    assert found == Rows(["a", "b"], ["1", "2"], [{"x": 1}, {"y": [2]}])


def test_what_is_wrong_with_a_dataset_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no dataset at"):
        plan_shards(str(tmp_path / "nothing"), 10)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"no file of a known kind; give a dataset of one of .parquet"):
        plan_shards(str(tmp_path), 10)
    line = tmp_path / "a.jsonl"
    line.write_text('{"text": "a"}\n[1]\n')
    [shard] = plan_shards(str(line), 10)
    with pytest.raises(DataError, match=r"a\.jsonl: a line must be a JSON object, got b'\[1\]'"):
        list(read_shard(str(line), shard, Columns()))
    line.write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(DataError, match="has changed"):
        list(read_shard(str(line), shard, Columns()))
    [shard] = plan_shards(str(line), 10)
    with pytest.raises(DataError, match="a line is not JSON"):
        list(read_shard(str(line), shard, Columns()))
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"several kinds \(jsonl, parquet\)"):
        plan_shards(str(tmp_path), 10)
    with pytest.raises(ValueError, match="at least one row, got 0"):
        plan_shards(str(line), 0)


def test_what_is_wrong_with_a_row_is_said():
    batch = pa.RecordBatch.from_pylist([{"text": "a", "n": 1}])
    with pytest.raises(ValueError, match=r"columns \['id'\] are not among \['text', 'n'\]; name yours with"):
        Columns(id="id").rows(batch)
    with pytest.raises(DataError, match="column 'n' must hold strings, got 1"):
        Columns(text="n").rows(batch)
    with pytest.raises(DataError, match="not JSON"):
        Columns().objects([{"text": "a", "metadata": "{"}])
    with pytest.raises(DataError, match="must hold objects"):
        Columns().objects([{"text": "a", "metadata": "[1]"}])

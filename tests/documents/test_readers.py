"""Reading files of many kinds: their text, and the messages about files that cannot be read."""

from __future__ import annotations

import builtins
import io
import json
import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_core.data import documents, readers
from clara_core.data.documents import LeftOut, cut_passages, group_left_out, read_folder
from clara_core.data.readers import Unreadable, read_content

WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
RELATIONS = "http://schemas.openxmlformats.org/package/2006/relationships"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def pdf(*pages: str) -> bytes:
    """A PDF with one line of text on each page, written by hand."""
    numbers = [4 + 2 * index for index in range(len(pages))]
    kids = " ".join(f"{number} 0 R" for number in numbers)
    objects = {
        1: "<< /Type /Catalog /Pages 2 0 R >>",
        2: f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        3: "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    }
    for number, text in zip(numbers, pages, strict=True):
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
        objects[number] = (
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {number + 1} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects[number + 1] = f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream"
    out, places = "%PDF-1.4\n", []
    for number, content in sorted(objects.items()):
        places.append(len(out))
        out += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    size = len(objects) + 1
    out += f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer << /Size {size} /Root 1 0 R >>\n"
    return f"{out}startxref\n{out.index('xref')}\n%%EOF".encode("latin-1")


def docx(*paragraphs: tuple[str, str]) -> bytes:
    """A Word document with paragraphs and their styles."""
    body = "".join(
        f'<w:p><w:pPr><w:pStyle w:val="{style}"/></w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>'
        for style, text in paragraphs
    )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        relation = f'<Relationship Id="r" Type="{OFFICE}/officeDocument" Target="word/document.xml"/>'
        packed.writestr("_rels/.rels", f'<Relationships xmlns="{RELATIONS}">{relation}</Relationships>')
        packed.writestr("word/document.xml", f'<w:document xmlns:w="{WORD}"><w:body>{body}</w:body></w:document>')
    return out.getvalue()


PAGE = """<html><head><meta charset="iso-8859-1"><title>The caf\u00e9</title><style>p { color: red }</style></head>
<body><script>steal()</script><h1>Opening</h1><p>We <b>open</b> at <a href="https://x.example">nine</a>,
file_name *1*.</p>
<h2>Prices</h2><table><tr><td>tea</td><td>2.50</td></tr><tr><td>cake</td><td>3.00</td></tr></table></body></html>"""


def text_of(name: str, data: bytes | str) -> str:
    return read_content(name, data.encode() if isinstance(data, str) else data).text


# -- kinds -----------------------------------------------------------------------------------------


def test_a_page_becomes_markdown_without_what_is_not_shown():
    text = text_of("page.html", PAGE.encode("iso-8859-1"))
    assert text.startswith("# Opening\n\nWe open at nine,\nfile_name *1*.\n\n## Prices\n\n")
    assert "| tea | 2.50 |" in text
    assert "| cake | 3.00 |" in text
    assert not any(word in text for word in ("steal", "color", "x.example"))
    titled = text_of("page.HTM", PAGE.replace("h1", "h3").encode("iso-8859-1"))
    assert titled.startswith("# The caf\u00e9\n\n### Opening")


def test_a_word_document_keeps_its_headings():
    text = text_of("rules.docx", docx(("Heading1", "Rules"), ("Normal", "It costs 35 pounds."), ("Heading2", "Pay")))
    assert text == "# Rules\n\nIt costs 35 pounds.\n\n## Pay"


def test_the_pages_of_a_pdf():
    assert text_of("a.pdf", pdf("High tide is at 14:20.", "Low tide is at 8:05.")) == (
        "High tide is at 14:20.\n\nLow tide is at 8:05."
    )


@pytest.mark.parametrize(
    "text",
    [
        'item;price;note\nrope;4.50;"by the metre; blue"\n;;\nanchor;120.00;\n',
        "item\tprice\tnote\nrope\t4.50\tby the metre; blue\nanchor\t120.00\t\n",
        "\ufeffitem,price,note\r\nrope,4.50,by the metre; blue\r\nanchor,120.00\r\n",
    ],
)
def test_each_row_is_a_record_with_the_names_of_its_columns(text):
    content = read_content("prices.csv", text.encode())
    assert content.text == "item: rope\nprice: 4.50\nnote: by the metre; blue\n\nitem: anchor\nprice: 120.00"
    assert [content.text[start:].split("\n")[0] for start in content.starts] == ["item: rope", "item: anchor"]


def test_cells_beyond_the_header_and_a_header_alone():
    assert text_of("a.csv", "a,b\n1,2,3\n") == "a: 1\nb: 2\ncolumn 3: 3"
    assert text_of("a.csv", "a,b\n") == "a, b"
    assert text_of("a.csv", "\n\n") == ""


def test_objects_are_written_with_the_names_that_lead_to_a_value():
    said = '[{"name": "Ada", "boats": ["Wren", "Tern"], "age": 51, "none": null}, {"pay": {"euro": 1.10, "due": true}}]'
    content = read_content("crew.json", said.encode())
    assert content.text == "name: Ada\nboats: Wren, Tern\nage: 51\n\npay.euro: 1.10\npay.due: true"
    assert len(content.starts) == 2
    assert text_of("one.json", '{"rows": [{"a": 1e400}, {"a": 12345678901234567890}], "t": "x\\ny"}') == (
        "rows.1.a: 1e400\nrows.2.a: 12345678901234567890\nt: x\ny"
    )
    assert text_of("plain.json", '"hello"') == "hello"


def test_lines_that_are_not_json_are_numbered():
    content = read_content("log.jsonl", '{"a": "x\u2028y"}\nnot json\n\n{"a": 2}\n'.encode())
    assert content.text == "a: x\u2028y\n\na: 2"
    assert content.bad_lines == (2,)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_the_encoding(encoding):
    assert text_of("a.txt", "Größe 富士山".encode(encoding)) == "Größe 富士山"


# -- what cannot be read ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, data, said",
    [
        ("a.txt", bytes(range(256)) * 9, "binary, not text"),
        ("a.txt", "Größe".encode("latin-1"), "not UTF-8 (byte 2)"),
        ("a.txt", "plain".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        ("a.pdf", b"%PDF-1.4 nothing", "not a readable PDF ("),
        ("a.pdf", b"", "not a readable PDF ("),
        ("a.pdf", pdf(""), "no page has text (scanned?)"),
        ("a.docx", b"PK\x03\x04 nothing", "not a readable Word document ("),
        ("a.docx", b"\xd0\xcf\x11\xe0", "not a readable Word document ("),
        ("a.json", b"{", "not JSON ("),
        ("a.json", b"[" * 100_000, "nested too deep"),
        ("a.jsonl", b"x\ny\n", "no line is JSON"),
        ("a.csv", b"a,b\n" + b"x" * 200_000 + b",1\n", "not CSV ("),
    ],
)
def test_why_not(name, data, said, capfd):
    with pytest.raises(Unreadable) as caught:
        read_content(name, data)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_locked_pdf_is_named():
    pypdf = pytest.importorskip("pypdf")
    out = io.BytesIO()
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf("secret")))
    writer.encrypt("password", algorithm="RC4-128")
    writer.write(out)
    with pytest.raises(Unreadable, match="encrypted with a password"):
        read_content("a.pdf", out.getvalue())


def test_a_document_that_unpacks_to_more_than_is_read(monkeypatch):
    monkeypatch.setattr(readers, "LARGEST", 100)
    with pytest.raises(Unreadable, match="unpacks to"):
        read_content("a.docx", docx(("Normal", "x" * 1000)))


@pytest.mark.parametrize(
    "name, data",
    [("a.pdf", pdf("x")), ("a.docx", docx(("Normal", "x"))), ("a.html", b"<p>x")],
    ids=["pdf", "docx", "html"],  # a document contains the time of its creation
)
def test_the_missing_extra_is_named(monkeypatch, name, data):
    def without(module, *args, **kwargs):
        if module.partition(".")[0] in ("bs4", "markdownify", "mammoth", "pypdf"):
            raise ImportError(module)
        return builtins.__import__(module, *args, **kwargs)

    monkeypatch.setattr(readers.importlib, "import_module", without)
    with pytest.raises(Unreadable, match=r"pip install 'clara-rag\[files\]'"):
        read_content(name, data)


@settings(deadline=None)
@given(st.binary(max_size=300), st.sampled_from(sorted(readers.READERS)))
def test_any_bytes_are_read_or_refused(data, suffix):
    try:
        content = read_content(f"a{suffix}", data)
    except Unreadable:
        return
    assert list(content.starts) == sorted(set(content.starts))
    assert all(0 <= start < max(1, len(content.text)) for start in content.starts)


# -- folders ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "tide.pdf").write_bytes(pdf("High tide."))
    (tmp_path / "notes.md").write_text("# Notes", encoding="utf-8")
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n3,4\n", encoding="utf-8")
    return tmp_path


def test_every_file_is_read_or_named(folder):
    (folder / "photo.png").write_bytes(b"")
    (folder / "README").write_text("?")
    (folder / ".env").write_text("secret")
    (folder / ".git").mkdir()
    (folder / ".git" / "config.md").write_text("?")
    (folder / "blank.txt").write_text(" \n")
    (folder / "bad.jsonl").write_text("{}\n{\n")
    (folder / "loop").symlink_to(folder)
    (folder / "a.md").symlink_to("b.md")
    (folder / "b.md").symlink_to("a.md")
    (folder / "other.md").symlink_to("notes.md")
    os.mkfifo(folder / "pipe.txt")
    (folder / "pile.txt").write_text("x")
    (folder / "pile.txt").chmod(0o644)
    files, left_out = read_folder(folder)
    read = ["bad.jsonl", "blank.txt", "deep/er/tide.pdf", "notes.md", "other.md", "pile.txt", "rows.csv"]
    assert [file.name for file in files] == read
    assert {one.name: one.reason for one in left_out} == {
        ".env": "hidden",
        ".git/": "hidden",
        "README": "files without a suffix are not read",
        "a.md": "a broken link (Too many levels of symbolic links)",
        "b.md": "a broken link (Too many levels of symbolic links)",
        "bad.jsonl": "holds no text",
        "bad.jsonl line 2": "not JSON",
        "blank.txt": "holds no text",
        "loop": "a link to a folder; give that folder itself",
        "photo.png": ".png files are not read",
        "pipe.txt": "not a regular file",
    }


def test_a_folder_and_a_file_that_are_closed_to_us(folder, monkeypatch):
    """The tests may run as root, who may read everything, so the error of the system is simulated."""
    scandir, read_bytes = os.scandir, Path.read_bytes

    def closed(place):
        if Path(place).name == "er":
            raise PermissionError(13, "Permission denied")
        return scandir(place)

    def locked(path):
        if path.name == "notes.md":
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(documents.os, "scandir", closed)
    monkeypatch.setattr(Path, "read_bytes", locked)
    files, left_out = read_folder(folder)
    assert [file.name for file in files] == ["rows.csv"]
    assert list(map(str, left_out)) == [
        "deep/er/: cannot be read: Permission denied",
        "notes.md: cannot be read: Permission denied",
    ]


def test_a_huge_file_is_named(folder, monkeypatch):
    monkeypatch.setattr(documents, "LARGEST", 10)
    (folder / "huge.txt").write_text("x" * 11)
    _, left_out = read_folder(folder)
    assert "huge.txt: 11 bytes, but at most 10 are read: split the file" in map(str, left_out)


def test_one_file_is_read_whatever_its_suffix(folder):
    (folder / "script.py").write_text("x = 1")
    assert [file.text for file in read_folder(folder / "script.py")[0]] == ["x = 1"]


def test_many_files_of_a_kind_are_one_line():
    many = [LeftOut(f"{number}.png", ".png files are not read") for number in range(1003)]
    assert group_left_out([*many, LeftOut(".git/", "hidden")]) == [
        "0.png, 1.png, 2.png and 1,000 more: .png files are not read",
        ".git/: hidden",
    ]


def test_records_and_headings_become_passages(folder):
    (folder / "page.html").write_text("<h1>A</h1><p>One.</p><h2>B</h2><p>Two.</p>", encoding="utf-8")
    found = {
        file.name: [(one.start, one.text) for one in cut_passages(file, lambda text: [(0, len(text))])]
        for file in read_folder(folder)[0]
    }
    assert found["rows.csv"] == [(0, "a: 1\nb: 2"), (11, "a: 3\nb: 4")]
    assert [text for _, text in found["page.html"]] == ["# A\n\nOne.", "## B\n\nTwo."]


def test_the_command_reads_and_names(clara, folder):
    (folder / "photo.png").write_bytes(b"")
    code, out, err = clara("ask", folder, "When is high tide?", "--model", "pocket", "--max-tokens", 4, "--json")
    facts = json.loads(out)
    assert (code, facts["files"], facts["passages"]) == (0, 3, 4)
    assert facts["left_out"] == ["photo.png: .png files are not read"]
    assert err == "left out: photo.png: .png files are not read\n"

"""The web page for questions, in a browser and over a real socket."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from selenium.webdriver.common.keys import Keys

import clara_core.serving.page as page_module
from clara_core import ClaraEngine, MemoryStore
from clara_core.common.errors import StoreError
from clara_core.engine.evidence import Citation
from clara_core.engine.sampling import Answer, Chunk
from tests.serving.browser import Browser, chromium
from tests.serving.servers import Running, running
from tools.pocket_factory.world import ENCYCLOPEDIA

FOLDER = page_module._FOLDER
KEY = "a-key-of-more-than-sixteen"
NEXT = "another-kéy-of-šixteen-and-more"
QUESTION = "What does Galsena Instruments produce?"
DOCUMENTS = (
    "Galsena Instruments produces pumps, stoves and bells. It was founded in 1690.",
    "Fesunrin Bridge is made of white marble and rests on 3 arches.",
)
HOSTILE = (
    "<img src=x onerror=\"document.title='taken'\">",
    "<script>document.title='taken'</script>",
    "</p></textarea><svg onload=\"document.title='taken'\">",
    "<a href=\"javascript:document.title='taken'\">here</a> &lt;b&gt; &amp;",
)


# --- the files -------------------------------------------------------------------------------------------


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_names_nothing_outside_and_holds_no_script():
    tags = _Tags()
    tags.feed((FOLDER / "index.html").read_text())
    for tag, attributes in tags.found:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        assert tag != "style"
        for name in ("src", "href"):
            if name in attributes:
                assert (FOLDER.parent / str(attributes[name])).is_file(), attributes[name]
    scripts = [attributes for tag, attributes in tags.found if tag == "script"]
    assert all("src" in attributes for attributes in scripts)
    for path in FOLDER.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(
            r"https?:|//\w+\.|innerHTML|outerHTML|insertAdjacentHTML|localStorage|sessionStorage|cookie", text
        )


def test_the_page_and_its_parts_are_served_with_a_policy(server: Running):
    for path in ("/", *(f"/static/{name.name}" for name in FOLDER.iterdir() if name.name != "index.html")):
        response = server.http.get(path)
        assert response.status_code == 200
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
    assert server.http.get("/").headers["content-type"] == "text/html; charset=utf-8"
    for path in (
        "/static/index.html",
        "/static/../page.py",
        "/static/%2e%2e/page.py",
        "/static/%2e%2e%2fpage.py",
        "/static/",
    ):
        assert server.http.get(path).status_code == 404


# --- in a browser ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def local() -> ClaraEngine:
    return ClaraEngine.from_pretrained(ENCYCLOPEDIA)


@pytest.fixture(scope="module")
def server():
    with running(options={"model": ENCYCLOPEDIA}) as started:
        yield started


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _silence(request):
    """After each test, the browser has reported no violation of its policy and no exception of the script."""
    yield
    if "browser" in request.fixturenames:
        said = request.getfixturevalue("browser").log()
        assert not [line for line in said if "Failed to load resource" not in line]


@pytest.fixture(scope="module")
def store_server(tmp_path_factory, local: ClaraEngine):
    """A server with a store, in which some titles are hostile."""
    folder = tmp_path_factory.mktemp("store")
    metadata = [{"title": HOSTILE[1]}, {"file": "bridge.txt", "source": "/srv"}, {"title": HOSTILE[2]}]
    MemoryStore.open(str(folder), local).add([*DOCUMENTS, HOSTILE[0]], metadata)
    with running(options={"model": ENCYCLOPEDIA}, stores={"handbook": str(folder)}) as server:
        yield server


def told(engine: Any, monkeypatch: pytest.MonkeyPatch, *chunks: Any) -> None:
    """Let an engine give the answer that a test wants to see on the page."""

    async def stream(*_: object, **__: object) -> AsyncIterator[Chunk]:
        for chunk in chunks:
            if isinstance(chunk, Exception):
                raise chunk
            if isinstance(chunk, asyncio.Event):
                await chunk.wait()
            else:
                yield chunk

    monkeypatch.setattr(engine, "astream_chat", stream)


def ended(text: str, citations: Sequence[Citation] = ()) -> Chunk:
    return Chunk("", Answer(text, "stop", 9, 16, 40, 5, citations=tuple(citations)))


def cites(document: int, text: str, part: str, source: str, quoted: str, *, verbatim: bool = True) -> Citation:
    start, at = text.index(part), source.index(quoted)
    return Citation(document, 0, 0.9, start, start + len(part), quoted, at, at + len(quoted), verbatim)


def test_an_answer_is_that_of_the_engine_with_its_source(server: Running, browser: Browser, local: ClaraEngine):
    browser.ready(server.url)
    assert not browser["result"].is_displayed()
    browser.ask(QUESTION, "\n \n".join(DOCUMENTS))
    expected = local.answer(QUESTION, local.remember(list(DOCUMENTS)), citations=True)
    assert expected.citations
    assert browser.texts("#answer .cited") == [expected.text]
    assert browser["asked"].text == QUESTION
    [cited] = browser.texts("#sources li")
    assert cited == f"1{DOCUMENTS[0]}"
    assert browser.texts("#sources mark") == [expected.citations[0].text]
    assert browser.texts("#unused li") == [f"2{DOCUMENTS[1]}"]
    assert f"read as {expected.memory_tokens} memory tokens" in browser["state"].text
    browser.all("#answer a.number")[0].click()
    assert browser.driver.current_url.endswith("#source-1")


def test_the_example_is_answered_by_the_bundled_model(browser: Browser):
    with running() as server:
        browser.ready(server.url)
        browser["example"].click()
        assert not browser["example"].is_displayed()
        assert browser["count"].text == "3 documents"
        browser["question"].send_keys(Keys.ENTER)
        browser.until(lambda: browser["answer"].text and not browser.busy)
        assert browser["answer"].text.startswith("330 metres")
        assert len(browser.all("#sources li")) == 1


def test_a_store_is_asked_and_its_hostile_titles_are_text(store_server: Running, browser: Browser):
    browser.ready(store_server.url)
    assert browser["origin"].get_attribute("value") == "handbook"
    assert not browser["documents"].is_displayed()
    browser.ask(QUESTION)
    assert "pumps, stoves and bells" in browser["answer"].text
    assert set(browser.texts(".facts .title")) == {HOSTILE[1], "bridge.txt", HOSTILE[2]}
    assert HOSTILE[0] in browser.texts("#unused .text")
    assert browser.driver.title == "Ask your documents"
    assert not browser.all("#result img, #result script, #result svg")


def test_hostile_text_is_shown_and_does_nothing(server: Running, browser: Browser, monkeypatch):
    said = " ".join(HOSTILE)
    citation = cites(1, said, HOSTILE[1], HOSTILE[1], HOSTILE[1][:20])
    told(server.state.engine, monkeypatch, *map(Chunk, (said[:7], said[7:30], said[30:])), ended(said, [citation]))
    browser.ready(server.url)
    browser.ask(HOSTILE[0], "\n\n".join(HOSTILE))
    assert browser["asked"].get_attribute("textContent") == HOSTILE[0]
    assert "".join(browser.texts("#answer")) == said.replace(HOSTILE[1], f"{HOSTILE[1]}2")
    assert browser.texts("#sources li") == [f"2{HOSTILE[1]}"]
    assert browser.texts("#sources mark") == [HOSTILE[1][:20]]
    assert browser.texts("#unused .text") == [HOSTILE[0], HOSTILE[2], HOSTILE[3]]
    assert not browser.all("#result img, #result script, #result svg, #result a:not(.number)")
    assert browser.driver.title == "Ask your documents"
    # The browser itself refuses markup, so that a later change of the script cannot insert any.
    assert (
        browser.run("try { document.body.innerHTML = '<b>'; return false } catch (error) { return error.name }")
        == "TypeError"
    )
    browser.driver.get_log("browser")


def test_offsets_are_of_characters_and_long_sources_are_shortened(server: Running, browser: Browser, monkeypatch):
    long = f"{'🐑🐑 padding. ' * 100}The 🐑 of Ångström grazes. {'More. ' * 200}"
    said = "A 🐑, 🐏 grazes; not so."
    citations = [
        cites(1, said, "🐏 grazes", long, "The 🐑 of Ångström grazes."),
        cites(0, said, "🐏 grazes", "first", "first"),
        cites(0, said, "not so", "first", "first", verbatim=False),
    ]
    told(server.state.engine, monkeypatch, Chunk(said), ended(said, citations))
    browser.ready(server.url)
    # The driver can only type characters of the basic multilingual plane.
    browser.driver.execute_script("document.getElementById('documents').value = arguments[0]", f"first\n\n{long}")
    browser.ask("What?")
    assert browser.texts("#answer .cited") == ["🐏 grazes", "not so"]
    assert browser.texts("#answer .free") == ["not so"]
    assert browser.texts("#answer .number") == ["1", "2", "1"]
    assert browser.texts("#source-2 mark") == ["The 🐑 of Ångström grazes."]
    shown = browser.texts("#source-2 .text")[0]
    assert len(shown) < 600
    assert shown.startswith("… ")
    browser.all("#source-2 button")[0].click()
    assert browser.texts("#source-2 .text") == [long.strip()]
    assert browser.texts("#source-2 mark") == ["The 🐑 of Ångström grazes."]
    assert "does not stand in its source word for word" in browser["state"].text


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_ends_the_work_and_keeps_what_was_written(store_server: Running, browser: Browser, monkeypatch, how):
    gone = 'clara_cancelled_total{why="disconnect"}'
    before = _metric(store_server, gone)
    told(store_server.state.engine, monkeypatch, Chunk("Half an "), asyncio.Event(), ended("Half an answer"))
    browser.ready(store_server.url)
    browser.begin("When?")
    browser.until(lambda: browser["answer"].text == "Half an ")
    assert not browser["send"].is_displayed()
    assert browser.driver.switch_to.active_element.get_attribute("id") == "stop"
    assert store_server.state.in_flight == 1
    if how == "button":
        browser["stop"].click()
    else:
        browser["question"].send_keys(Keys.ESCAPE)
    browser.until(lambda: not browser.busy)
    store_server.wait_until(lambda: store_server.state.in_flight == 0)
    assert _metric(store_server, gone) == before + 1
    assert browser["state"].text == "Stopped."
    assert browser["answer"].text == "Half an "
    assert browser["send"].is_displayed()


def _metric(server: Running, name: str) -> float:
    [line] = [line for line in server.http.get("/metrics").text.splitlines() if line.startswith(name)]
    return float(line.rpartition(" ")[2])


def test_keys_of_the_keyboard(server: Running, browser: Browser):
    browser.ready(server.url)
    order = []
    for _ in range(5):
        browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        order.append(browser.driver.switch_to.active_element.get_attribute("id"))
    assert order == ["question", "send", "origin", "example", "documents"]
    browser["question"].send_keys("two", Keys.SHIFT, Keys.ENTER, Keys.NULL, "lines")
    assert browser["question"].get_attribute("value") == "two\nlines"
    assert not browser["result"].is_displayed()
    fields = "[...document.querySelectorAll('input, textarea, select')]"
    assert browser.run(f"return {fields}.every((field) => field.labels.length === 1)")


def test_what_is_missing_is_said(server: Running, browser: Browser):
    browser.ready(server.url)
    browser["send"].click()
    assert browser["refusal"].text == "Write a question first."
    browser["question"].send_keys("When?", Keys.ENTER)
    assert browser["refusal"].text == "Paste what is to be read first."
    assert browser.driver.switch_to.active_element.get_attribute("id") == "documents"


# --- refusals --------------------------------------------------------------------------------------------


def test_refusals_are_said_in_words(browser: Browser, monkeypatch):
    with running(limits={"characters": 200, "body_bytes": 4096}) as server:
        browser.ready(server.url)
        browser.ask("When?", "a" * 201)
        assert browser["refusal"].text.startswith("The server cannot answer this: documents[0] has 201 characters")
        browser.driver.execute_script("document.getElementById('documents').value = 'a'.repeat(5000)")
        browser.ask("When?")
        assert browser["refusal"].text.startswith("That is more text than this server takes at once.")
        assert not browser["result"].is_displayed()

        server.state.in_flight += 256
        browser.ask("When?", "It rains.")
        server.state.in_flight -= 256
        assert re.match(r"The server has too much to do, or is starting. Ask again in \d+ s.", browser["refusal"].text)

        for broken in (StoreError("<b>the index</b> is broken"), ConnectionResetError("inside")):
            told(server.state.engine, monkeypatch, Chunk("It "), broken)
            browser.ask("When?", "It rains.")
            assert browser["answer"].text.strip() == "It"
            assert browser["state"].text == "The answer is not whole."
            assert ("<b>the index</b> is broken" in browser["refusal"].text) == isinstance(broken, StoreError)
            assert "inside" not in browser["refusal"].text
    browser.ask("When?", "It rains.")
    assert browser["refusal"].text == "The server cannot be reached. Is it still running?"
    browser.until(lambda: browser["model"].text == "not reached")
    browser.open("about:blank")  # until then it polls the server


def test_a_key_is_asked_for_and_kept_in_memory_alone(browser: Browser, tmp_path):
    path = tmp_path / "keys"
    path.write_text(KEY)
    with running(options={"model": ENCYCLOPEDIA}, key_file=path) as server:
        assert httpx.get(server.url).status_code == 401
        browser.ready(server.url.replace("//", f"//anybody:{KEY}@"))
        assert not browser["key-form"].is_displayed()
        path.write_text(NEXT, encoding="utf-8")
        server.state.keys.reload()
        browser.ask(QUESTION, DOCUMENTS[0])
        assert browser["refusal"].text.startswith("This server needs a key")
        browser["key"].send_keys("a-wrong-key-of-sixteen", Keys.ENTER)
        browser.until(lambda: browser["model"].text == "a key is needed")
        assert browser["key"].get_attribute("value") == ""
        browser["key"].send_keys(NEXT, Keys.ENTER)
        browser.until(lambda: not browser["key-form"].is_displayed())
        browser.ask(QUESTION)
        assert "pumps" in browser["answer"].text
        kept = "return [localStorage.length, sessionStorage.length, document.cookie, location.href, history.state]"
        assert browser.run(kept)[:3] == [0, 0, ""]
        assert NEXT not in str(browser.run(kept))


def test_a_page_that_was_opened_early_waits_for_the_model(browser: Browser):
    with running() as server:
        server.state.ready = False
        browser.open(server.url)
        browser.until(lambda: browser["model"].text == "the model is being loaded")
        server.state.ready = True
        browser.until(lambda: browser["model"].text == "pocket")


# --- appearance ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dark", [False, True])
def test_it_can_be_read_on_narrow_and_dark_screens(server: Running, browser: Browser, dark):
    browser.emulate(width=320, dark=dark)
    try:
        browser.ready(server.url)
        browser.ask(QUESTION, "\n\n".join((*DOCUMENTS, "x" * 400)))
        assert browser.run("return document.documentElement.scrollWidth") <= 320
        paper, ink = map(
            _luminance, browser.run("const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]")
        )
        assert (paper < ink) == dark
        for selector in ("#answer", ".number", ".hint", "#asked", "h3", "summary", "#send", "#sources mark"):
            assert _contrast(browser, selector) >= 4.5, selector
    finally:
        browser.emulate()


def _contrast(browser: Browser, selector: str) -> float:
    """Contrast ratio of text and background, by the formula of the accessibility guidelines (WCAG)."""
    colours = browser.driver.execute_script(
        """
        let element = document.querySelector(arguments[0]);
        const ink = getComputedStyle(element).color;
        while (getComputedStyle(element).backgroundColor === "rgba(0, 0, 0, 0)") element = element.parentElement;
        return [ink, getComputedStyle(element).backgroundColor];
        """,
        selector,
    )
    dark, light = sorted(map(_luminance, colours))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

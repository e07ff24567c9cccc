"""A headless browser for tests of the page; they are skipped if none is installed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.ui import WebDriverWait

from tests.serving.servers import PATIENCE

_FLAGS = (
    "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync", "disable-dev-shm-usage",
)  # fmt: skip


class Browser:
    """Chromium, with access to the elements of the page by their ids."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get(url)

    def ready(self, url: str, *, origin: str | None = None) -> None:
        """Open the page of a server that is ready, and choose the source of answers: a store, or "" for text."""
        self.open(url)
        self.until(lambda: self["model"].get_attribute("data-state") == "ready")
        if origin is not None:
            Select(self["origin"]).select_by_value(origin)

    def ask(self, question: str, documents: str | None = None) -> None:
        """Ask a question as a person does, and wait for the end of the answer."""
        self.begin(question, documents)
        self.until(lambda: not self.busy)

    def begin(self, question: str, documents: str | None = None) -> None:
        if documents is not None:
            self["documents"].clear()
            self["documents"].send_keys(documents)
        self["question"].clear()
        self["question"].send_keys(question)
        self["send"].click()

    @property
    def busy(self) -> bool:
        return self["answer"].get_attribute("aria-busy") == "true"

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        return [str(found.get_attribute("textContent")) for found in self.all(selector)]

    def until(self, holds: Callable[[], Any]) -> None:
        WebDriverWait(self.driver, PATIENCE, poll_frequency=0.02).until(lambda _: holds())

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def log(self) -> list[str]:
        """Messages of the browser since the last call."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def emulate(self, *, width: int = 1000, dark: bool = False) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})

    def __getitem__(self, name: str) -> WebElement:
        return self.driver.find_element(By.ID, name)


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """Start a browser with an empty profile."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs Chromium and its driver in PATH: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*_FLAGS, f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield Browser(started)
    finally:
        started.quit()

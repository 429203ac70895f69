"""Headless Chromium for the tests of pages."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """The running browser. Skips the test where no Chromium is installed."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=QUIET)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def opened(base_url: str) -> Iterator[Any]:
    """An empty page of a browser of its own."""
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1800, "height": 1100}, base_url=base_url)
        page.set_default_timeout(120_000)
        yield page

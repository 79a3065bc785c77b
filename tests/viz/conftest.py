"""A browser of the system without a network, and what a page may not do in it."""

import os
import shutil
from pathlib import Path

import pytest

_PLACES = ("chromium", "chromium-browser", "google-chrome", "/usr/lib/chromium/chromium")


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    binary = next((found for name in _PLACES if (found := shutil.which(name))), None)
    if binary is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    arguments = ["--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=binary, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, tmp_path):
    """Opens a picture; afterwards nothing may have been fetched and nothing may have failed."""
    wrong, contexts = [], []

    def open_page(picture, width=1280, **options):
        context = chromium.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        tab = context.new_page()
        place = picture if isinstance(picture, Path) else picture.save(tmp_path / "picture.html")
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda asked: asked.url.startswith("data:") or wrong.append(asked.url))
        tab.goto(place.as_uri())
        wrong.remove(place.as_uri())
        if options.get("java_script_enabled", True) and tab.locator(".pv-grid").count():
            tab.wait_for_selector(".pv-grid.pv-ready")
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def violations():
    """What axe-core finds wrong in a page; skips where AXE_CORE names no file with it."""
    path = Path(os.environ.get("AXE_CORE", ""))
    if not path.is_file():
        pytest.skip("AXE_CORE names no axe.min.js: npm install axe-core")

    def check(tab):
        # As an expression: the page allows no script but its own.
        tab.evaluate(path.read_text(encoding="utf-8"))
        found = tab.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        return [(one["id"], [node["target"] for node in one["nodes"]][:4]) for one in serious]

    return check

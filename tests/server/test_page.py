"""The chat page, in a headless Chromium where there is one."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import rwkv_core
from server_process import Server

FOLDER = Path(rwkv_core.__file__).parent / "server" / "page"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def test_the_page_is_all_there_and_takes_nothing_from_elsewhere(http: httpx.Client) -> None:
    page = http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    files = [path.name for path in FOLDER.iterdir()]
    for name in files:
        assert http.get(f"/page/{name}").is_success
        assert "http" not in (FOLDER / name).read_text().replace("http-equiv", "")
    assert sum(len((FOLDER / name).read_text().splitlines()) for name in files) < 500
    for path in ("/page/../app.py", "/page/%2e%2e/app.py", "/page/nothing", "/page/"):
        assert http.get(path).status_code == 404


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(params=[(1200, 800, "light"), (360, 640, "dark")], ids=["desk", "phone"])
def page(request: pytest.FixtureRequest, browser: Any, server: Server) -> Iterator[Any]:
    width, height, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    found = context.new_page()
    mistakes: list[str] = []
    found.on("pageerror", lambda error: mistakes.append(str(error)))
    found.goto(server.address)
    yield found
    assert not mistakes
    assert found.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_a_conversation_with_the_keyboard_alone(page: Any) -> None:
    page.get_by_text("Ready.").wait_for()
    assert page.get_by_role("heading", name="rwkv-core prose").is_visible()
    page.get_by_text("Settings").click()
    page.get_by_label("Tokens at most").fill("4")
    page.get_by_label("Message", exact=True).focus()
    page.keyboard.type("What is the <b>sea</b>?")
    page.keyboard.press("Enter")
    page.get_by_text("The answer is complete.").wait_for()
    articles = page.get_by_role("article")
    assert articles.count() == 2
    assert "<b>sea</b>" in articles.nth(0).inner_text()
    assert "4 tokens" in articles.nth(1).inner_text()
    # Another answer is a branch beside the first one.
    first = articles.nth(1).locator(".text").inner_text()
    page.get_by_role("button", name="Regenerate").press("Enter")
    page.get_by_text("2 of 2").wait_for()
    page.get_by_text("The answer is complete.").wait_for()
    page.get_by_role("button", name="Earlier branch").press("Enter")
    assert articles.nth(1).locator(".text").inner_text() == first
    # So is a message that is changed.
    page.get_by_role("button", name="Edit").press("Enter")
    page.keyboard.press("Control+A")
    page.keyboard.type("Who are you?")
    page.keyboard.press("Enter")
    page.get_by_text("The answer is complete.").wait_for()
    assert "Who are you?" in articles.nth(0).inner_text()
    assert "2 of 2" in articles.nth(0).inner_text()


def test_an_answer_can_be_stopped(page: Any, http: httpx.Client) -> None:
    page.get_by_text("Settings").click()
    page.get_by_label("Tokens at most").fill("400")
    page.get_by_label("Message", exact=True).fill("Tell me all of it")
    page.get_by_role("button", name="Send").click()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for()
    assert page.get_by_role("button", name="Send").is_visible()


def test_a_mistake_is_shown(page: Any) -> None:
    page.get_by_text("Settings").click()
    page.get_by_label("Tokens at most").fill("401")
    page.get_by_label("Message", exact=True).fill("Hello")
    page.get_by_role("button", name="Send").click()
    page.locator("article .wrong").get_by_text("expected at most 400").wait_for()

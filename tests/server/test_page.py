"""The chat page, in a headless Chromium where there is one."""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

import rwkv_core
from server_process import Server

pytest.importorskip("selenium")
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

FOLDER = Path(rwkv_core.__file__).parent / "server" / "page"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
WIDTHS = {"desk": (1200, 800), "phone": (360, 640)}


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
def browser() -> Iterator[webdriver.Chrome]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium with its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "SEVERE"})
    found = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield found
    found.quit()


@dataclass
class Page:
    """The chat page in a browser. Elements are found by what a screen reader says of them."""

    driver: webdriver.Chrome

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def control(self, name: str) -> WebElement:
        """The button or field of this name."""
        (found,) = [one for one in self.all("button, input, textarea") if self.name_of(one) == name]
        return found

    def name_of(self, element: WebElement) -> str:
        return element.accessible_name if element.is_displayed() else ""

    def until(self, holds: Callable[[], Any]) -> None:
        # Elements are replaced as the page is drawn.
        ignored = [StaleElementReferenceException]
        WebDriverWait(self.driver, 60, 0.05, ignored).until(lambda _: holds())

    def until_status(self, text: str) -> None:
        self.until(lambda: self.all("[role=status]")[0].text == text)

    def set(self, name: str, value: str) -> None:
        field = self.control(name)
        field.clear()
        field.send_keys(value)

    def press(self, *keys: str) -> None:
        """Press keys where the focus is."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def focus(self) -> str:
        """The name of the control that has the focus."""
        return self.name_of(self.driver.switch_to.active_element)

    def tab_to(self, name: str, key: str = Keys.TAB) -> None:
        """Press Tab until a control has the focus."""
        for _ in range(30):
            if self.focus() == name:
                return
            self.press(key)
        raise AssertionError(f"Tab does not reach {name}")

    def ask(self, text: str) -> None:
        """Ask, and wait for the whole answer."""
        self.control("Message").send_keys(text, Keys.ENTER)
        self.until_status("The answer is complete.")

    def texts(self) -> list[str]:
        """The messages that are shown."""
        return [one.get_attribute("textContent") for one in self.all("article .text")]

    def prompt_tokens(self) -> tuple[int, int]:
        """The last answer's prompt tokens, and how many of them were cached."""
        facts = self.all("article .facts")[-1].text
        found = re.search(r"[0-9.]+ tokens/s; prompt: (\d+) tokens, (\d+) of them cached", facts)
        assert found, facts
        return int(found[1]), int(found[2])

    def colors(self, selector: str) -> tuple[list[int], list[int]]:
        """The colors of an element's text and of the page."""
        script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
        pairs = ((selector, "color"), ("body", "backgroundColor"))
        found = [self.driver.execute_script(script, *pair) for pair in pairs]
        return tuple([int(one) for one in re.findall(r"\d+", color)[:3]] for color in found)


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, browser: Any, server: Server) -> Iterator[Page]:
    width, height = WIDTHS[request.param]
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(server.address)
    found = Page(browser)
    found.until_status("Ready.")
    found.all("summary")[0].click()
    yield found
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert not browser.get_log("browser")


def test_a_conversation_with_the_keyboard_alone(page: Page) -> None:
    assert page.all("h1")[0].text == "rwkv-core prose"
    page.tab_to("Tokens at most")
    page.press(Keys.CONTROL, "a", Keys.NULL, "4")
    page.tab_to("Message")
    page.press("What is", Keys.SHIFT, Keys.ENTER, Keys.NULL, "the <b>sea</b>?", Keys.ENTER)
    page.until_status("The answer is complete.")
    assert page.texts()[0] == "What is\nthe <b>sea</b>?"
    assert page.all("article .facts")[1].text.startswith("4 tokens, ")
    # Another answer is a branch beside the first one.
    first = page.texts()[1]
    page.tab_to("Regenerate", Keys.SHIFT + Keys.TAB)
    page.press(Keys.ENTER)
    page.until(lambda: "2 of 2" in page.all("article")[1].text)
    page.until_status("The answer is complete.")
    page.tab_to("Earlier branch", Keys.SHIFT + Keys.TAB)
    page.press(Keys.ENTER)
    assert page.texts()[1] == first
    assert page.focus() == "Later branch"
    # So is a message that is changed. Escape leaves it as it is, and the focus where it was.
    page.tab_to("Edit")
    page.press(Keys.ENTER)
    page.press("Not this", Keys.ESCAPE)
    assert page.texts()[0] == "What is\nthe <b>sea</b>?"
    assert page.focus() == "Edit"
    page.press(Keys.ENTER)
    page.press(Keys.CONTROL, "a", Keys.NULL, "Who are you?", Keys.ENTER)
    page.until(lambda: "2 of 2" in page.all("article")[0].text)
    page.until_status("The answer is complete.")
    assert page.texts()[0] == "Who are you?"
    assert page.focus() == "Message"


def test_an_answer_is_shown_as_it_comes(page: Page) -> None:
    page.set("Tokens at most", "30")
    page.driver.execute_script(
        "window.lengths = new Set(); new MutationObserver(() => window.lengths.add("
        "document.querySelector('.assistant .text')?.textContent.length)).observe("
        "document.getElementById('messages'), {childList: true, subtree: true})"
    )
    page.ask("Tell me of the sea.")
    lengths = page.driver.execute_script("return [...window.lengths].filter(Boolean)")
    assert lengths == sorted(lengths)
    assert len(lengths) > 3


@pytest.mark.parametrize("by_key", [False, True])
def test_an_answer_can_be_stopped(page: Page, http: httpx.Client, by_key: bool) -> None:
    page.set("Tokens at most", "400")
    page.control("Message").send_keys("Tell me all of it", Keys.ENTER)
    page.until(lambda: page.texts()[1:] > [""])
    if by_key:
        page.press(Keys.ESCAPE)
    else:
        page.control("Stop").click()
    page.until_status("Stopped.")
    assert page.control("Send")
    assert page.texts()[1]
    running = re.compile(r"^rwkv:num_requests_running\{.*\} 0", re.M)
    page.until(lambda: running.search(http.get("/metrics").text))


def test_branches_begin_from_states_that_the_server_keeps(page: Page) -> None:
    page.set("Tokens at most", "3")
    page.set("System prompt", "The sea was calm and the old man slept in his boat. " * 10)
    page.ask("Where is the boat?")
    n_first, _ = page.prompt_tokens()
    page.ask("And the man?")
    # All of the first question and its answer but the last few tokens.
    n_second, n_cached = page.prompt_tokens()
    assert n_second > n_first
    assert n_cached >= n_first - 1
    page.all("article.user button")[0].click()
    page.press(Keys.CONTROL, "a", Keys.NULL, "Who slept?", Keys.ENTER)
    page.until(lambda: len(page.texts()) == 2)
    page.until_status("The answer is complete.")
    n_changed, n_cached = page.prompt_tokens()
    assert n_changed - n_cached < 20 < n_changed
    page.control("Regenerate").click()
    page.until(lambda: "2 of 2" in page.all("article.assistant")[0].text)
    page.until_status("The answer is complete.")
    assert page.prompt_tokens() == (n_changed, n_changed)


def test_a_mistake_is_shown(page: Page) -> None:
    page.set("Tokens at most", "401")
    page.control("Message").send_keys("Hello", Keys.ENTER)
    page.until(lambda: "expected at most 400" in page.all("article .wrong")[-1].text)
    assert "expected at most 400" in page.all("[role=status]")[0].text
    page.driver.get_log("browser")  # which has the status 400


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_names_for_screen_readers_and_colors_for_all(page: Page, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    page.set("Tokens at most", "1")
    page.ask("Hello")
    page.control("Regenerate").click()
    page.until(lambda: "2 of 2" in page.all("article.assistant")[0].text)
    page.until_status("The answer is complete.")
    controls = [one for one in page.all("button, input, textarea") if one.is_displayed()]
    names = [page.name_of(one) for one in controls]
    assert all(names)
    assert {"Earlier branch", "Later branch", "Edit", "Regenerate", "Message"} <= {*names}
    main = page.all("main")[0]
    assert (main.aria_role, main.accessible_name) == ("main", "Conversation")
    assert [one.text for one in page.all("article h2")] == ["You", "Model"]
    for selector in ("article .text", "article .facts", "#status", "button"):
        color, back = page.colors(selector)
        assert (sum(back) > 384) == (scheme == "light")
        assert contrast(color, back) >= 4.5, selector


def contrast(one: list[int], other: list[int]) -> float:
    """The contrast of two colors, as WCAG defines it: 4.5 is enough for any text."""

    def luminance(color: list[int]) -> float:
        shares = [part / 255 for part in color]
        red, green, blue = (
            share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4
            for share in shares
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)

"""The documentation site (its folder is in SITE): links lead somewhere, every page is reached."""

import os
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import rwkv_core
from rwkv_core.cli import BUILTIN_COMMANDS

SITE = Path(os.environ.get("SITE", "."))
# They are shown for others' sake: a number, and a marker of pluggy's.
NOT_DOCUMENTED = {"CONTRACT", "__version__", "hookimpl"}


class Page(HTMLParser):
    """The links of an HTML file, the files that it loads, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        elif "src" in given:
            self.loaded.add(given["src"])
        elif tag == "link" and given.get("rel") != "canonical":
            self.loaded.add(given["href"])


@cache
def page(path: Path) -> Page:
    return Page(path)


def pages() -> list[Path]:
    if "SITE" not in os.environ:
        pytest.skip("run by nox -s site")
    return [path for path in SITE.rglob("*.html") if path.name != "404.html"]


def target(path: Path, link: str) -> tuple[Path, str]:
    parts = urlsplit(link)
    return (path.parent / unquote(parts.path)).resolve() if parts.path else path, parts.fragment


def test_every_link_and_anchor_leads_somewhere() -> None:
    broken = []
    for path in pages():
        for link in page(path).links | page(path).loaded:
            if urlsplit(link).scheme in ("http", "https"):
                continue
            found, anchor = target(path, link)
            html = found.suffix == ".html"
            if not found.is_file() or (anchor and html and anchor not in page(found).anchors):
                broken.append(f"{path.relative_to(SITE)}: {link}")
    assert broken == []


def test_nothing_is_loaded_from_elsewhere() -> None:
    loaded = {link for path in pages() for link in page(path).loaded}
    assert [link for link in loaded if urlsplit(link).netloc] == []
    styles = [path for path in SITE.rglob("*.css") if "url(http" in path.read_text("utf-8")]
    assert styles == []


def test_every_page_is_reached_from_the_first() -> None:
    all_pages = {path.resolve() for path in pages()}
    waiting, reached = [(SITE / "index.html").resolve()], set()
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            found = {target(path, link)[0] for link in page(path).links if "://" not in link}
            waiting += [one for one in found if one in all_pages]
    assert all_pages - reached == set()
    assert len(reached) > 20


def test_every_public_name_and_every_command_is_in_the_reference() -> None:
    pages()
    names = {f"rwkv_core.{name}" for name in set(rwkv_core.__all__) - NOT_DOCUMENTED}
    assert names - page(SITE / "python.html").anchors == set()
    commands = {command.name for command in BUILTIN_COMMANDS}
    assert commands - page(SITE / "command-line.html").anchors == set()

"""Paths, addresses of the hub, other addresses, and malformed ones are distinguished."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_core import DownloadError
from rwkv_core.sources import hub, local_file


def test_paths_and_the_shipped_models_are_no_addresses(tmp_path):
    assert local_file("a/b.pth") == Path("a/b.pth")
    assert local_file(tmp_path) == tmp_path
    assert local_file("prose").name == "rwkv-4-prose-7m.pth"
    assert local_file("prose7").name == "rwkv-7-prose-7m.pth"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("hf://a/b/c.pth", ("a/b", "c.pth", "main")),
        ("hf://a/b@v1/d/c.pth", ("a/b", "d/c.pth", "v1")),
        ("hf://a/b@refs/pr/3/c.pth", ("a/b", "c.pth", "refs/pr/3")),
        ("hf://a/b@x%2Fy/c.pth", ("a/b", "c.pth", "x/y")),
        ("https://huggingface.co/a/b/resolve/main/d/c.pth", ("a/b", "d/c.pth", "main")),
        ("https://huggingface.co/a/b/blob/v1/c%20d.pth", ("a/b", "c d.pth", "v1")),
        ("https://hf.co/a/b/resolve/main/c.pth?download=true", ("a/b", "c.pth", "main")),
        ("http://mirror:8/hub/a/b/resolve/main/c.pth", ("a/b", "c.pth", "main")),
    ],
)
def test_addresses_of_the_hub_are_known(address, expected, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror:8/hub/")
    assert hub.parse(address) == hub.HubFile(*expected)


def test_other_addresses_are_not_the_hubs(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror:8/hub/")
    for address in ("https://example.org/a/b/resolve/main/c", "http://mirror:8/a/b/resolve/main/c"):
        assert hub.parse(address) is None


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ftp://host/a.pth", "begins with hf://, https:// or http://"),
        ("s3://bucket/a.pth", "begins with hf://, https:// or http://"),
        ("hf://owner/repo", "expected hf://owner/repo/file"),
        ("hf://owner", "expected hf://owner/repo/file"),
        ("hf://owner/repo@/a.pth", "expected hf://owner/repo/file"),
        ("hf://datasets/owner/repo/a.pth", "expected hf://owner/repo/file"),
        ("hf://owner/repo/../a.pth", "expected hf://owner/repo/file"),
        ("https://hf.co/owner/repo/resolve/main/%2e%2e/a.pth", "names no file of a model"),
        ("hf://owner/-repo-/a.pth", "Repo id must"),
        ("https://huggingface.co/owner/repo", "names no file of a model repository"),
        ("https://huggingface.co/owner/repo/tree/main", "names no file of a model repository"),
        ("http://", "names no host"),
        ("http://host:port/a.pth", "not an address"),
        ("http://[::1/a.pth", "not an address"),
        ("https://me:secret@host/a.pth", "name and password"),
        ("http://host/a.pth#part", "expected #sha256="),
    ],
)
def test_a_malformed_address_is_one_line(address, message):
    with pytest.raises(DownloadError) as error:
        local_file(address)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert "secret" not in str(error.value)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_hf_address_is_parsed_or_refused(rest):
    try:
        place = hub.parse("hf://" + rest)
    except DownloadError:
        return
    assert place.repo.count("/") == 1 and place.path and place.revision

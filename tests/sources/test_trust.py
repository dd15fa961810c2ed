"""Malicious or damaged addresses, servers and cache files; secrets in messages."""

import hashlib
import json
import os
import socket
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

import rwkv_core
from hub_server import Faults, Hub
from rwkv_core import DownloadError, RWKVError, TokenizerError
from rwkv_core.cli import main
from rwkv_core.evaluation.memory_estimate import memory_of_file
from rwkv_core.sources import download, http_file, local_file
from rwkv_core.tokenizer.search import tokenizer_before_load
from rwkv_core.util.addresses import scheme_of, without_secrets

DATA = np.random.default_rng(1).bytes(100_000)


@pytest.fixture
def address(web: Hub) -> str:
    """Return the address of a file outside the hub."""
    web.files["/a/file.bin"] = DATA
    web.repositories["owner/repo"] = {"model.pth": DATA}
    return web.address.replace("127.0.0.1", "localhost") + "/a/file.bin"


# Addresses


@pytest.mark.parametrize(
    "part",
    [
        "owner/repo@..%2f..%2fvictim/f",
        "owner/repo@%2ftmp%2fx/f",
        "owner/repo@a%5c..%5cb/f",
        "owner/repo@a%00b/f",
        "owner/repo@C%3Ax/f",
        "owner/repo@a%0ab/f",
        "owner/repo/a%2f..%2f..%2fb",
        "owner/repo/a\\..\\b",
        "owner/repo/C:/b",
        "../repo/f",
        "owner/../f",
        "owner/%2e%2e/f",
    ],
)
def test_no_part_of_a_hub_address_leaves_the_cache(web, tmp_path, part):
    with pytest.raises(DownloadError, match="hf://owner/repo"):
        local_file("hf://" + part)
    assert web.requests == []
    repo, _, rest = part.partition("@")
    if rest:
        with pytest.raises(DownloadError, match="no revision has such a name"):
            local_file(f"https://hf.co/{repo}/resolve/{rest}")


@pytest.mark.parametrize(
    "header", [{"X-Linked-Etag": '"../../../x"'}, {"X-Repo-Commit": "../../../x"}]
)
def test_what_the_hub_names_files_by_is_checked(web, address, tmp_path, header):
    web.faults = Faults(headers=header)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DownloadError, match=r"no hex digest|no commit of 40"):
        local_file("hf://owner/repo/model.pth")
    assert sorted(tmp_path.rglob("*")) == before


def test_drives_and_shares_of_windows_are_paths():
    for path in ("C://Users/me/m.pth", "C:\\m.pth", "c:m.pth", "\\\\server\\share\\m.pth"):
        assert scheme_of(path) is None and local_file(path) == Path(path)
    for name in ("con", "NUL.pth", "com1.bin", "a:b.", "..."):
        assert download._RESERVED.match(download._cache_name(f"/{name}")) is None


def test_a_hub_that_cannot_be_reached_is_one_line_at_once(web, address, monkeypatch, capfd):
    first = local_file("hf://owner/repo/model.pth")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert local_file("hf://owner/repo/model.pth") == first
    began = time.monotonic()
    assert main(["generate", "a", "-m", "hf://owner/repo/other.pth"]) == 2
    assert time.monotonic() - began < 5
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and "cannot be reached" in err


def test_a_hub_that_accepts_connections_and_never_answers_is_one_line_within_5_s(
    web, address, monkeypatch, capfd
):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        assert main(["generate", "a", "-m", "hf://owner/repo/other.pth"]) == 2
        assert time.monotonic() - began < 5
    out, err = capfd.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and "cannot be reached" in err


# Secrets

SECRET = [
    "https://me:SECRET@localhost:9/m.pth",
    "https://SECRET@localhost:9/m.pth",
    "https://me:SEC/SECRET@localhost:9/m.pth",
    "https://me:SEC?SECRET@localhost:9/m.pth",
    "https://me:SEC#SECRET@localhost:9/m.pth",
    "HTTPS://me:SECRET@localhost:9/m.pth",
    "https:/me:SECRET@localhost:9/m.pth",
    " https://me:SECRET@localhost:9/m.pth",
    "http://localhost:9/m.pth?token=SECRET",
    "http://localhost:9/m.pth%3Ftoken=SECRET",
    "http://localhost:SECRET/m.pth",
    "http://[::1/m.pth?token=SECRET",
    "http://localhost:9/m.pth#token=SECRET",
    "s3://me:SECRET@bucket/m.pth",
    "hf://me:SECRET@owner/repo/m.pth",
    "hf://owner/repo/m.pth?token=SECRET",
    "hf://owner/repo?token=SECRET",
    "hf://owner/repo?token=SECRET/m.pth",
    "hf://owner/repo/m.pth%3Ftoken=SECRET",
    "https://huggingface.co/owner/repo?token=SECRET",
]


@pytest.mark.parametrize("secret", SECRET)
def test_no_message_shows_a_secret(web, secret, capfd, monkeypatch):
    monkeypatch.setattr(download, "RETRIES", 0)
    shown = without_secrets(secret)
    assert without_secrets(shown) == shown
    for problem in (DownloadError, RWKVError):
        assert "SECRET" not in str(problem(f"found {secret}: no such file"))
    assert main(["vram", "-m", secret]) == 2
    assert main(["generate", "a", "-m", "prose", "--tokenizer", secret]) == 2
    assert main(["generate", "--prompt-file", secret]) == 2
    assert "SECRET" not in "".join(capfd.readouterr())


def test_a_query_is_hidden_where_a_model_is_named(web, address, small_model):
    web.files["/a/file.bin"] = small_model.read_bytes()
    assert memory_of_file(f"{address}?token=SECRET").name == f"{address}?..."


# Downloads


def test_a_server_that_never_gets_further_is_left(web, address, monkeypatch):
    """Each response is of another version and breaks off, so the part so far is useless."""
    monkeypatch.setattr(download, "RETRIES", 2)
    monkeypatch.setattr(download, "PAUSE", 0)
    web.faults = Faults(breaks=20, new_etags=True)
    with pytest.raises(DownloadError, match="cannot be fetched"):
        local_file(address)
    assert len(web.requests) < 12


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (Faults(status=204), "the server answers 204"),
        (Faults(headers={"Content-Length": "12, 13"}), "length as one number"),
        (Faults(headers={"Content-Length": "9" * 5000}), "length as one number"),
        (Faults(second_length="7"), "length as one number"),
    ],
)
def test_an_answer_that_is_no_whole_file_is_refused(web, address, tmp_path, faults, message):
    web.faults = faults
    with pytest.raises(DownloadError, match=message):
        local_file(address)
    assert not list(tmp_path.rglob("file.bin"))


def test_more_bytes_than_announced_are_not_kept(web, address, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(download, "RETRIES", 0)
        web.faults = Faults(breaks=1)
        with pytest.raises(DownloadError, match="broke off"):
            local_file(address)
    web.faults = Faults(extra=b"and more")
    with pytest.raises(DownloadError, match="more than the 100,000 bytes that it announces"):
        local_file(address)
    assert not list(tmp_path.rglob("file.bin*"))


def test_a_part_that_nobody_asked_for_is_no_file(web, address, monkeypatch, tmp_path):
    monkeypatch.setattr(download, "PAUSE", 0.0)
    web.faults = Faults(unasked_part=True)
    with pytest.raises(DownloadError, match="sends other parts than it is asked for"):
        local_file(address)
    assert len(web.requests) < 12
    assert not list(tmp_path.rglob("file.bin"))


def test_a_wrong_backend_or_option_is_told_before_anything_is_fetched(web, address):
    for backend, options in ((None, {"typo": 1}), ("abacus", {})):
        with pytest.raises(RWKVError):
            rwkv_core.load(address, backend, **options)
    assert not web.requests


def test_a_redirect_from_https_to_http_is_refused():
    request = urllib.request.Request("https://localhost/file.bin")
    redirect = http_file._Redirects().redirect_request
    with pytest.raises(http_file.Broken, match="from https to http") as error:
        redirect(request, None, 302, "Found", {}, "http://localhost/file.bin")
    assert error.value.hopeless
    assert redirect(request, None, 302, "Found", {}, "https://localhost/b").type == "https"


def test_a_date_is_no_validator_for_a_part(web, address, monkeypatch):
    dated = {"ETag": "", "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
    web.faults = Faults(breaks=1, headers=dated)
    assert local_file(address).read_bytes() == DATA
    assert all("range" not in headers for headers in web.gets())


@pytest.mark.parametrize("damaged", [DATA[:-1], b"x" + DATA[1:]])
def test_a_damaged_copy_is_fetched_again(web, address, damaged):
    file = local_file(address)
    file.write_bytes(damaged)
    assert local_file(address).read_bytes() == DATA
    gets = len(web.gets())
    file.touch()  # the same content: the checksum tells
    local_file(address)
    local_file(address)
    assert all("if-none-match" in headers for headers in web.gets()[gets:])


def test_a_damaged_copy_is_no_substitute_for_the_server(web, address):
    file = local_file(address)
    file.write_bytes(b"x")
    web.faults = Faults(status=404)
    with pytest.raises(DownloadError, match="no such file"):
        local_file(address)


@pytest.mark.parametrize(
    "wrong",
    [
        {"etag": 5},
        {"etag": 0},
        {"etag": '"a\nb: c"'},
        {"modified": ["x"]},
        {"size": "x"},
        {"digests": 5},
        {"digests": {"sha256": 5}},
        {"stamp": "abc"},
        {"other": 1},
        "[" * 20000,
    ],
)
def test_a_strange_description_is_none(web, address, wrong):
    file = local_file(address)
    for name in ("file.bin.json", "file.bin.partial.json"):
        sound = {"etag": '"a"', "modified": None, "size": 10, "digests": {}}
        content = wrong if isinstance(wrong, str) else json.dumps(sound | wrong)
        file.with_name(name).write_text(content)
    file.with_name("file.bin.partial").write_bytes(b"x" * 10)
    assert local_file(address).read_bytes() == DATA


@pytest.mark.skipif(not hasattr(os, "link"), reason="needs links")
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_planted_link_is_not_followed(web, address, tmp_path, link):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    folder = local_file(address).parent
    for path in folder.iterdir():
        path.unlink()
    sound = {"etag": f'"{hashlib.md5(DATA).hexdigest()}"', "modified": None, "size": len(DATA)}
    (folder / "file.bin.partial.json").write_text(json.dumps(sound | {"digests": {}}))
    for name in ("file.bin.partial", "file.bin.json"):
        link(victim, folder / name)
    assert local_file(address).read_bytes() == DATA
    assert victim.read_bytes() == b"precious"


# The tokenizer before the model


@pytest.mark.parametrize("name", ["20B_tokenizer.json", "tokenizer.json"])
@pytest.mark.parametrize("place", ["hub", "http"])
def test_a_tokenizer_beside_an_address_is_fetched_first(web, address, small_model, place, name):
    tokenizer = small_model.with_name("tokenizer.json").read_bytes()
    content = small_model.read_bytes()
    web.files |= {"/a/file.bin": content, f"/a/{name}": tokenizer}
    web.repositories["owner/repo"] = {"s/m.pth": content, f"s/{name}": tokenizer}
    model = address if place == "http" else "hf://owner/repo/s/m.pth"
    assert tokenizer_before_load(model) is not None
    order = [path for method, path, _ in web.requests if method == "GET"]
    weights = next(path for path in order if path.endswith(("file.bin", "m.pth")))
    assert order.index(weights) > max(i for i, path in enumerate(order) if path.endswith(name))


@pytest.mark.parametrize(
    ("file", "tokenizer", "message"),
    [
        ("file.bin", None, "and hf://EleutherAI/gpt-neox-20b"),
        ("RWKV-4-World-7B.pth", None, "World models take"),
        ("file.bin", b"{", "tokenizer.json"),
    ],
)
def test_a_model_without_a_sound_tokenizer_is_not_fetched(web, address, file, tokenizer, message):
    web.files[f"/a/{file}"] = DATA
    if tokenizer is not None:
        web.files["/a/tokenizer.json"] = tokenizer
    with pytest.raises(TokenizerError, match=message):
        tokenizer_before_load(address.replace("file.bin", file))
    assert not web.gets(file)


def test_a_tokenizer_that_was_none_is_fetched_again(web, address, small_model):
    web.files |= {"/a/file.bin": small_model.read_bytes(), "/a/tokenizer.json": b'{"error": 1}'}
    with pytest.raises(TokenizerError):
        tokenizer_before_load(address)
    web.files["/a/tokenizer.json"] = small_model.with_name("tokenizer.json").read_bytes()
    assert tokenizer_before_load(address) is not None

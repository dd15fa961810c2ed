"""Models by http(s), against a server on loopback."""

import base64
import hashlib
from types import SimpleNamespace

import pytest

from hub_server import DATA, SHA256, Faults, Hub, left_over
from rwkv_core import DownloadError
from rwkv_core.sources import download, http_file, local_file


def test_a_file_is_fetched_once_and_asked_for_again(web, address):
    first = local_file(address)
    assert (first.read_bytes(), first.name) == (DATA, "file.bin")
    assert local_file(address) == first
    assert "if-none-match" in web.gets()[1]
    assert local_file(address + "?download=1") != first


def test_a_redirect_is_followed(web, address):
    assert local_file(address.replace("file.bin", "moved")).read_bytes() == DATA


def test_a_changed_file_is_fetched_anew(web, address):
    local_file(address)
    web.files["/file.bin"] = b"other"
    assert local_file(address).read_bytes() == b"other"


def test_a_server_that_knows_no_conditions_is_not_read_twice(web, address, tmp_path):
    web.faults = Faults(headers={"ETag": "", "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"})
    first = local_file(address)
    before = first.stat().st_mtime_ns
    assert local_file(address).stat().st_mtime_ns == before


@pytest.mark.parametrize("fault", [Faults(status=404), Faults(status=500), None])
def test_a_copy_in_the_cache_does_where_the_server_does_not(web, address, fault, monkeypatch):
    monkeypatch.setattr(download, "RETRIES", 1)
    first = local_file(address)
    if fault is None:
        monkeypatch.setattr(http_file, "TIMEOUT", 0.01)
        web.faults = Faults(stalls=99, headers={"ETag": '"new"'})
    else:
        web.faults = fault
    assert local_file(address) == first and first.read_bytes() == DATA


@pytest.mark.parametrize("fault", ["breaks", "stalls"])
def test_what_breaks_off_is_resumed(web, address, monkeypatch, tmp_path, fault):
    monkeypatch.setattr(http_file, "TIMEOUT", 0.3)
    web.faults = Faults(**{fault: 2})
    assert local_file(address).read_bytes() == DATA
    ranges = [headers.get("range") for headers in web.gets()]
    assert ranges == [None, "bytes=150000-", "bytes=225000-"]
    assert left_over(tmp_path) == []


def test_what_always_breaks_off_is_one_line_and_resumed_by_the_next_run(web, address, monkeypatch):
    monkeypatch.setattr(download, "RETRIES", 0)
    web.faults = Faults(breaks=1)
    with pytest.raises(DownloadError, match="broke off after 150,000 of 300,000 bytes"):
        local_file(address)
    assert local_file(address).read_bytes() == DATA
    assert web.gets()[1]["range"] == "bytes=150000-"


def break_off(web: Hub, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(download, "RETRIES", 0)
        web.faults = Faults(breaks=1)
        with pytest.raises(DownloadError, match="broke off"):
            local_file(address)


@pytest.mark.parametrize(
    "faults",
    [
        Faults(parts=False),
        Faults(headers={"Content-Range": "bytes 7-299999/300000"}),
        Faults(headers={"Content-Range": "bytes 150000-400000/400001"}),
        Faults(headers={"Content-Range": ""}),
        Faults(headers={"ETag": '"another"'}),
    ],
)
def test_a_part_that_is_not_the_one_asked_for_is_not_appended(web, address, monkeypatch, faults):
    break_off(web, address, monkeypatch)
    web.faults = faults
    assert local_file(address).read_bytes() == DATA


def test_a_file_that_changed_meanwhile_is_begun_again(web, address, monkeypatch):
    break_off(web, address, monkeypatch)
    web.files["/file.bin"] = other = DATA[::-1]
    assert local_file(address).read_bytes() == other


def test_what_is_left_of_another_version_is_never_gone_on_from(web, address, monkeypatch):
    break_off(web, address, monkeypatch)
    web.files["/file.bin"] = other = DATA[::-1]
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
        with pytest.raises(DownloadError, match="has 0 free"):
            local_file(address)
    assert local_file(address).read_bytes() == other


def test_a_file_that_became_shorter_is_begun_again(web, address, monkeypatch):
    break_off(web, address, monkeypatch)
    web.files["/file.bin"] = DATA[:1000]
    assert local_file(address).read_bytes() == DATA[:1000]


def test_a_whole_file_that_a_crash_kept_from_its_place_is_not_fetched_again(
    web, address, monkeypatch, tmp_path
):
    break_off(web, address, monkeypatch)
    (partial,) = tmp_path.rglob("file.bin.partial")
    partial.write_bytes(DATA)
    asked = len(web.requests)
    assert local_file(address).read_bytes() == DATA
    assert len(web.requests) == asked and left_over(tmp_path) == []


def test_a_busy_server_is_asked_again(web, address):
    web.faults = Faults(busy=2)
    assert local_file(address).read_bytes() == DATA


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (Faults(status=404), "no such file there (404 Not Found)"),
        (Faults(status=401), "access refused (401 Unauthorized)"),
        (Faults(status=403), "access refused (403 Forbidden)"),
        (Faults(status=418), "the server answers 418"),
        (Faults(status=304), "the server answers 304"),
        (Faults(status=500), "the server answers 500"),
        (Faults(headers={"Content-Type": "text/html; charset=utf-8"}), "found a web page"),
        (Faults(headers={"Content-Encoding": "gzip"}), "packs the file (gzip)"),
        (Faults(headers={"Content-Length": "9" * 18}), "free some, or name another folder"),
    ],
)
def test_what_the_server_does_wrong_is_one_line(web, address, tmp_path, faults, message):
    web.faults = faults
    with pytest.raises(DownloadError) as error:
        local_file(address)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.rglob("file.bin"))


def test_a_host_that_is_not_there_is_one_line(web, address):
    with pytest.raises(DownloadError, match="cannot be fetched: ConnectionRefused") as error:
        local_file("http://localhost:9/file.bin")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "header",
    [
        {"Repr-Digest": "sha-256=:{sha256}:"},
        {"Digest": "SHA-256={sha256}"},
        {"Content-MD5": "{md5}"},
    ],
)
def test_a_checksum_that_the_server_gives_is_checked(web, address, tmp_path, header):
    sums = {name: base64.b64encode(hashlib.new(name, DATA).digest()).decode()
            for name in ("sha256", "md5")}  # fmt: skip
    headers = {name: value.format(**sums) for name, value in header.items()}
    web.faults = Faults(headers=headers, damage=True)
    with pytest.raises(DownloadError, match=r"the download has the (sha256|md5)"):
        local_file(address)
    assert left_over(tmp_path) == [] and not list(tmp_path.rglob("file.bin"))
    web.faults = Faults(headers=headers)
    assert local_file(address).read_bytes() == DATA


def test_a_checksum_in_the_address_is_checked(web, address):
    assert local_file(f"{address}#sha256={SHA256.upper()}").read_bytes() == DATA
    asked = len(web.requests)
    assert local_file(f"{address}#sha256={SHA256}").read_bytes() == DATA
    assert len(web.requests) == asked
    with pytest.raises(DownloadError, match="expected 0000"):
        local_file(f"{address}#sha256={'0' * 64}")
    with pytest.raises(DownloadError, match="its SHA-256 is not"):
        local_file(f"hf://owner/repo/model.pth#sha256={'0' * 64}")
    assert local_file(f"hf://owner/repo/model.pth#sha256={SHA256}").read_bytes() == DATA

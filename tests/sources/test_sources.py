"""Models by address: the hub's own client, and plain http(s), against a server on loopback."""

import base64
import errno
import hashlib
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

import rwkv_core
from hub_server import COMMIT, Faults, Hub
from rwkv_core import DownloadError
from rwkv_core.cli import main
from rwkv_core.sources import download, http_file, hub, local_file

DATA = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def web(web: Hub) -> Hub:
    web.files["/file.bin"] = DATA
    web.repositories["owner/repo"] = {"model.pth": DATA, "sub/a b.pth": DATA[:10]}
    return web


@pytest.fixture
def address(web: Hub) -> str:
    """Of a file outside the hub."""
    return web.address.replace("127.0.0.1", "localhost") + "/file.bin"


def left_over(tmp_path: Path) -> list[str]:
    """The partial files in either cache."""
    return [path.name for path in tmp_path.rglob("*") if "partial" in path.name or
            path.suffix == ".incomplete"]  # fmt: skip


def in_background(*arguments: str, **options) -> subprocess.Popen[str]:
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);" \
        "from rwkv_core.cli import main; sys.exit(main())"  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, **options,
    )  # fmt: skip


def wait_for_get(web: Hub, process: subprocess.Popen[str]) -> None:
    while not web.gets(".bin") + web.gets(".pth") and process.poll() is None:
        web.ended.wait(0.01)
    web.ended.wait(0.3)


# What is an address


def test_paths_and_the_shipped_model_are_no_addresses(tmp_path):
    assert local_file("a/b.pth") == Path("a/b.pth")
    assert local_file(tmp_path) == tmp_path
    assert local_file("prose").name == "rwkv-4-prose-7m.pth"


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


# Plain http


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
    with pytest.raises(DownloadError, match=r"what arrived has the (sha256|md5)"):
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


# The hub


def test_a_file_of_the_hub_comes_through_its_clients_cache(web, tmp_path):
    first = local_file("hf://owner/repo/model.pth")
    assert first.read_bytes() == DATA and first.is_relative_to(tmp_path / "hf")
    gets = len(web.gets())
    assert local_file(f"{web.address}/owner/repo/blob/main/model.pth?download=true") == first
    assert local_file(f"hf://owner/repo@{COMMIT}/model.pth") == first
    assert len(web.gets()) == gets
    assert local_file("hf://owner/repo/sub/a b.pth").read_bytes() == DATA[:10]


def test_what_the_hub_breaks_off_is_resumed(web, tmp_path):
    web.faults = Faults(breaks=1)
    assert local_file("hf://owner/repo/model.pth").read_bytes() == DATA
    assert web.gets()[1]["range"] == "bytes=150000-"
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (Faults(damage=True), "has not the checksum that the hub gives"),
        (Faults(headers={"X-Linked-Size": "400000"}), "has not the size that the hub gives"),
    ],
)
def test_what_the_hub_sends_damaged_is_removed(web, tmp_path, faults, message):
    web.faults = faults
    with pytest.raises(DownloadError, match=message) as error:
        local_file("hf://owner/repo/model.pth")
    assert "\n" not in str(error.value)
    web.faults = Faults()
    assert local_file("hf://owner/repo/model.pth").read_bytes() == DATA
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://owner/repo/no.pth", "owner/repo has no file no.pth at revision main"),
        ("hf://owner/repo@v9/model.pth", "owner/repo has no revision v9"),
        ("hf://owner/none/model.pth", "no repository owner/none, or a private one"),
        ("hf://owner/gated/model.pth", "gated: accept its terms at"),
    ],
)
def test_what_the_hub_does_not_have_is_named(web, address, message):
    web.repositories["owner/gated"] = {"model.pth": DATA}
    web.tokens["owner/gated"] = "secret"
    with pytest.raises(DownloadError) as error:
        local_file(address)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_token_opens_a_gated_repository(web, monkeypatch):
    web.tokens["owner/repo"] = "secret"
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert local_file("hf://owner/repo/model.pth").read_bytes() == DATA


def test_a_refusal_of_the_hub_is_one_line(web):
    web.faults = Faults(status=403)
    with pytest.raises(DownloadError, match=r"access refused \(403\); log in") as error:
        local_file("hf://owner/repo/model.pth")
    assert "\n" not in str(error.value)


def test_offline_the_hubs_cache_does(web, monkeypatch):
    first = local_file("hf://owner/repo/model.pth")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert local_file("hf://owner/repo/model.pth") == first
    with pytest.raises(DownloadError, match="not in the hub's cache, and HF_HUB_OFFLINE is set"):
        local_file("hf://owner/repo/sub/a b.pth")


# Processes


@pytest.mark.parametrize("place", ["hf://owner/repo/model.pth", "http"])
def test_two_processes_at_once_fetch_a_file_once(web, address, tmp_path, place):
    web.faults = Faults(slow=0.5)
    place = address if place == "http" else place
    code = "import sys; from rwkv_core.sources import local_file; print(local_file(sys.argv[1]))"
    both = [
        subprocess.Popen([sys.executable, "-c", code, place], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    paths = {process.communicate(timeout=60)[0].strip() for process in both}
    assert len(paths) == 1 and Path(paths.pop()).read_bytes() == DATA
    assert len([h for h in web.gets(place[-8:]) if "if-none-match" not in h]) == 1
    assert left_over(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX signals")
@pytest.mark.parametrize("place", ["hf://owner/repo/model.pth", "http"])
def test_ctrl_c_leaves_no_half_file_in_place(web, address, tmp_path, place):
    web.faults = Faults(stalls=1)
    place = address if place == "http" else place
    with in_background("vram", "-m", place) as process:
        wait_for_get(web, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == ""
    assert not [path for path in tmp_path.rglob("*") if path.name in ("file.bin", "model.pth")]
    web.requests.clear()
    assert local_file(place).read_bytes() == DATA
    if place == address:
        assert web.gets()[0]["range"] == "bytes=150000-"
    assert left_over(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the size of files")
@pytest.mark.parametrize("place", ["hf://owner/repo/model.pth", "http"])
def test_a_disk_that_fills_up_is_one_line(web, address, tmp_path, place):
    place = address if place == "http" else place

    import resource

    with in_background("vram", "-m", place) as process:
        # From outside, and long before it has imported what downloads.
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert len(err.splitlines()) == 1 and os.strerror(errno.EFBIG) in err
    assert not [path for path in tmp_path.rglob("*") if path.name in ("file.bin", "model.pth")]
    assert local_file(place).read_bytes() == DATA


@pytest.mark.parametrize("place", ["hf://owner/repo/model.pth", "http"])
def test_a_disk_without_room_is_one_line(web, address, tmp_path, place):
    place = address if place == "http" else place
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no file system can be mounted here")
    try:
        env = {**os.environ, "RWKV_CACHE": str(disk), "HF_HOME": str(disk)}
        with in_background("vram", "-m", place, env=env) as process:
            _, err = process.communicate(timeout=60)
        assert process.returncode == 2
        errors = [line for line in err.splitlines() if line.startswith("rwkv-core: error: ")]
        assert len(errors) == 1 and (
            "No space left" in err or "bytes free" in err or "free;" in err
        )
        assert not [path for path in disk.rglob("*") if path.name in ("file.bin", "model.pth")]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# All that takes a model


@pytest.mark.needs_backend
def test_every_way_to_name_a_model_takes_an_address(web, address, small_model, backend, capsys):
    content = small_model.read_bytes()
    tokenizer = small_model.with_name("tokenizer.json").read_bytes()
    web.files |= {"/file.bin": content, "/t": tokenizer}
    web.repositories["owner/repo"] = {"s/m.pth": content, "s/tokenizer.json": tokenizer}
    expected = rwkv_core.load(small_model, backend).forward([1, 2])[0]
    loaded = rwkv_core.load(address, backend)
    np.testing.assert_array_equal(loaded.to_numpy(loaded.forward([1, 2])[0]), np.asarray(expected))
    assert main(["vram", "-m", "hf://owner/repo/s/m.pth"]) == 0
    assert "hf://owner/repo/s/m.pth" in capsys.readouterr().out
    given = ["generate", "the", "-n", "3", "--seed", "1", "-b", backend]
    texts = []
    for where in (
        ["-m", str(small_model)],
        ["-m", "hf://owner/repo/s/m.pth"],
        ["-m", address, "--tokenizer", "hf://owner/repo/s/tokenizer.json"],
        ["-m", address, "--tokenizer", address.replace("file.bin", "t")],
    ):
        assert main([*given, *where]) == 0
        texts.append(capsys.readouterr().out)
    assert len(set(texts)) == 1


def test_nothing_is_printed_where_stderr_is_no_terminal(web, address, capfd):
    local_file(address)
    local_file("hf://owner/repo/model.pth")
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a POSIX terminal")
@pytest.mark.parametrize("place", ["hf://owner/repo/model.pth", "http"])
def test_a_bar_shows_on_a_terminal(web, address, place):
    place = address if place == "http" else place
    import termios

    terminal, end = os.openpty()
    termios.tcsetwinsize(end, (24, 120))
    code = "import sys; from rwkv_core.sources import local_file; local_file(sys.argv[1])"
    with subprocess.Popen([sys.executable, "-c", code, place], stderr=end) as process:
        os.close(end)
        shown = b""
        # Linux tells the end of a terminal by an error.
        with suppress(OSError):
            while piece := os.read(terminal, 4096):
                shown += piece
    os.close(terminal)
    assert process.returncode == 0
    assert place.rpartition("/")[2].encode() in shown and b"300k/300k" in shown


def test_without_addresses_no_client_is_imported(small_model):
    code = (
        "import sys, rwkv_core.cli; rwkv_core.cli.main(['vram', '-m', sys.argv[1]]);"
        "clients = {'huggingface_hub', 'urllib.request', 'httpx2', 'httpx', 'requests', 'tqdm'};"
        "sys.exit(str(clients & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(small_model)], capture_output=True, text=True
    )
    assert done.stderr == "set()\n"

"""Downloads by programs: several at the same time, interrupted, on a full disk, by each command."""

import errno
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import rwkv_core
from hub_server import DATA, Faults, Hub, left_over
from rwkv_core.cli import main
from rwkv_core.sources import local_file


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

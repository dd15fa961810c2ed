"""Models of the hub, through its own client, against a server on loopback."""

import pytest
from huggingface_hub import constants

from hub_server import COMMIT, DATA, Faults, left_over
from rwkv_core import DownloadError
from rwkv_core.sources import local_file


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
        (Faults(damage=True), "does not have the hub's checksum"),
        (Faults(headers={"X-Linked-Size": "400000"}), "does not have the size that the hub gives"),
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

"""The number of threads of a process, by its cores and its container's CPU quota."""

import os

import pytest

from rwkv_core.util import threads
from rwkv_core.util.threads import available_threads


@pytest.fixture
def control_groups(tmp_path, monkeypatch):
    """Put this process into control groups: a function of /proc/self/cgroup and of their files."""

    def put(own, files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        (tmp_path / "own").write_text(own)
        monkeypatch.setattr(threads, "_CGROUPS", tmp_path)
        monkeypatch.setattr(threads, "_OWN_GROUPS", tmp_path / "own")
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)

    return put


V1 = "3:cpuset:/\n1:cpu,cpuacct:/a/b\n"
PERIOD = {"cpu/a/b/cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/a/b\n", {"a/cpu.max": "350000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3),
        ("0::/a\n", {"a/cpu.max": "50000 100000\n"}, 1),
        ("0::/a\n", {"a/cpu.max": "1600000 100000\n"}, 8),
        (V1, {"cpu/a/b/cpu.cfs_quota_us": "400000\n", **PERIOD}, 4),
        (V1, {"cpu/a/b/cpu.cfs_quota_us": "-1\n", **PERIOD}, 8),
        ("0::/gone\n", {}, 8),
        ("0::/\n", {"cpu.max": "no numbers\n"}, 8),
    ],
)
def test_threads_are_no_more_than_cores_and_quotas(control_groups, own, files, expected):
    control_groups(own, files)
    assert available_threads() == expected

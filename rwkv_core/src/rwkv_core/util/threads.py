"""Number of threads that can run at the same time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_CGROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available_threads() -> int:
    """Return the number of cores that this process may use, at least 1.

    This is the number of cores in the process's affinity mask, or a container's CPU quota (cgroup
    version 1 or 2) if the quota is smaller. A quota is rounded down, since a thread that runs out
    of quota also stops the other threads.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, int(min(cores, *_cpu_quotas(), cores)))


def _cpu_quotas() -> Iterator[float]:
    """Yield the quotas, in cores, of this process's control groups and of their parents."""
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            roots = [_CGROUPS, _CGROUPS / "unified"]
        elif "cpu" in controllers.split(","):
            roots = [_CGROUPS / "cpu", _CGROUPS / controllers]
        else:
            continue
        path = PurePosixPath(group)
        for root in roots:
            for one in (path, *path.parents):
                quota = _quota_of(root / one.relative_to("/"))
                if quota is not None:
                    yield quota


def _quota_of(group: Path) -> float | None:
    """Return the quota of one control group, in cores; None without a quota."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = (
                (group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period")
            )
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None

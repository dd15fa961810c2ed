"""Which distributions are installed, found out without importing them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed_version(distribution: str) -> str | None:
    """The version of `distribution`; None if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None

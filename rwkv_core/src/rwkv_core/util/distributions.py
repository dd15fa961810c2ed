"""Versions of installed distributions, found without importing them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed_version(distribution: str) -> str | None:
    """Return the version of `distribution`; None if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None

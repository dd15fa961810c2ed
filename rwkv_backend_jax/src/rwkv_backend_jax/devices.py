"""Selects JAX devices, and decides how matrices are split over them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from rwkv_core.errors import BackendError, OptionError

AXIS = "model"


def chosen_devices(name: str | None, mesh: int | None) -> list[jax.Device]:
    """Return the devices for the options `device` ("gpu", "gpu:1", None) and `mesh` (a number).

    Raises BackendError if a device is not available, and OptionError for wrong options.
    """
    platform, colon, index = (name or "").partition(":")
    if colon and not index.isdecimal():
        raise OptionError(f"option device: found {name!r}, expected one such as cpu, gpu or gpu:1")
    if colon and mesh is not None:
        raise OptionError(
            f"option mesh: takes a kind of devices, but device={name} is one device; drop either"
        )
    if mesh is not None and mesh < 1:
        raise OptionError(f"option mesh: found {mesh}, expected at least 1")
    try:
        with _quiet():
            devices = jax.local_devices(backend=platform or None)
    # For a known platform without a plugin, JAX raises AssertionError.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0] or f"JAX has no {jax.config.jax_platforms} here"
        what = f"option device: {name!r} is not available here" if name else "JAX finds no device"
        if jax.config.jax_platforms:
            reason += f"; JAX_PLATFORMS is {jax.config.jax_platforms!r}: unset it, or take cpu"
        raise BackendError(f"{what}: {reason}") from None
    if mesh is not None:
        if mesh > len(devices):
            raise BackendError(
                f"option mesh: found {mesh}, expected at most the number of {devices[0].platform} "
                f"devices that JAX has here, {len(devices)}"
            )
        return devices[:mesh]
    if int(index or 0) >= len(devices):
        raise BackendError(
            f"option device: {name!r} is not available here: JAX has {len(devices)} {platform}"
        )
    return [devices[int(index or 0)]]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide JAX's log of the platforms it tries; rwkv-core shows the chosen device."""
    log = logging.getLogger("jax")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


class Placement:
    """Placement of arrays: on one device, or with the matrices split over several.

    A matrix [out, in] is split along its outputs. Only a matrix with in > out, which is channel
    mixing's value matrix, is split along its inputs. Channel mixing's inner activations then stay
    on their devices, and one sum over the devices gives the result. Time mixing's k, v, r and scan
    stay split too. Time mixing's square output matrix cannot be distinguished from other matrices,
    so it is split along its outputs too. This needs a gather before and after its product, which
    move as many bytes as the sum would.
    """

    def __init__(self, devices: list[jax.Device], split: bool) -> None:
        self.mesh = Mesh(np.array(devices), (AXIS,)) if split else None
        self.whole: Sharding = (
            NamedSharding(self.mesh, P()) if self.mesh else SingleDeviceSharding(devices[0])
        )
        self.name = ", ".join(f"{device.platform}:{device.id}" for device in devices)
        if self.name == "cpu:0":
            self.name = "cpu"

    def of_matrix(self, shape: tuple[int, int]) -> Sharding:
        """Return a matrix's sharding. Raises OptionError if the mesh divides neither out nor in."""
        if self.mesh is None:
            return self.whole
        specs = [P(AXIS, None), P(None, AXIS)]
        # A vocabulary's size is rarely divisible; then the head is split along its inputs.
        for axis in (1, 0) if shape[1] > shape[0] else (0, 1):
            if shape[axis] % self.mesh.size == 0:
                return NamedSharding(self.mesh, specs[axis])
        raise OptionError(
            f"option mesh: found {self.mesh.size}, expected a divisor of the model's width; "
            f"it has a matrix of {shape[0]} x {shape[1]}"
        )

    def of_table(self, width: int) -> Sharding:
        """Return the embedding's sharding: each device has some columns of [vocab, width]."""
        if self.mesh is None or width % self.mesh.size:
            return self.whole
        return NamedSharding(self.mesh, P(None, AXIS))

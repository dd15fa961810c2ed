"""Gives RWKV-6's and RWKV-7's tensors BlinkDL's layout, which other writers change.

Only the extents (offset, shape and strides in the file) are changed, so no tensor is copied. Other
writers differ from BlinkDL's layout in two ways:
- FLA and the converters of web-rwkv and rwkv.cpp store low-rank matrices transposed, [out, in]. The
  shape shows the orientation, since the rank is below the model's width. (Some versions of
  web-rwkv's converter transpose RWKV-6's twice.)
- rwkv.cpp's converter and early versions of FLA join the six shares of RWKV-7's token shifts into
  one tensor, [6, 1, D].
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from rwkv_core.architectures.base import D, declared_weights
from rwkv_core.architectures.versions import VERSIONS
from rwkv_core.checkpoint.extent import Extent
from rwkv_core.checkpoint.names import has_fla_names, in_second_layer

_FUSED = (".att.x_rwkvag", ".att.x_x")
# For each low-rank matrix, the one of its last two axes that has the model's width.
_WIDE_AXES = {
    name: weight.shape.index(D) - len(weight.shape)
    for architecture in VERSIONS
    for name, weight in declared_weights(architecture, n_layer=2).items()
    if weight.role == "low_rank"
}


class Placed(NamedTuple):
    """Extent of a tensor, and the name of the file's tensor that it is part of."""

    stored: str
    extent: Extent


def in_blinkdl_layout(extents: Mapping[str, Extent], sources: Collection[str]) -> dict[str, Placed]:
    """Return the tensors of a file in BlinkDL's layout.

    Arguments:
        extents: for each tensor its extent (offset, shape and strides in the file), by BlinkDL's
            name. For a tensor that BlinkDL's files do not have, the key is the name in the file.
        sources: the names of the tensors in the file; they show which program wrote it.
    """
    embedding = extents.get("emb.weight")
    width = embedding.shape[-1] if embedding and embedding.shape else 0
    # A square matrix's shape shows nothing; its orientation is guessed from the writer.
    is_turned = has_fla_names(sources) or any(name.endswith(_FUSED) for name in extents)
    return {
        name: Placed(stored, _oriented(name, extent, width, is_turned))
        for stored, whole in extents.items()
        for name, extent in _parts(stored, whole)
    }


def _parts(name: str, whole: Extent) -> Iterator[tuple[str, Extent]]:
    shares = "rwkvag"
    if not name.endswith(_FUSED) or whole.shape[:1] != (len(shares),):
        yield name, whole
        return
    for i, share in enumerate(shares):
        yield (
            name.rpartition("_")[0] + "_" + share,
            whole._replace(
                offset=whole.offset + i * whole.strides[0],
                shape=whole.shape[1:],
                strides=whole.strides[1:],
            ),
        )


def _oriented(name: str, extent: Extent, width: int, is_turned: bool) -> Extent:
    axis = _WIDE_AXES.get(in_second_layer(name))
    if axis is None or len(extent.shape) < 2:
        return extent
    wide, narrow = extent.shape[axis], extent.shape[-3 - axis]
    turn = is_turned if wide == narrow else narrow == width
    return _transposed(extent) if turn else extent


def _transposed(extent: Extent) -> Extent:
    *shape, rows, columns = extent.shape
    *strides, down, right = extent.strides
    return extent._replace(shape=(*shape, columns, rows), strides=(*strides, right, down))

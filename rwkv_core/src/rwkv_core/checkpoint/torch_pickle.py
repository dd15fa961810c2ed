"""Reads a pickle that describes tensors as data, without running any code in it.

torch.save writes a pickle whose only calls rebuild tensors from storages held elsewhere. Python's
unpickler would import and call whatever a file names; this reader cannot import or call anything.
It steps through the opcodes, which `pickletools.genops` only decodes, and has a stand-in for each
of the few globals that tensors need. The plain containers in which trainers keep their settings and
counters (`_DATA`) become `OPAQUE` without being built. Any other global, and any opcode outside the
list at the end, is refused by name.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from rwkv_core.checkpoint.memory_map import MAX_DIMENSIONS

STORAGE_DTYPES: dict[str, np.dtype[Any]] = {
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.BoolStorage": np.dtype("?"),
    "torch.ComplexFloatStorage": np.dtype("<c8"),
    "torch.ComplexDoubleStorage": np.dtype("<c16"),
    "torch.storage.UntypedStorage": np.dtype("u1"),
}


class PickleRefused(Exception):
    """The pickle uses something that a checkpoint of plain tensors does not need."""


class Malformed(ValueError):
    """The pickle is damaged: torch.save does not write such a pickle."""


class Storage(NamedTuple):
    """A run of elements in the zip member `data/<key>`."""

    key: str
    dtype: np.dtype[Any]
    n_elements: int


class Tensor(NamedTuple):
    """A view of a storage. Offset and strides are in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Global(NamedTuple):
    name: str


OPAQUE: Any = object()
"""Stands for a value that no tensor depends on; it is skipped, never built."""

_DICTIONARIES = (
    "collections.OrderedDict",
    "collections.defaultdict",
    "collections.Counter",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
_BUILTINS = "bool bytearray bytes complex dict float frozenset int list object range set slice str"
_FLOAT8 = ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")
_GENERATORS = ("generator", "bit_generator", "randomstate")
_SEEDS = ("SeedSequence", "__pyx_unpickle_SeedSequence")
_BIT_GENERATORS = (
    "_mt19937.MT19937",
    "_pcg64.PCG64",
    "_pcg64.PCG64DXSM",
    "_philox.Philox",
    "_sfc64.SFC64",
)
# Types whose instances hold data and no code, and the functions that rebuild them.
_DATA = frozenset(
    [
        *(
            f"{module}.{name}"
            for module in ("builtins", "__builtin__")
            for name in _BUILTINS.split()
        ),
        *("builtins.tuple", "__builtin__.tuple", "__builtin__.long", "__builtin__.unicode"),
        *("__builtin__.xrange", "_codecs.encode", "collections.deque"),
        *("argparse.Namespace", "types.SimpleNamespace", "uuid.UUID"),
        *("decimal.Decimal", "fractions.Fraction"),
        *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
        *(
            f"{module}.{name}"
            for module in ("pathlib", "pathlib._local")
            for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
        ),
        *(f"{module}.multiarray.scalar" for module in ("numpy.core", "numpy._core")),
        *(f"{module}.numeric._frombuffer" for module in ("numpy.core", "numpy._core")),
        *("numpy.dtype", "numpy.ndarray"),
        *("torch.Size", "torch.device", "torch.Tensor", "torch.nn.parameter.Parameter"),
        *("torch.serialization._get_layout", "torch.torch_version.TorchVersion"),
        *(f"torch.{kind}{bits}" for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64)),
        *("torch.bfloat16", "torch.bool", "torch.complex64", "torch.complex128"),
        *(f"torch.float8_{kind}" for kind in _FLOAT8),
        # Kinds of tensors that no supported model has; such a weight is reported as missing.
        *("torch._utils._rebuild_tensor_v3", "torch._utils._rebuild_sparse_tensor"),
        "torch._utils._rebuild_meta_tensor_no_storage",
        *(f"numpy.random._pickle.__{kind}_ctor" for kind in _GENERATORS),
        *(f"numpy.random.{module}" for module in _BIT_GENERATORS),
        *(f"numpy.random.bit_generator.{name}" for name in _SEEDS),
    ]
)

_MARK: Any = object()
"""The value that the opcode MARK pushes on the stack."""


def read_torch_pickle(pickle: bytes) -> Any:
    """Return the pickle's content: dicts, lists, tuples, text, numbers and `Tensor`s.

    Raises PickleRefused if it names anything else, and Malformed if it is damaged.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            step = _STEPS.get(opcode.name)
            if step is None:
                where = f" with {argument[:80]!r}" if isinstance(argument, str) else ""
                raise PickleRefused(f"the pickle instruction {opcode.name}{where}")
            step(machine, argument)
        (result,) = machine.stack
    except Malformed:
        raise
    # pickletools warns of an escape in a name, which is an exception where warnings are errors.
    except (ValueError, LookupError, TypeError, struct.error, DeprecationWarning) as error:
        raise Malformed(f"not a complete pickle ({type(error).__name__})") from error
    return result


class _Machine:
    """The pickle machine's stack and memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop_to_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise Malformed("a list has no beginning")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def pop_tuple(self, length: int) -> tuple[Any, ...]:
        if length > len(self.stack):
            raise Malformed("a tuple is short of values")
        items = tuple(self.stack[len(self.stack) - length :])
        del self.stack[len(self.stack) - length :]
        return items

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if target is OPAQUE:
            return
        if not isinstance(target, dict) or len(items) % 2:
            raise Malformed("values are set on something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # No tuples as keys: a pickle can nest them so that hashing takes exponential time.
            if isinstance(key, str | int):
                target[key] = value

    def append_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if target is OPAQUE:
            return
        if not isinstance(target, list):
            raise Malformed("values are appended to something that is no list")
        target.extend(items)

    def push_int(self, value: int) -> None:
        # Sizes have at most 63 bits. Longer numbers are states of random generators.
        self.stack.append(value if -(2**63) <= value < 2**63 else OPAQUE)

    def push_global(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Malformed("a global's name is not text")
        full = f"{module}.{name}"
        if full not in STORAGE_DTYPES and full not in _CALLS and full not in _DATA:
            raise PickleRefused(full[:80])
        self.stack.append(_Global(full))

    def call(self) -> None:
        target, arguments = self.pop_tuple(2)
        if not isinstance(target, _Global) or not isinstance(arguments, tuple):
            raise Malformed("a call of something that is no function")
        if target.name in _DATA:
            self.stack.append(OPAQUE)
        elif target.name in _CALLS:
            self.stack.append(_CALLS[target.name](*arguments))
        else:
            raise PickleRefused(f"a call of {target.name}")

    def new_object(self) -> None:
        """Run NEWOBJ, which creates an object of a class without initializing it."""
        target, arguments = self.pop_tuple(2)
        if not isinstance(target, _Global) or not isinstance(arguments, tuple):
            raise Malformed("an object of something that is no class")
        if target.name in _DATA:
            self.stack.append(OPAQUE)
        elif target.name in _DICTIONARIES and target.name.endswith("AttributeDict"):
            self.stack.append({})
        else:
            raise PickleRefused(f"the pickle instruction NEWOBJ with {target.name}")

    def set_attributes(self) -> None:
        """Drop attributes: a state_dict()'s module versions, or those of an opaque object."""
        target, _ = self.pop_tuple(2)
        if not isinstance(target, dict | Tensor) and target is not OPAQUE:
            raise PickleRefused("attributes set on something that is no dictionary")
        self.stack.append(target)

    def push_storage(self) -> None:
        kind, storage, key, _location, n_elements = self.stack.pop()
        dtype = STORAGE_DTYPES.get(storage.name) if isinstance(storage, _Global) else None
        described = kind == "storage" and isinstance(key, str) and _is_count(n_elements)
        if dtype is None or not described:
            raise Malformed("a storage is described wrongly")
        self.stack.append(Storage(key, dtype, n_elements))


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, extra: Any = None
) -> Tensor:
    if not (isinstance(shape, tuple) and isinstance(strides, tuple)):
        raise Malformed("a tensor is described wrongly")
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise Malformed("a tensor has too many axes or strides")
    if isinstance(extra, dict) and any(extra.values()):
        raise PickleRefused(f"a tensor with torch's bit for {', '.join(extra)} (resolve it first)")
    if not isinstance(storage, Storage) or not all(map(_is_count, (offset, *shape, *strides))):
        raise Malformed("a tensor is described wrongly")
    last = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if 0 not in shape and offset + last >= storage.n_elements:
        raise Malformed("a tensor reaches past the end of its storage")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(data: Any, grad: Any, hooks: Any, state: Any = None) -> Tensor:
    if not isinstance(data, Tensor):
        raise Malformed("a parameter holds no tensor")
    return data


def _rebuild_from_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """Rebuild a tensor that has attributes of its own, which are dropped."""
    rebuilds = isinstance(function, _Global) and function.name.startswith("torch._utils._rebuild_")
    if rebuilds and function.name in _DATA:
        return OPAQUE
    if not rebuilds or not isinstance(kind, _Global) or not isinstance(arguments, tuple):
        raise PickleRefused("torch._tensor._rebuild_from_type_v2 of what is no tensor")
    return _CALLS[function.name](*arguments)


def _dictionary(*arguments: Any) -> dict[Any, Any]:
    """Return an empty dictionary, or a Counter's argument; other items are set afterwards."""
    if len(arguments) > 1:
        raise Malformed("a dictionary is made of more than one argument")
    # No copy: copies of one long dictionary could fill the memory.
    return arguments[0] if arguments and isinstance(arguments[0], dict) else {}


def _numpy_array(*arguments: Any) -> Any:
    """Skip an array, such as a random generator's state."""
    if len(arguments) != 3 or arguments[0] != _Global("numpy.ndarray"):
        raise PickleRefused("a call of numpy.core.multiarray._reconstruct for what is no array")
    return OPAQUE


_CALLS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_DICTIONARIES, _dictionary),
    "numpy.core.multiarray._reconstruct": _numpy_array,
    "numpy._core.multiarray._reconstruct": _numpy_array,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
}


def _skip_items(machine: _Machine, argument: Any) -> None:
    machine.pop_to_mark()


def _push_opaque(machine: _Machine, argument: Any) -> None:
    machine.stack.append(OPAQUE)


def _push_frozenset(machine: _Machine, argument: Any) -> None:
    machine.pop_to_mark()
    machine.stack.append(OPAQUE)


def _push(machine: _Machine, value: Any) -> None:
    machine.stack.append(value)


def _nothing(machine: _Machine, argument: Any) -> None:
    pass


def _store(machine: _Machine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]


def _fetch(machine: _Machine, index: int) -> None:
    machine.stack.append(machine.memo[index])


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _nothing),
    **dict.fromkeys(("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), _push),
    **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"), _push),
    **dict.fromkeys(("FLOAT", "BINFLOAT"), _push),
    **dict.fromkeys(
        ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"), _Machine.push_int
    ),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _store),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _fetch),
    "MEMOIZE": lambda m, _: _store(m, len(m.memo)),
    "NONE": lambda m, _: _push(m, None),
    "NEWTRUE": lambda m, _: _push(m, True),
    "NEWFALSE": lambda m, _: _push(m, False),
    "MARK": lambda m, _: _push(m, _MARK),
    "EMPTY_TUPLE": lambda m, _: _push(m, ()),
    "TUPLE1": lambda m, _: _push(m, m.pop_tuple(1)),
    "TUPLE2": lambda m, _: _push(m, m.pop_tuple(2)),
    "TUPLE3": lambda m, _: _push(m, m.pop_tuple(3)),
    "TUPLE": lambda m, _: _push(m, tuple(m.pop_to_mark())),
    "EMPTY_LIST": lambda m, _: _push(m, []),
    "APPEND": lambda m, _: m.append_items([m.stack.pop()]),
    "APPENDS": lambda m, _: m.append_items(m.pop_to_mark()),
    "EMPTY_DICT": lambda m, _: _push(m, {}),
    "SETITEM": lambda m, _: m.set_items(list(m.pop_tuple(2))),
    "SETITEMS": lambda m, _: m.set_items(m.pop_to_mark()),
    "GLOBAL": lambda m, argument: m.push_global(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.push_global(*m.pop_tuple(2)),
    "EMPTY_SET": _push_opaque,
    "ADDITEMS": _skip_items,
    "FROZENSET": _push_frozenset,
    "REDUCE": lambda m, _: m.call(),
    "NEWOBJ": lambda m, _: m.new_object(),
    "BUILD": lambda m, _: m.set_attributes(),
    "BINPERSID": lambda m, _: m.push_storage(),
}

"""Tests whether a backend is correct. Needs pytest (`pip install "rwkv-core[conformance]"`):

    pytest --pyargs rwkv_core.conformance --rwkv-backend NAME [--rwkv-option KEY=VALUE ...]

All tests run once for each `dtype` and `runtime_dtype` that the backend's descriptor lists as
choices. `--rwkv-option dtype=float32` selects one type. If the backend refuses a type on this
machine, the tests of this type are skipped with the backend's reason, unless the type is the
default or was given.

The tests cover: arrays to the device and back; each operation against its formula and against the
default of `TensorOps`, at the sizes where implementations switch algorithms (`shapes.py`); models
of each RWKV version against a float64 reference that shares no code with rwkv-core's recurrences
(`references/`); and a model in four threads. Comparisons are in `closeness.py`, with the tolerances
of `rwkv_core.dtypes`.

To exclude a known failure, use pytest's `--deselect`.
"""

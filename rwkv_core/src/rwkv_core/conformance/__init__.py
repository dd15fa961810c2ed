"""Says whether a backend is right. Needs pytest (`pip install "rwkv-core[conformance]"`):

    pytest --pyargs rwkv_core.conformance --rwkv-backend NAME [--rwkv-option KEY=VALUE ...]

Everything is run once for each `dtype` and `runtime_dtype` that the backend's descriptor lists as
choices; `--rwkv-option dtype=float32` fixes one. A type that the backend refuses on this machine
is skipped with the reason it gives, unless it is the default or was asked for.

The tests go from the small to the large: arrays there and back, each operation against its formula
and against the default of `TensorOps` that it overrides, at the sizes where implementations change
over (`shapes.py`), then models of each RWKV version against a float64 reference that shares no code
with rwkv-core's recurrences (`references/`), and a model in four threads. How close is close enough
is one table, in `closeness.py`.

Whoever knows of a gap deselects it with pytest's own `--deselect`, where it is seen.
"""

"""Backends that take float32 matrices as they are: what differs then is the order of sums alone."""

import rwkv_core

FLOAT32 = [
    row.name
    for row in rwkv_core.list_backends()
    if row.status == "ready"
    and any(option.name == "dtype" and "float32" in option.choices for option in row.options)
]

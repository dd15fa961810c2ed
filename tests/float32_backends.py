"""Backends that keep float32 matrices unchanged, and so differ only in the order of sums."""

import rwkv_core

FLOAT32 = [
    row.name
    for row in rwkv_core.list_backends()
    if row.status == "ready"
    and any(option.name == "dtype" and "float32" in option.choices for option in row.options)
]

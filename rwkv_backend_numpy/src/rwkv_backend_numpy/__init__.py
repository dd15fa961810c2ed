"""The NumPy backend of rwkv-core."""

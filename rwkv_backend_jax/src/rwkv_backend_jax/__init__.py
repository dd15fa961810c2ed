"""The JAX backend of rwkv-core."""

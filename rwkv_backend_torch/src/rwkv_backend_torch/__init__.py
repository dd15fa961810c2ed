"""The PyTorch backend of rwkv-core."""

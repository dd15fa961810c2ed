"""The torch backends of rwkv-core for models larger than one device."""

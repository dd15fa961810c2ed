"""The TensorFlow backend of rwkv-core."""

"""The equations of each RWKV version, one file each."""

"""Each RWKV version in float64, in another form than the product's: what backends are held against.

Nothing here comes from the rest of rwkv_core. No state is handed on from token to token: each token
attends to all before it, so an error in a recurrence cannot be repeated here.
"""

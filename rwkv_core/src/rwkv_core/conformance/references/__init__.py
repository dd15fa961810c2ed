"""References for tests of backends: each RWKV version in float64, in another form than rwkv-core's.

This package uses no other code of rwkv_core. No state is passed from token to token: each token
attends to all tokens before it. So an error in a recurrence cannot occur in a reference as well.
"""

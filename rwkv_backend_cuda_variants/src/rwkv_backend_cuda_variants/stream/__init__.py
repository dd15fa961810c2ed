"""torch-stream: matrices beyond a target are copied from host memory ahead of their use."""

"""torch-stream: matrices that do not fit a target are copied from host memory ahead of their use."""

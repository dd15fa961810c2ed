"""torch-stream: matrices that do not fit are copied from host memory ahead of their use."""

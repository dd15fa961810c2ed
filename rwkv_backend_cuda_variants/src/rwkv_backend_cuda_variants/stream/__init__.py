"""torch-stream: matrices that exceed a target are copied from host memory ahead of their use."""

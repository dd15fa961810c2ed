"""torch-stream: matrices that do not fit are copied from host memory just before their use."""

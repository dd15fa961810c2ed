"""The backend `numba`: NumPy arrays, and kernels that Numba compiles."""

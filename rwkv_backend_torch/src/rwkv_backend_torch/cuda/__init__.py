"""Code for CUDA only: CUDA graphs for decoding, and Triton kernels."""

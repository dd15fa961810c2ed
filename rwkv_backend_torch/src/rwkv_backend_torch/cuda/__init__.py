"""What is particular to CUDA: recorded tokens and Triton kernels."""

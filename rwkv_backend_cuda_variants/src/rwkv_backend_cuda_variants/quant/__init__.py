"""torch-quant: matrices in 8 or 4 bits."""

"""torch-split: every matrix is divided over several devices or processes."""

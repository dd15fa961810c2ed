"""torch-split: every matrix is split over several devices or processes."""

"""Measures of a model: its perplexity, its memory, and whether a backend computes it right."""

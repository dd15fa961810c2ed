"""Measures a model's perplexity and memory, and verifies that backends compute it correctly."""

"""Small functions that all packages use, and that have nothing to do with language models."""

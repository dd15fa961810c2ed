"""Small things that every room needs and that know nothing of language models."""

"""Chat templates: they render messages as the text that a model continues."""

"""From logits to text: sampling, stop strings, and the stream that holds them together."""

"""Generation of text: sampling, stop strings, and the stream that uses both."""

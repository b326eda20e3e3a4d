"""Training examples as batches, and the division of them among members."""

"""The examples: image sets as batches, and who sees which."""

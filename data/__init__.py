"""The examples: images and lanes of text as batches, and who sees which."""

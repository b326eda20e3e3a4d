"""The cost of training, part by part: `python -m scripts.benchmark`."""

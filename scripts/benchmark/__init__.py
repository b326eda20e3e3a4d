"""What training costs, part by part: `python -m scripts.benchmark`."""

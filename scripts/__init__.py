"""Chores, thin, each run as `python -m scripts.NAME`."""

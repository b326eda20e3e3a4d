"""Faults done to real runs on purpose, and what came of each."""

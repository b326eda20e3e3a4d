"""Runs and sweeps side by side: a table, a picture, a report."""

"""Checkpoints, and the step folders that Orbax writes."""

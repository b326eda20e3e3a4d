"""Injects faults into real runs, and reports the damage and the recovery."""

"""Starts all members with one command: on this machine, or by an engine."""

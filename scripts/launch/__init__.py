"""One command for all members: on this machine, or through an engine."""

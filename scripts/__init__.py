"""Chores, thin, each run as `python -m scripts.NAME`."""

import experiments  # noqa: F401 - prepares what they print to

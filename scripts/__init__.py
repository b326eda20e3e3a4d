"""Thin command-line tools; run each as `python -m scripts.NAME`."""

import experiments  # noqa: F401 - it prepares standard output

"""Two language models that average their weights (not in the paper).

  python -m experiments.run --config=lm_local_sgd --config.data.data_dir=DIR

Local SGD (Stich, 2019): members learn from disjoint parts of the documents, and
every 50 steps each takes the average of all weights. They start from the same
weights; each keeps the state of its own optimizer. No run at this scale has
been made with this code.

  python -m experiments.run --config=lm_local_sgd:laptop

Two networks of 2 × 64 units on Python sources take two minutes on two CPU
cores. The sweep has averages every 10, 50 and 250 steps, and 2, 4 and 8
members. docs/rivals.md has the algorithm.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import base, lm_sync

VARIANTS = lm_sync.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`lm_sync` with two members that average their weights."""
  return base.average(lm_sync.get_config(variant), 'local_sgd', variant)


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """Averages every 50, 10 and 250 steps; 2, 4 and 8 members."""
  # A run ends with an average.
  return base.averages(variant, {'narrow': 200}.get(variant, 250))

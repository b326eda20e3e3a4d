"""Two language models, DiLoCo (Douillard et al., 2023; not in the paper).

  python -m experiments.run --config=lm_diloco --config.data.data_dir=DIR

Members learn from disjoint parts of the documents. Every 50 steps an outer
optimizer, Nesterov's momentum with rate 0.7 and momentum 0.9, steps on the mean
of their differences, which they publish instead of their weights. No run at
this scale has been made with this code.

  python -m experiments.run --config=lm_diloco:laptop

Two networks of 2 × 64 units on Python sources take two minutes on two CPU
cores. The sweep has outer steps every 10, 50 and 250 inner ones, 2, 4 and 8
members, and other outer rates and momenta. docs/rivals.md has the algorithm.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import base, lm_sync

VARIANTS = lm_sync.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`lm_sync` with two members and an outer optimizer."""
  config = base.average(lm_sync.get_config(variant), 'diloco', variant)
  config.codistill.publish_differences = True
  return config


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """Intervals, members, and four other pairs of outer rate and momentum."""
  return [
    *base.averages(variant, {'narrow': 200}.get(variant, 250)),
    *(
      ({} if rate == 0.7 else {'codistill.outer_learning_rate': rate})
      | ({} if momentum == 0.9 else {'codistill.outer_momentum': momentum})
      for rate, momentum in ((0.4, 0.9), (1.0, 0.9), (0.7, 0.6), (1.0, 0.6))
    ),
  ]

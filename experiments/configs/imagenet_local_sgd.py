"""Two ResNet-50 that average their weights (not in the paper).

  python -m experiments.run --config=imagenet_local_sgd

Local SGD (Stich, 2019): members learn from disjoint halves of the images, and
every 50 steps each takes the average of all weights and of BatchNorm's
statistics. No run at this scale has been made with this code.

  python -m experiments.run --config=imagenet_local_sgd:laptop

Two ResNet-8 on handwritten digits take about a minute on two CPU cores. The
sweep has averages every 10, 50 and 150 steps, and 2, 4 and 8 members.
docs/rivals.md has the algorithm.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import base, imagenet_sync

VARIANTS = imagenet_sync.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`imagenet_sync` with two members that average their weights."""
  return base.average(imagenet_sync.get_config(variant), 'local_sgd', variant)


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """Averages every 50, 10 and 150 steps; 2, 4 and 8 members."""
  return base.averages(variant, 150)

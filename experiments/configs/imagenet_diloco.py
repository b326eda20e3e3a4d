"""Two ResNet-50, DiLoCo (Douillard et al., 2023; not in the paper).

  python -m experiments.run --config=imagenet_diloco

Members learn from disjoint halves of the images. Every 50 steps an outer
optimizer, Nesterov's momentum with rate 0.7 and momentum 0.9, steps on the mean
of their differences; BatchNorm's statistics are averaged. No run at this scale
has been made with this code.

  python -m experiments.run --config=imagenet_diloco:laptop

Two ResNet-8 on handwritten digits take about a minute on two CPU cores. The
sweep has outer steps every 10, 50 and 150 inner ones, and 2, 4 and 8 members.
docs/rivals.md has the algorithm.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import base, imagenet_sync

VARIANTS = imagenet_sync.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`imagenet_sync` with two members and an outer optimizer."""
  config = base.average(imagenet_sync.get_config(variant), 'diloco', variant)
  config.codistill.publish_differences = True
  return config


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """Outer steps every 50, 10 and 150 inner ones; 2, 4 and 8 members."""
  return base.averages(variant, 150)

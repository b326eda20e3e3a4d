"""Initialisation, order, partition: own or same? (Figure 2b, for text).

  python -m experiments.sweep --config=imagenet_diversity:laptop --seeds=3

Two members start from their own weights or the same, draw the data in their own
order or the same, and learn from disjoint parts of it or all of it. The sweep
has every combination but the two of `imagenet_codistill`'s own sweep (own
initialisation and order, either partition). With all three the same the members
stay identical, bit for bit, and teach each other what they already know; this
is the control.

The paper changes the partition alone (Figure 2b, language model) and finds
that different data helps.
"""

import itertools
from typing import Any

from ml_collections import ConfigDict

from experiments.configs import imagenet_codistill

VARIANTS = imagenet_codistill.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`imagenet_codistill`."""
  return imagenet_codistill.get_config(variant)


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """The combinations that `imagenet_codistill` does not have."""
  del variant
  sources = ('initialization', 'order', 'partition')
  return [
    {
      f'diversity.{source}': value
      for source, value in zip(sources, values, strict=True)
    }
    for values in itertools.product(('own', 'same'), repeat=3)
    if values[:2] != ('own', 'own')
  ]

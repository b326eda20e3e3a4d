"""Two language models on the same documents (Figure 2b, §3.3).

  python -m experiments.sweep --config=lm_same_data:reduced --seeds=3

Both members draw from all documents, each in its own order; in the second point
both in the same order, so that they read the same words at the same time. The
paper shows the first (Figure 2b: 3.99 nats at the end, 3.91 with disjoint
documents).
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import lm_codistill

VARIANTS = lm_codistill.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`lm_codistill` without a partition."""
  config = lm_codistill.get_config(variant)
  config.diversity.partition = 'same'
  return config


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """Each member's own order, and the same for both."""
  del variant
  return [{}, {'diversity.order': 'same'}]

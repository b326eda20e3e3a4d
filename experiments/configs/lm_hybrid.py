"""Codistillation between pairs that average their weights (not in the paper).

  python -m experiments.run --config=lm_hybrid --config.data.data_dir=DIR

Four language models learn from disjoint quarters of the documents. Members 0
and 1 average their weights every 50 steps, as in `lm_local_sgd`, and so do 2
and 3. After the burn-in, 0 and 2 also teach each other, and 1 and 3. No run at
this scale has been made with this code.

  python -m experiments.run --config=lm_hybrid:laptop

Networks of 2 × 64 units on Python sources take five minutes on two CPU cores.
The sweep has local SGD and DiLoCo inside the pairs. Four members that are all
averaged are a point of `lm_local_sgd`, and four that codistil one of
`lm_topology`.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import lm_codistill, lm_local_sgd

VARIANTS = lm_codistill.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`lm_local_sgd` with two pairs, and the burn-in of `lm_codistill`."""
  config = lm_local_sgd.get_config(variant)
  config.codistill.members = 4
  config.codistill.group_size = 2
  config.codistill.burn_in_steps = lm_codistill.get_config(
    variant
  ).codistill.burn_in_steps
  return config


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """Local SGD inside the pairs, and DiLoCo."""
  del variant
  return [{}, {'codistill.method': 'diloco'}]

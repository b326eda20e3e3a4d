"""Click networks: reload, burn-in, partition (§3.5, not stated).

  python -m experiments.sweep --config=criteo_choices:reduced --seeds=5

Changes `criteo_codistill` in one way at a time: peers are reloaded more and
less often, ψ is switched on earlier and later, and members read disjoint halves
of the rows instead of all.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import criteo_codistill

VARIANTS = criteo_codistill.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`criteo_codistill`."""
  return criteo_codistill.get_config(variant)


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """One change at a time."""
  config = get_config(variant).codistill
  burn_in, interval = config.burn_in_steps, config.reload_interval_steps
  return [
    {'codistill.reload_interval_steps': 1},
    {'codistill.reload_interval_steps': 4 * interval},
    {'codistill.burn_in_steps': 0},
    {'codistill.burn_in_steps': 2 * burn_in},
    {'diversity.partition': 'own'},
  ]

r"""A member of `lm_rivals` dies half-way, or is slow (not in the paper).

  python -m experiments.sweep --config=lm_rivals_faults:laptop --seeds=3

Member 1 makes no more updates after half of the steps, and its last weights
stay with member 0. Averages leave out weights that are older than an interval
of 50 steps; a teacher may be older, or not (`codistill.max_age_steps`).

A slow member needs a process of its own:

  python -m scripts.launch --config=lm_rivals_faults:laptop \
    --config.fault.kind=slow --config.fault.step=1

Runs of `:laptop` take two to four minutes on a core; a member that takes ten
times as long for an update, twenty.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import lm_rivals

VARIANTS = lm_rivals.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`lm_rivals`, every 50 steps at `:laptop`, without a fault."""
  config = lm_rivals.get_config(variant)
  config.fault.member = 1
  config.fault.step = config.num_steps // 2
  return config


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """Death, with three methods; and without a teacher that is old."""
  often = get_config(variant).codistill.reload_interval_steps
  death = {'fault.kind': 'death'}
  return [
    death | method
    for method in (
      lm_rivals.CODISTILLATION,
      lm_rivals.CODISTILLATION | {'codistill.max_age_steps': often},
      lm_rivals.LOCAL_SGD,
      lm_rivals.diloco(variant),
    )
  ]

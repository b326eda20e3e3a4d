"""Three tries for each way of `lm_rivals`, for its rates (not in the paper).

  python -m experiments.sweep --config=lm_rivals_rates:laptop

Half, once and twice the learning rate for members that never meet, twice the
batch, codistillation and local SGD, every 50 steps; three pairs of outer rate
and momentum for DiLoCo. At `:laptop` the fifteen runs take three quarters of
an hour on a core.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import lm_rivals

VARIANTS = lm_rivals.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`lm_rivals`, with the rate in the middle of the tries."""
  config = lm_rivals.get_config(variant)
  if variant == 'laptop':
    config.schedule.constant.rate = 0.008
  return config


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """Three rates for each way but DiLoCo, which has three outer pairs."""
  rate = get_config(variant).schedule.constant.rate
  ways = [
    lm_rivals.apart(variant),
    lm_rivals.one_network(variant),
    lm_rivals.CODISTILLATION,
    lm_rivals.LOCAL_SGD,
  ]
  outer = {
    'codistill.outer_learning_rate': 1.0,
    'codistill.outer_momentum': 0.6,
  }
  return [
    *(
      {key: value for key, value in way.items() if key != lm_rivals.RATE}
      | ({} if factor == 1 else {lm_rivals.RATE: rate * factor})
      for way in ways
      for factor in (1, 1 / 2, 2)
    ),
    *(
      {'codistill.method': 'diloco'} | pair
      for pair in ({}, {'codistill.outer_learning_rate': 0.4}, outer)
    ),
  ]

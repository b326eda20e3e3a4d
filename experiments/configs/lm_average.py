"""Averaged weights, a falling rate: as good? (not in the paper).

  python -m experiments.sweep --config=lm_average:reduced --seeds=3

A running average of the weights, or a rate that falls to zero, costs no second
network. Here members and ensembles are evaluated with their weights and with
the average. Members never meet or codistil, at a constant rate or with a cosine
to zero; those that never meet also start from twice the rate. In one point the
average, instead of the weights, is the teacher.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import lm_codistill

VARIANTS = lm_codistill.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`lm_codistill` with an average of the weights."""
  config = lm_codistill.get_config(variant)
  # As at `:reduced`; in short runs over about a sixth of the steps.
  config.average_decay = {
    'narrow': 0.995,
    'laptop': 0.995,
    'smoke': 0.5,
  }.get(variant, 0.998)
  schedule = config.schedule.warmup_cosine = ConfigDict()
  schedule.initial_rate = 0.0
  schedule.peak_rate = config.schedule.constant.rate
  schedule.warmup_steps = 0
  schedule.num_steps = config.get_oneway_ref('num_steps')
  return config


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """Codistilled and alone, constant and falling rate; averages as teachers.

  At `:reduced` the first two are those of `lm_codistill` and `lm_ensemble`.
  """
  config = get_config(variant)
  alone = {
    'codistill.exchange': 'none',
    'codistill.burn_in_steps': config.num_steps,
    'diversity.partition': 'same',
  }
  falling = {'schedule.name': 'warmup_cosine'}
  twice = 2 * config.schedule.constant.rate
  return [
    *([] if variant == 'reduced' else [{}, alone]),
    falling,
    falling | alone,
    falling | alone | {'schedule.warmup_cosine.peak_rate': twice},
    {'codistill.publish_average': True},
  ]

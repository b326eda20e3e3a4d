"""Stale gradients against stale teachers (§2.1, no curve).

  python -m experiments.sweep --config=staleness_contrast:reduced

The paper says that outputs have a meaning and weights do not, so an old teacher
should harm less than an old gradient; it shows no curve. Here one axis has
both: asynchronous SGD with gradients that are d updates old (W = d + 1 workers,
at the baseline's learning rate and at a quarter of it), and two-way
codistillation with teachers that are published at each update and seen d
updates late. Batch, learning rate and steps are those of `lm_sync` for both.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import lm_codistill

VARIANTS = lm_codistill.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`lm_codistill`, published at each update."""
  config = lm_codistill.get_config(variant)
  config.codistill.reload_interval_steps = 1
  return config


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """Delays of teachers, then as many of gradients, at two learning rates."""
  config = get_config(variant)
  rate = config.schedule.constant.rate
  delays = {'smoke': (1, 3)}.get(variant, (1, 7, 31, 127))
  # A publication is seen at the next update at the earliest.
  teachers = [
    {'codistill.delay_steps': delay - 1} if delay > 1 else {}
    for delay in delays
  ]
  gradients = [
    {
      'codistill.members': 1,
      'codistill.exchange': 'none',
      'codistill.burn_in_steps': config.num_steps,
      'diversity.partition': 'same',
      'num_async_workers': delay + 1,
    }
    | ({} if factor == 1 else {'schedule.constant.rate': factor * rate})
    for factor in (1, 0.25)
    for delay in delays
  ]
  return [*gradients, *teachers]

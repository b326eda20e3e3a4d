"""Ways for two language models to exchange weights (not in the paper).

  python -m experiments.sweep --config=lm_rivals:laptop --seeds=3

Two members learn from disjoint halves of the documents. Every 10, 50 or 250
steps they teach each other (codistillation), average their weights (local SGD)
or take an outer step (DiLoCo); at 50 steps also with int8. Members that never
meet, and one network with twice the batch (synchronous SGD), are the two ends
of communication. All see the same number of tokens. `scripts.figures rivals`
draws the loss at the end over the bytes that a member sends a step.

Networks of 2 × 128 units on Python sources (`:laptop`) take three and a half
minutes a run on a core, all thirteen three quarters of an hour: narrower ones
gain nothing from a peer (`lm_width`). Rates are to be chosen with the first
seed, by `lm_rivals_rates`.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import lm_codistill

VARIANTS = lm_codistill.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`lm_codistill`; at `:laptop` twice as wide, for half of the steps."""
  config = lm_codistill.get_config(variant)
  if variant == 'laptop':
    config.num_steps = 500
    config.codistill.burn_in_steps = 125
    # The averages of every interval fall on some.
    config.eval_interval_steps = 50
    config.model.lstm.hidden_size = 128
    config.model.lstm.embedding_size = 128
    # For now: `lm_rivals_rates` is to decide.
    config.schedule.constant.rate = 0.008
  return config


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """Never, twice the batch; three methods, three intervals; int8."""
  intervals = {'smoke': (1, 2, 4), 'narrow': (10, 50, 200)}.get(
    variant, (10, 50, 250)
  )
  return [
    apart(variant),
    twice_the_batch(variant),
    *(
      method | ({} if steps == intervals[1] else {_INTERVAL: steps})
      for method in METHODS.values()
      for steps in intervals
    ),
    METHODS['codistillation'] | INT8,
    METHODS['diloco'] | INT8 | {'codistill.publish_differences': True},
  ]


_INTERVAL = 'codistill.reload_interval_steps'
INT8 = {'codistill.publish_precision': 'int8'}
METHODS: dict[str, dict[str, Any]] = {
  'codistillation': {},
  'local_sgd': {'codistill.method': 'local_sgd'},
  'diloco': {'codistill.method': 'diloco'},
}


def apart(variant: str) -> dict[str, Any]:
  """Members that never meet."""
  steps = get_config(variant).num_steps
  return {'codistill.exchange': 'none', 'codistill.burn_in_steps': steps}


def twice_the_batch(variant: str) -> dict[str, Any]:
  """One network that learns from what both members learn from."""
  config = get_config(variant)
  point = {'codistill.members': 1, 'batch_size': 2 * config.batch_size}
  if variant == 'laptop':
    # The best of its three tries.
    point['schedule.constant.rate'] = config.schedule.constant.rate / 2
  return apart(variant) | point

"""Ways for two language models to exchange weights (not in the paper).

  python -m experiments.sweep --config=lm_rivals:laptop --seeds=3

Two members learn from disjoint halves of the documents. Every 10, 50 or 250
steps they teach each other (codistillation), average their weights (local SGD)
or take an outer step (DiLoCo); at 50 steps also with int8. Members that never
meet, and one network with twice the batch (synchronous SGD), are the two ends
of communication. All see the same number of tokens. `scripts.figures rivals`
draws the loss at the end over the bytes that a member sends a step.

Networks of 2 × 128 units on Python sources (`:laptop`) take three minutes a run
on a core, all thirteen forty. At `:laptop` the rates are the best of three
tries with the first seed and an interval of 50 steps (`lm_rivals_rates`).
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
    # The best of three tries for all that exchange weights or add up gradients,
    # except DiLoCo, which was tried at half of it.
    config.schedule.constant.rate = 0.016
  return config


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """Never, twice the batch; three methods, three intervals; int8."""
  intervals = {'smoke': (1, 2, 4), 'narrow': (10, 50, 200)}.get(
    variant, (10, 50, 250)
  )
  burn_in = get_config(variant).codistill.burn_in_steps
  # Before the first interval ends only initial weights are published, and they
  # teach nothing.
  later = {_INTERVAL: intervals[2], _BURN_IN: max(burn_in, intervals[2])}
  seldom = {_INTERVAL: intervals[2]}
  return [
    apart(variant),
    one_network(variant),
    *(
      method | often
      for method, last in (
        (CODISTILLATION, later),
        (LOCAL_SGD, seldom),
        (diloco(variant), seldom),
      )
      for often in ({_INTERVAL: intervals[0]}, {}, last)
    ),
    CODISTILLATION | INT8,
    diloco(variant) | INT8 | {'codistill.publish_differences': True},
  ]


_INTERVAL = 'codistill.reload_interval_steps'
_BURN_IN = 'codistill.burn_in_steps'
INT8 = {'codistill.publish_precision': 'int8'}
CODISTILLATION: dict[str, Any] = {}
LOCAL_SGD = {'codistill.method': 'local_sgd'}
RATE = 'schedule.constant.rate'


def diloco(variant: str) -> dict[str, Any]:
  """An outer step on the mean of what members changed."""
  outer = {'codistill.outer_learning_rate': 0.4} if variant == 'laptop' else {}
  return {'codistill.method': 'diloco'} | outer | _half_the_rate(variant)


def apart(variant: str) -> dict[str, Any]:
  """Members that never meet."""
  steps = get_config(variant).num_steps
  never = {'codistill.exchange': 'none', _BURN_IN: steps}
  return never | _half_the_rate(variant)


def one_network(variant: str, members: int = 2) -> dict[str, Any]:
  """One network that learns from what so many members learn from."""
  config = get_config(variant)
  return {
    'codistill.exchange': 'none',
    _BURN_IN: config.num_steps,
    'codistill.members': 1,
    'batch_size': members * config.batch_size,
  }


def _half_the_rate(variant: str) -> dict[str, Any]:
  if variant != 'laptop':
    return {}
  return {RATE: get_config(variant).schedule.constant.rate / 2}

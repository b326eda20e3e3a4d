"""Log loss and churn of all click networks (Table 1, §3.5).

  python -m experiments.sweep --config=criteo_table1:laptop --seeds=5

Compares the three arms and a hashed logistic regression with the same
optimizer, which a DNN must beat before its churn means anything. Each seed is a
retrain with another initialisation and another order of the same rows; split,
hashes and burn-in stay the same. Churn compares retrains of one arm, and one
copy of each codistilled pair; five retrains make ten pairs.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import criteo_codistill, criteo_dnn

VARIANTS = criteo_dnn.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`criteo_dnn`."""
  return criteo_dnn.get_config(variant)


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """One DNN, two that never meet, two that codistil; logistic regression."""
  codistill = criteo_codistill.get_config(variant).codistill
  return [
    {},
    {'codistill.members': 2},
    {
      'codistill.members': 2,
      'codistill.exchange': codistill.exchange,
      'codistill.burn_in_steps': codistill.burn_in_steps,
      'codistill.reload_interval_steps': codistill.reload_interval_steps,
    },
    {'model.name': 'click_regression'},
  ]

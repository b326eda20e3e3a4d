"""One of three members goes bad on purpose (not in the paper).

  python -m experiments.sweep --config=failed_peer:reduced --seeds=3

Three members codistil on disjoint thirds of the data. After a given step member
2 learns at 100 times its rate, or noise replaces its weights. The other two go
on with it, with and without the rule that leaves out a peer with a published
task loss of more than three times one's own (`codistill.max_task_loss_ratio`).
Weights that are not finite are never published, under any rule. The paper does
not say what happens when a member fails.

Our runs took three minutes each on handwritten digits (`:laptop`) and a quarter
of an hour on Fashion-MNIST (`:reduced`), two at a time on two CPU cores that
also had other work.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import imagenet_codistill

VARIANTS = imagenet_codistill.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`imagenet_codistill` with three members and no fault."""
  config = imagenet_codistill.get_config(variant)
  config.codistill.members = 3
  config.fault.member = 2
  # Between two publications, so that the mean loss shows it at the next.
  config.fault.step = {
    '': 4_010,
    'gpu': 4_010,
    'reduced': 310,
    'laptop': 310,
    'smoke': 5,
  }[variant]
  return config


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """No fault, a high rate, noise; each without the rule and with it."""
  del variant
  return [
    {'fault.kind': kind} | rule
    for kind in ('none', 'rate', 'noise')
    for rule in ({}, {'codistill.max_task_loss_ratio': 3.0})
  ]

"""Ways for four and eight members to exchange weights (not in the paper).

  python -m experiments.sweep --config=lm_rivals_members:laptop --seeds=3

The members of `lm_rivals`, each with its own part of the documents, exchange
weights every 50 steps: all teach all, each teaches the next in a ring, all
average, or pairs average inside and teach each other (`lm_hybrid`). Members
that never meet, and one network with so many times the batch, are the two ends.
With N members a run learns from N / 2 times the tokens of `lm_rivals`.

Rates are those of two members. No run has been made yet.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import lm_rivals

VARIANTS = lm_rivals.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`lm_rivals`."""
  return lm_rivals.get_config(variant)


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """Never, more batch, three methods and a ring; four members, and eight."""
  ring = {'codistill.topology': 'ring'}
  pairs = lm_rivals.LOCAL_SGD | {'codistill.group_size': 2}
  return [
    {'codistill.members': members} | way
    for members in (4, 8)
    for way in (
      lm_rivals.apart(variant),
      lm_rivals.one_network(variant, members),
      lm_rivals.CODISTILLATION,
      lm_rivals.CODISTILLATION | ring,
      lm_rivals.LOCAL_SGD,
      pairs,
    )
  ]

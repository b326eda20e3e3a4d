"""Compares retrains by their stored predictions, without jax."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from codistill import churn
from experiments import predictions

Row = dict[str, Any]


def compare(one: pathlib.Path, other: pathlib.Path) -> list[Row]:
  """Churn between two runs of one recipe, for all predictions that both stored.

  Args:
    one: workdir of a run.
    other: workdir of another.

  Returns:
    {step, member: its number or 'ensemble', total_variation,
    changed_decisions}, in the order of steps and predictors. A member is
    compared with the same member of the other run.

  Raises:
    ValueError: if they were evaluated on different examples, or a file is
      damaged.
  """
  here, there = predictions.find(one), predictions.find(other)
  rows, same_labels = [], set()
  for (step, who), mine in here.items():
    if (step, who) not in there:
      continue
    theirs = there[step, who]
    (p, labels), (q, other_labels) = mine.open(), theirs.open()
    if (mine.labels, theirs.labels) not in same_labels:
      if not np.array_equal(labels, other_labels) or p.shape != q.shape:
        raise ValueError(
          f'{one} and {other} were evaluated on different examples; compare '
          'runs with the same held-out split'
        )
      same_labels.add((mine.labels, theirs.labels))
    rows.append({'step': step, 'member': who, **churn.churn(p, q)._asdict()})
  return rows

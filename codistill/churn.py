"""Churn: how much predictions differ between two retrains (§3.5, Table 1).

Retrains are runs of one recipe with other seeds. A copy of one codistilled pair
is compared with a copy of another pair, never with the one it learnt with. A
model that predicts nothing has no churn, so churn is shown beside log loss and
accuracy or AUC (Bhojanapalli et al. 2021).

It needs NumPy alone. Predictions are those of `experiments.predictions`: the
probability of class 1 for two classes, else a row of all classes. They may be
mapped from files of any size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Shaped

# Numbers in memory at a time.
_CHUNK = 1 << 20


class Churn(NamedTuple):
  """The difference of two predictors of the same examples; 0 if they are equal.

  Attributes:
    total_variation: ½ Σ |p − q| over the classes, mean over examples, in
      [0, 1]; for two classes it is the paper's mean |Δp|.
    changed_decisions: share of examples for which the most likely class
      differs.
  """

  total_variation: float
  changed_decisions: float


class Score(NamedTuple):
  """Scores of one predictor.

  Attributes:
    log_loss: mean −log p of the right class, in nats.
    accuracy: share of examples for which the most likely class is right.
    auc: for two classes, the probability that a random example of class 1 has a
      higher p than one of class 0, ties counted half; None for more classes,
      and if all examples are of one class.
  """

  log_loss: float
  accuracy: float
  auc: float | None


def churn(
  p: Float32[np.ndarray, '...'], q: Float32[np.ndarray, '...']
) -> Churn:
  """Compares two retrains.

  Args:
    p: predictions of one.
    q: predictions of the other, on the same examples in the same order.

  Raises:
    ValueError: if their shapes differ, or there are no examples.
  """
  if p.shape != q.shape or not len(p):
    raise ValueError(
      f'predictions of shapes {p.shape} and {q.shape} cannot be compared'
    )
  apart, changed = 0.0, 0
  for rows in _chunks(p):
    one, other = p[rows], q[rows]
    distance = np.abs(one.astype(np.float64) - other).sum()
    apart += distance / (1 if p.ndim == 1 else 2)
    changed += np.count_nonzero(_decisions(one) != _decisions(other))
  return Churn(float(apart / len(p)), changed / len(p))


def score(
  p: Float32[np.ndarray, ' examples *classes'],
  labels: Int32[np.ndarray, ' examples'],
) -> Score:
  """Scores predictions.

  Args:
    p: predictions.
    labels: right classes.
  """
  loss, hits = 0.0, 0
  for rows in _chunks(p):
    loss -= np.log(_of_labels(p[rows], labels[rows])).sum()
    hits += np.count_nonzero(_decisions(p[rows]) == labels[rows])
  return Score(
    float(loss / len(p)),
    hits / len(p),
    area_under_curve(p, labels) if p.ndim == 1 else None,
  )


def area_under_curve(
  p: Float32[np.ndarray, ' examples'], labels: Int32[np.ndarray, ' examples']
) -> float | None:
  """Computes the AUC by Mann and Whitney's statistic: exact, ties counted half.

  It keeps one sorted copy of the predictions in memory: 4 bytes an example.

  Args:
    p: probabilities of class 1.
    labels: 0 or 1.

  Returns:
    The area in [0, 1]; None if all labels are the same.
  """
  negatives, positives = (np.sort(p[labels == label]) for label in (0, 1))
  if not len(negatives) or not len(positives):
    return None
  # Counts each pair in order twice, and a tie once.
  ordered = 0
  for rows in _chunks(positives):
    for side in ('left', 'right'):
      below = np.searchsorted(negatives, positives[rows], side)
      ordered += int(below.sum(dtype=np.int64))
  return ordered / (2 * len(negatives) * len(positives))


def _chunks(p: Shaped[np.ndarray, ' examples *classes']) -> Iterator[slice]:
  size = max(1, _CHUNK // max(1, p[:1].size))
  for start in range(0, len(p), size):
    yield slice(start, start + size)


def _decisions(p: np.ndarray) -> np.ndarray:
  """Returns the most likely classes, the first of equally likely ones."""
  return p > 0.5 if p.ndim == 1 else p.argmax(-1)


def _of_labels(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns the probability of the right class; never 0."""
  p = p.astype(np.float64)
  least = np.finfo(np.float32).tiny
  if p.ndim > 1:
    return np.maximum(p[np.arange(len(p)), labels], least)
  # 1 − p is rounded to half of float32's spacing below 1.
  return np.where(labels == 1, np.maximum(p, least), np.maximum(1 - p, 2**-25))

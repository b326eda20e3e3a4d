"""Churn: how much predictions differ between two retrains (§3.5, Table 1).

Retrains are runs of one recipe with other seeds; of a codistilled pair one copy
is compared with one copy of another pair, never the two that learnt together.
A model that predicts nothing churns not at all, so that churn is shown beside
log loss and accuracy or AUC (Bhojanapalli et al. 2021).

NumPy alone. Predictions are those of `experiments.predictions`: of two classes
the probability of class 1, else a row of all classes; they may be mapped from
files of any size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Shaped

# Numbers that are held at a time.
_CHUNK = 1 << 20


class Churn(NamedTuple):
  """Between two predictors of the same examples; 0 if they are the same.

  Attributes:
    total_variation: ½ Σ |p − q| over the classes, mean over examples, in
      [0, 1]; of two classes that is the paper's mean |Δp|.
    changed_decisions: share of examples whose most likely class is another.
  """

  total_variation: float
  changed_decisions: float


class Score(NamedTuple):
  """Of one predictor.

  Attributes:
    log_loss: mean −log p of what was right, in nats.
    accuracy: share of examples whose most likely class is right.
    auc: of two classes, the probability that a random example of class 1 is
      given a higher p than one of class 0, ties counted half; None for more
      classes, and if all examples are of one class.
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
    q: of the other, on the same examples in the same order.

  Raises:
    ValueError: if they are not of as many examples and classes, or of none.
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
    p: what was predicted.
    labels: what was right.
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
  """AUC by the statistic of Mann and Whitney: exact, ties counted half.

  Holds the predictions once in memory, sorted: 4 bytes an example.

  Args:
    p: of class 1.
    labels: 0 or 1.

  Returns:
    The area in [0, 1]; None if all labels are the same.
  """
  negatives, positives = (np.sort(p[labels == label]) for label in (0, 1))
  if not len(negatives) or not len(positives):
    return None
  # Twice the pairs that are in order, where a tie counts as half a pair.
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
  """The most likely classes, the first of several that are as likely."""
  return p > 0.5 if p.ndim == 1 else p.argmax(-1)


def _of_labels(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """What was given to the right class; never 0."""
  p = p.astype(np.float64)
  least = np.finfo(np.float32).tiny
  if p.ndim > 1:
    return np.maximum(p[np.arange(len(p)), labels], least)
  # 1 − p has been rounded to half of float32's spacing below 1.
  return np.where(labels == 1, np.maximum(p, least), np.maximum(1 - p, 2**-25))

"""Churn and scores: known pairs, scikit-learn, chunks of any size."""

import numpy as np
import pytest

from codistill import churn as churn_lib
from codistill.churn import area_under_curve, churn, score

RNG = np.random.default_rng(0)
LABELS = {n: RNG.integers(n, size=1_001).astype(np.int32) for n in (2, 5)}


@pytest.fixture(autouse=True, params=[7, 1 << 20])
def chunk(request, monkeypatch):
  """Many chunks with a partial last one, or one chunk for everything."""
  monkeypatch.setattr(churn_lib, '_CHUNK', request.param)


def predictions(classes, seed=0):
  rng = np.random.default_rng(seed)
  p = rng.dirichlet(np.ones(classes), size=len(LABELS[classes]))
  p = p.astype(np.float32)
  return p[:, 1].copy() if classes == 2 else p


def test_it_is_the_total_variation_distance():
  for p, q, expected in (
    # For two classes it is the mean absolute difference; 0.5 is class 0, as for
    # an argmax.
    ([0.1, 0.5, 0.9, 0.4], [0.3, 0.6, 0.2, 0.6], (1.2 / 4, 3 / 4)),
    (
      [[1, 0, 0], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]],
      [[0, 0, 1], [0.3, 0.5, 0.2], [0.3, 0.2, 0.5]],
      (1.3 / 3, 2 / 3),
    ),
  ):
    found = churn(np.array(p, np.float32), np.array(q, np.float32))
    assert found == pytest.approx(expected)


def test_two_classes_are_the_same_in_one_column_or_two():
  p, q = predictions(2), predictions(2, seed=1)
  both = [np.stack([1 - one, one], axis=1) for one in (p, q)]
  np.testing.assert_allclose(churn(p, q), churn(*both), rtol=1e-6)
  one, two = score(p, LABELS[2]), score(both[0], LABELS[2])
  np.testing.assert_allclose(one[:2], two[:2], rtol=1e-6)


@pytest.mark.parametrize('classes', [2, 5])
def test_it_is_a_distance(classes):
  p, q, r = (predictions(classes, seed) for seed in range(3))
  assert churn(p, p) == (0, 0)
  assert churn(p, q) == churn(q, p)
  assert churn(p, r)[0] <= churn(p, q)[0] + churn(q, r)[0]
  # Shapes must be the same, and there must be examples.
  for one, other in ((p, p[:-1]), (p[:0], p[:0])):
    with pytest.raises(ValueError, match='cannot be compared'):
      churn(one, other)


@pytest.fixture
def metrics():
  """Scikit-learn's, which take a second to import."""
  from sklearn import metrics

  return metrics


@pytest.mark.parametrize('classes', [2, 5])
def test_scores_are_those_of_scikit_learn(classes, metrics):
  p, labels = predictions(classes), LABELS[classes]
  found = score(p, labels)
  exact = p.astype(np.float64)
  if classes > 2:
    exact /= exact.sum(axis=1, keepdims=True)  # scikit-learn requires it.
  wanted = metrics.log_loss(labels, exact)
  assert found.log_loss == pytest.approx(wanted, rel=1e-6)
  decided = p > 0.5 if classes == 2 else p.argmax(-1)
  assert found.accuracy == metrics.accuracy_score(labels, decided)
  auc = metrics.roc_auc_score(labels, p) if classes == 2 else None
  assert found.auc == (auc and pytest.approx(auc, rel=1e-12))


@pytest.mark.parametrize('levels', [1, 2, 10, 300])
def test_auc_counts_ties_half_as_scikit_learn_does(levels, metrics):
  rng = np.random.default_rng(levels)
  p = (rng.integers(levels, size=1_001) / 1_000).astype(np.float32)
  labels = LABELS[2]
  found = area_under_curve(p, labels)
  assert found == pytest.approx(metrics.roc_auc_score(labels, p), rel=1e-12)
  assert area_under_curve(labels.astype(np.float32), labels) == 1
  if levels == 1:
    assert found == 0.5
  # With one class it is unknown.
  assert area_under_curve(p, np.zeros(len(p), np.int32)) is None


def test_what_float32_cannot_tell_from_certain_has_a_finite_loss():
  labels = np.array([1, 0], np.int32)
  tiny = score(np.array([1e-30, 0], np.float32), labels)
  assert tiny.log_loss == pytest.approx(30 * np.log(10) / 2)
  wrong = score(np.array([0, 1], np.float32), labels)
  assert 50 < wrong.log_loss < 60

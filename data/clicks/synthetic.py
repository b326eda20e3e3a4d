"""A synthetic click log with known probabilities of clicks.

It has the shape of the Display Advertising Challenge's log (`data.clicks.log`):
heavy-tailed integers, skewed categories of very different numbers, missing
values, a quarter of clicks. An impression is clicked with the probability

  p = 1 / (1 + exp(−z)),
  z = b + Σ w[c] + Σ (α t + β exp(−t²)) + Σ ⟨u[c], v[c′]⟩ + Σ s[c] t + Σ γ t t′

with categories c and with integers' logarithms t, squashed to (−1, 1). A linear
model of these features cannot represent the bumps and the three kinds of
interactions. One seed determines everything, chunk by chunk, so any part of a
log of any length can be made by itself, the same everywhere.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from jaxtyping import Float

from data.clicks.log import MISSING, NUM_CATEGORIES, NUM_INTEGERS, Rows

# Raise it with any change of the log.
VERSION = 1
_SEED = 20180403
CHUNK_ROWS = 1 << 15
# Number of categories of each field.
CARDINALITIES = (
  *(1_400, 550, 200_000, 80_000, 300, 24, 12_000, 600, 3, 60_000, 5_000),
  *(150_000, 3_000, 26, 10_000, 120_000, 10, 4_500, 2_000, 4, 100_000, 18),
  *(15, 90_000, 100, 70_000),
)
# A field's category c has a probability that falls like 1 / (c + _HEAD).
_HEAD = 2.0
# For each integer: its median, the width of its logarithm's distribution, the
# offset that is subtracted, and the share of missing values.
_MEDIANS = (2, 4, 8, 6, 1_500, 40, 4, 12, 60, 0.6, 2, 0.3, 5)
_WIDTHS = (0.6, 0.9, 0.8, 0.5, 1.1, 0.8, 0.7, 0.5, 0.7, 0.4, 0.6, 0.5, 0.6)
_OFFSETS = (0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
_MISSING_INTEGERS = (0.45, 0, 0.2, 0.2, 0.03, 0.2, 0.04, 0, 0.04, 0.45, 0.04)
_MISSING_INTEGERS += (0.75, 0.2)
# Share of missing values by field, counted from 1.
_MISSING_CATEGORIES = {3: 0.03, 4: 0.03, 6: 0.12, 19: 0.44, 20: 0.44, 22: 0.3}
_MISSING_CATEGORIES |= {25: 0.1, 26: 0.44}

# Parts of the logit; fields and integers are numbered from 1. Scales are
# standard deviations, except for the effects of skew and missing values.
_BIAS = -2.92
_MAIN_SCALE = 0.12
# Only the first so many categories of a field have a weight.
_TELLING = 300
_STRAIGHT_SCALE = 0.25
_CROOKED = {2: 0.5, 3: 0.4, 5: 0.6, 8: 0.5, 9: 0.5, 13: 0.4}
_RANK = 2
_PAIRS = {(6, 14): 0.3, (17, 23): 0.4, (9, 22): 0.5, (9, 20): 0.5}
_SLOPES = {(17, 8): 0.6, (9, 7): 0.6, (20, 11): 0.6}
_PRODUCTS = {(5, 9): 1.0, (4, 6): 0.8}


@dataclasses.dataclass(frozen=True)
class _Truth:
  """Parameters of the logit.

  Attributes:
    main: a weight for each category of each field.
    straight: a slope for each integer.
    missing: a weight for each missing integer.
    pairs: two vectors for the categories of two fields.
    slopes: for each category of a field, the slope of an integer.
  """

  main: list[np.ndarray]
  straight: np.ndarray
  missing: np.ndarray
  pairs: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]
  slopes: dict[tuple[int, int], np.ndarray]


@functools.cache
def _truth() -> _Truth:
  rng = np.random.default_rng((_SEED, 0))

  def normal(scale, *shape):
    return scale * rng.standard_normal(shape)

  return _Truth(
    main=[
      normal(_MAIN_SCALE, size) * (np.arange(size) < _TELLING)
      for size in CARDINALITIES
    ],
    straight=normal(_STRAIGHT_SCALE, NUM_INTEGERS),
    missing=normal(_STRAIGHT_SCALE, NUM_INTEGERS),
    pairs={
      pair: tuple(
        normal((scale / np.sqrt(_RANK)) ** 0.5, CARDINALITIES[one - 1], _RANK)
        for one in pair
      )
      for pair, scale in _PAIRS.items()
    },
    slopes={
      (field, integer): normal(scale, CARDINALITIES[field - 1])
      for (field, integer), scale in _SLOPES.items()
    },
  )


def make_chunk(
  number: int,
) -> tuple[Rows, Float[np.ndarray, ' rows']]:
  """Makes the CHUNK_ROWS rows from number · CHUNK_ROWS on of the endless log.

  Returns:
    The rows, and the true probability of a click for each.
  """
  rng = np.random.default_rng((_SEED, 1, number))
  count = CHUNK_ROWS
  integers = np.empty((NUM_INTEGERS, count), np.int32)
  for i in range(NUM_INTEGERS):
    # Log-logistic.
    chance = rng.random(count)
    odds = (1 - chance) / np.maximum(chance, 1e-12)
    drawn = np.floor((_MEDIANS[i] + _OFFSETS[i]) * odds ** _WIDTHS[i])
    integers[i] = np.minimum(drawn - _OFFSETS[i], 2.0**31 - 1)
    integers[i, rng.random(count) < _MISSING_INTEGERS[i]] = MISSING
  indices = np.empty((NUM_CATEGORIES, count), np.int64)
  there = np.ones((NUM_CATEGORIES, count), bool)
  for f, size in enumerate(CARDINALITIES):
    growth = (size + _HEAD) / _HEAD
    drawn = np.floor(_HEAD * (growth ** rng.random(count) - 1))
    indices[f] = np.minimum(drawn, size - 1)
    there[f] = rng.random(count) >= _MISSING_CATEGORIES.get(f + 1, 0)
  probabilities = 1 / (1 + np.exp(-_logits(integers, indices, there)))
  labels = rng.random(count) < probabilities
  values = (indices + 1).astype(np.uint32) * np.uint32(0x9E3779B1)
  values[~there] = 0
  rows = Rows(labels.astype(np.uint8), integers, values, there)
  return rows, probabilities


def _logits(integers, indices, there):
  truth = _truth()
  gone = integers == MISSING
  # Scaled to be near zero.
  t = np.array(
    [
      (np.log1p(row + offset) - np.log1p(median + offset)) / (1.8 * width)
      for row, offset, median, width in zip(
        np.where(gone, 0, integers), _OFFSETS, _MEDIANS, _WIDTHS, strict=True
      )
    ]
  )
  t = np.tanh(t)
  t[gone] = 0
  logits = _BIAS + truth.straight @ t + truth.missing @ gone
  for integer, scale in _CROOKED.items():
    logits += scale * 3 * (np.exp(-np.square(t[integer - 1])) - 0.6)
  for (one, other), scale in _PRODUCTS.items():
    logits += scale * t[one - 1] * t[other - 1]
  for weights, index, here in zip(truth.main, indices, there, strict=True):
    logits += weights[index] * here
  for (one, other), (left, right) in truth.pairs.items():
    product = left[indices[one - 1]] * right[indices[other - 1]]
    logits += product.sum(-1) * (there[one - 1] & there[other - 1])
  for (field, integer), slopes in truth.slopes.items():
    slope = slopes[indices[field - 1]] * there[field - 1]
    logits += slope * t[integer - 1]
  return logits


def make_rows(first: int, last: int) -> tuple[Rows, np.ndarray]:
  """Makes the rows from `first` to before `last`, with true probabilities."""
  numbers = range(first // CHUNK_ROWS, -(-last // CHUNK_ROWS))
  chunks = [make_chunk(number) for number in numbers]
  begin = first - numbers.start * CHUNK_ROWS
  wanted = slice(begin, begin + last - first)
  rows = (
    np.concatenate(parts, axis=-1)[..., wanted]
    for parts in zip(*(rows for rows, _ in chunks), strict=True)
  )
  return Rows(*rows), np.concatenate([p for _, p in chunks])[wanted]


def entropy(probabilities: np.ndarray) -> np.ndarray:
  """Entropy of each impression in nats: the expected log loss of the truth."""
  p = probabilities
  return -(p * np.log(p) + (1 - p) * np.log1p(-p))

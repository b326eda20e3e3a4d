"""Exact evaluation: each example once, against NumPy on the whole set."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import make_small_dnn

from codistill import sharding
from codistill.evaluate import make_evaluate
from codistill.models import Head, Model, Prediction

EXAMPLES, CLASSES = 43, 5
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(EXAMPLES, 6)).astype(np.float32)
LABELS = RNG.integers(CLASSES, size=EXAMPLES).astype(np.int32)
MODEL = make_small_dnn(input_shape=(6,), num_classes=CLASSES)


@functools.cache
def evaluator(num_devices=1, chunk=None, model=MODEL):
  """Shares compiled programs between tests."""
  mesh = sharding.make_mesh(num_devices)
  evaluate = make_evaluate(
    mesh, loss_chunk_tokens=chunk, metrics={'brier': brier}
  )

  def of_one_network(members, *arguments, **keywords):
    return evaluate([model] * len(members), members, *arguments, **keywords)

  return of_one_network


def brier(labels, log_probs):
  right = jax.nn.one_hot(labels, log_probs.shape[-1])
  return ((jnp.exp(log_probs) - right) ** 2).sum(-1)


@functools.cache
def member(seed):
  return MODEL.init(jax.random.key(seed))


def batches(batch_size=16, examples=EXAMPLES):
  for start in range(0, examples, batch_size):
    rows = slice(start, min(start + batch_size, examples))
    there = rows.stop - start
    missing = batch_size - there
    yield {
      # Padding must not matter: members differ on this.
      'inputs': np.pad(
        INPUTS[rows], ((0, missing), (0, 0)), constant_values=-7
      ),
      'labels': np.pad(LABELS[rows], (0, missing)),
      'mask': np.pad(np.ones(there, np.float32), (0, missing)),
    }


class Written:
  """Keeps what is written, and how much there was at the time."""

  def __init__(self):
    self.labels, self.predictions = [], []

  def __call__(self, labels, predictions):
    self.labels.append(labels)
    self.predictions.append(predictions)

  def joined(self):
    parts = zip(*self.predictions, strict=True)
    return np.concatenate(self.labels), [np.concatenate(one) for one in parts]


@pytest.mark.parametrize(
  ('num_devices', 'chunk', 'batch_size', 'num_members'),
  [(1, None, 16, 1), (8, None, 8, 1), (8, None, 48, 3), (8, 2, 16, 3)],
)
def test_every_example_counts_once_and_is_written_in_order(
  num_devices, chunk, batch_size, num_members
):
  members = [member(seed) for seed in range(num_members)]
  evaluate, written = evaluator(num_devices, chunk), Written()
  result = evaluate(members, batches(batch_size), write=written)
  assert result == evaluate(members, batches(batch_size))
  probs = [
    np.asarray(
      jax.nn.softmax(MODEL.predict(one, jnp.asarray(INPUTS), ())[0].logits),
      np.float64,
    )
    for one in members
  ]
  mean = np.mean(probs, axis=0)
  scores = []
  for p in [*probs, mean]:
    loss = -np.log(p[np.arange(EXAMPLES), LABELS]).mean()
    squares = ((p - np.eye(CLASSES)[LABELS]) ** 2).sum(-1).mean()
    scores.append((np.mean(p.argmax(-1) == LABELS), loss, squares))
  assert result.num_examples == EXAMPLES
  found = [list(one.numbers().values()) for one in result.members]
  np.testing.assert_allclose(found, scores[:num_members], rtol=1e-5)
  if num_members == 1:
    assert result[1:4] == (None, None, None)
  else:
    pairs = [(probs[i], probs[j]) for i in range(num_members) for j in range(i)]
    differ = np.mean([p.argmax(-1) != q.argmax(-1) for p, q in pairs])
    distance = np.mean([np.abs(p - q).sum(-1) / 2 for p, q in pairs])
    assert 0 < differ < 1
    ensemble = list(result.ensemble.numbers().values())
    np.testing.assert_allclose(ensemble, scores[-1], rtol=1e-5)
    np.testing.assert_allclose(result.disagreement, differ, rtol=1e-6)
    np.testing.assert_allclose(result.total_variation, distance, rtol=1e-5)
  # Without padding.
  labels, predictions = written.joined()
  np.testing.assert_array_equal(labels, LABELS)
  wanted = [*probs, mean] if num_members > 1 else probs
  for one, other in zip(predictions, wanted, strict=True):
    assert one.dtype == np.float32
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_two_batches_are_held_however_many_there_are():
  written, held = Written(), []

  def stream():
    for number in range(20):
      # Only the batch before this one may be at work.
      assert len(written.labels) >= number - 1
      held.append(len(jax.live_arrays()))
      yield from batches(examples=16)

  result = evaluator()([member(0)], stream(), write=written)
  assert result.num_examples == 20 * 16
  assert max(held[3:]) <= held[3]


def sure_of(label):
  """A member that has no doubt."""

  def biased(leaf):
    zeros = jnp.zeros_like(leaf)
    is_bias_of_head = leaf.shape == (CLASSES,)
    return zeros.at[label].set(200.0) if is_bias_of_head else zeros

  return jax.tree.map(biased, member(0))


def test_members_that_are_the_same_that_never_agree_or_that_are_broken():
  alike = evaluator()([member(0)] * 2, batches())
  assert alike.disagreement == alike.total_variation == 0
  assert alike.members[0] == alike.members[1]
  scores = map(jax.tree.leaves, (alike.ensemble, alike.members[0]))
  np.testing.assert_allclose(*scores, rtol=1e-6)
  # They are as far apart as they can be.
  apart = evaluator()([sure_of(0), sure_of(3)], batches())
  assert apart.disagreement == apart.total_variation == 1
  broken = jax.tree.map(lambda leaf: leaf * jnp.nan, member(0))
  assert np.isnan(evaluator()([broken], batches()).members[0].task_loss)
  with pytest.raises(ValueError, match='no examples'):
    evaluator()([member(0)], [])


# A network with a memory.


def remember(variables, inputs, seen):
  """Each lane counts its tokens; with more, class 0 gets likelier."""
  seen = seen[:, None] + 1 + jnp.arange(inputs.shape[1], dtype=jnp.float32)
  kernel = jnp.array([[variables['gain'], 0.0]])
  features = seen[..., None] / 1000
  return Prediction(features, Head(kernel, jnp.zeros(2))), seen[:, -1]


REMEMBERING = Model(
  init=lambda key: {'gain': jnp.float32(1)},
  predict=remember,
  forward=lambda variables, inputs, memory, key: None,
  memory=lambda batch_size: jnp.zeros(batch_size),
)


def text(lanes, tokens, length):
  """A stream of zeros in `lanes`, the last of which ends halfway."""
  mask = np.ones((lanes, tokens), np.float32)
  mask[-1, tokens // 2 :] = 0
  labels = np.zeros((lanes, tokens), np.int32)
  for start in range(0, tokens, length):
    part = slice(start, start + length)
    zeros = labels[:, part]
    yield {'inputs': zeros, 'labels': zeros, 'mask': mask[:, part]}


def loss_by_hand(gain, seen):
  return np.log1p(np.exp(-gain * seen / 1000))


@pytest.mark.parametrize(
  ('num_devices', 'chunk', 'length'), [(1, None, 96), (4, 50, 128)]
)
def test_memory_is_carried_and_the_gap_is_that_by_hand(
  num_devices, chunk, length
):
  lanes, tokens, gains = 4, 8 * length, (1.0, -2.0)
  evaluate = evaluator(num_devices, chunk, REMEMBERING)
  members = [{'gain': jnp.float32(gain)} for gain in gains]
  # In training there were three lanes, so the first one is used twice.
  carried = [jnp.array([700.0, 0.0, 50.0]), jnp.array([9.0, 90.0, 900.0])]
  batches = list(text(lanes, tokens, length))
  result = evaluate(members, batches, memories=carried)
  mask = np.concatenate([batch['mask'] for batch in batches], axis=1)
  seen = np.arange(1, tokens + 1)
  # Tokens 257 to 512 of each lane, if it has them.
  asked = mask * (seen > 256) * (seen <= 512)
  assert asked.sum() > 0
  for member, (gain, start) in enumerate(zip(gains, carried, strict=True)):
    zero = loss_by_hand(gain, np.tile(seen, (lanes, 1)))
    warm = loss_by_hand(gain, np.asarray(start)[[0, 1, 2, 0], None] + seen)
    loss, gap = result.members[member].task_loss, result.memory_gap[member]
    wanted = (zero * mask).sum() / mask.sum()
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    wanted = ((zero - warm) * asked).sum() / asked.sum()
    np.testing.assert_allclose(gap, wanted, rtol=1e-4)
  assert result.memory_gap[0] > 0.01 > -0.01 > result.memory_gap[1]
  assert result.num_examples == mask.sum()
  # Asking for the gap changes nothing else.
  assert evaluate(members, batches) == result._replace(memory_gap=None)


@pytest.mark.parametrize(('num_devices', 'chunk'), [(1, None), (4, 50)])
def test_each_token_is_an_example_and_of_two_classes_one_is_written(
  num_devices, chunk
):
  evaluate = evaluator(num_devices, chunk, REMEMBERING)
  written = Written()
  evaluate([{'gain': jnp.float32(2)}], text(4, 96, 32), write=written)
  labels, [p] = written.joined()
  # Batch by batch, lane by lane; the last lane is empty from token 48 on.
  seen = np.concatenate(
    [np.tile(np.arange(first, first + 32), 3) for first in (1, 33, 65)]
  )
  seen = np.insert(seen, 96, np.arange(1, 33))
  seen = np.insert(seen, 128 + 96, np.arange(33, 49))
  assert labels.shape == p.shape == (4 * 96 - 48,)
  np.testing.assert_allclose(p, 1 / (1 + np.exp(2 * seen / 1000)), rtol=1e-5)


def test_no_gap_is_known_of_short_lanes_or_without_a_memory():
  result = evaluator(model=REMEMBERING)(
    [{'gain': jnp.float32(1)}], text(2, 256, 128), memories=[jnp.ones(2)]
  )
  assert result.memory_gap is None
  result = evaluator()([member(0)], batches(), memories=[()])
  assert result.memory_gap is None

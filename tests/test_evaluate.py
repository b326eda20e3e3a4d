"""Exact evaluation: each example once, against NumPy on the whole set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codistill import sharding
from codistill.evaluate import make_evaluate
from codistill.models import Head, Model, Prediction, make_dnn

EXAMPLES, CLASSES = 43, 5


@pytest.fixture(scope='module')
def model():
  return make_dnn(
    input_shape=(6,),
    num_classes=CLASSES,
    hidden=(8,),
    dtype='float32',
    param_dtype='float32',
  )


@pytest.fixture(scope='module')
def examples():
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(EXAMPLES, 6)).astype(np.float32)
  return inputs, rng.integers(CLASSES, size=EXAMPLES).astype(np.int32)


def batches(examples, batch_size):
  for start in range(0, EXAMPLES, batch_size):
    inputs, labels = (part[start : start + batch_size] for part in examples)
    missing = batch_size - len(labels)
    yield {
      # What is padded with must not matter: members differ on this.
      'inputs': np.pad(inputs, ((0, missing), (0, 0)), constant_values=-7),
      'labels': np.pad(labels, (0, missing)),
      'mask': np.pad(np.ones(len(labels), np.float32), (0, missing)),
    }


def by_hand(model, members, examples):
  inputs, labels = examples
  probs = [
    np.asarray(
      jax.nn.softmax(model.predict(one, jnp.asarray(inputs), ())[0].logits),
      np.float64,
    )
    for one in members
  ]
  scores = [
    (
      np.mean(p.argmax(-1) == labels),
      -np.log(p[np.arange(EXAMPLES), labels]).mean(),
    )
    for p in [*probs, np.mean(probs, axis=0)]
  ]
  pairs = [(probs[i], probs[j]) for i in range(len(probs)) for j in range(i)]
  differ = [np.mean(p.argmax(-1) != q.argmax(-1)) for p, q in pairs]
  distances = [np.abs(p - q).sum(-1).mean() / 2 for p, q in pairs]
  return scores, differ, distances


@pytest.mark.parametrize('num_devices', [1, 8])
@pytest.mark.parametrize('batch_size', [8, 16, 48])
@pytest.mark.parametrize('num_members', [1, 3])
def test_counts_every_example_once(
  model, examples, num_devices, batch_size, num_members
):
  members = [model.init(jax.random.key(i)) for i in range(num_members)]
  evaluate = make_evaluate(
    model, sharding.make_mesh(num_devices), loss_chunk_tokens=None
  )
  result = evaluate(members, batches(examples, batch_size))
  scores, differ, distances = by_hand(model, members, examples)
  assert result.num_examples == EXAMPLES
  np.testing.assert_allclose(result.members, scores[:num_members], rtol=1e-5)
  if num_members == 1:
    assert result.ensemble is None
    assert result.disagreement is None
    assert result.total_variation is None
  else:
    np.testing.assert_allclose(result.ensemble, scores[-1], rtol=1e-5)
    np.testing.assert_allclose(result.disagreement, np.mean(differ), rtol=1e-6)
    assert 0 < result.disagreement < 1
    np.testing.assert_allclose(
      result.total_variation, np.mean(distances), rtol=1e-5
    )
    assert 0 < result.total_variation < 1


class Written:
  """Keeps what is written, and how much was there when it was."""

  def __init__(self):
    self.labels, self.predictions = [], []

  def __call__(self, labels, predictions):
    self.labels.append(labels)
    self.predictions.append(predictions)

  def joined(self):
    parts = zip(*self.predictions, strict=True)
    return np.concatenate(self.labels), [np.concatenate(one) for one in parts]


@pytest.mark.parametrize(
  ('num_devices', 'chunk', 'num_members'),
  [(1, None, 1), (8, None, 3), (8, 2, 3)],
)
def test_predictions_are_written_in_order_without_padding(
  model, examples, num_devices, chunk, num_members
):
  members = [model.init(jax.random.key(i)) for i in range(num_members)]
  evaluate = make_evaluate(
    model, sharding.make_mesh(num_devices), loss_chunk_tokens=chunk
  )
  written = Written()
  result = evaluate(members, batches(examples, 16), write=written)
  assert result == evaluate(members, batches(examples, 16))
  labels, predictions = written.joined()
  np.testing.assert_array_equal(labels, examples[1])
  wanted = [
    jax.nn.softmax(model.predict(one, jnp.asarray(examples[0]), ())[0].logits)
    for one in members
  ]
  if num_members > 1:
    wanted.append(np.mean(wanted, axis=0))
  assert len(predictions) == len(wanted)
  for one, other in zip(predictions, wanted, strict=True):
    assert one.dtype == np.float32
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_two_batches_are_held_however_many_there_are(model, examples):
  member = model.init(jax.random.key(0))
  evaluate = make_evaluate(model, sharding.make_mesh(1), loss_chunk_tokens=None)
  written, held = Written(), []

  def stream():
    for number in range(20):
      # The batch before this one may be at work, and no other.
      assert len(written.labels) >= number - 1
      held.append(len(jax.live_arrays()))
      yield from batches(tuple(part[:16] for part in examples), EXAMPLES)

  result = evaluate([member], stream(), write=written)
  assert result.num_examples == 20 * 16
  assert max(held[3:]) <= held[3]


def test_identical_members_never_disagree(model, examples):
  member = model.init(jax.random.key(0))
  evaluate = make_evaluate(model, sharding.make_mesh(1), loss_chunk_tokens=None)
  result = evaluate([member, member], batches(examples, 16))
  assert result.disagreement == result.total_variation == 0
  assert result.members[0] == result.members[1]
  np.testing.assert_allclose(result.ensemble, result.members[0], rtol=1e-6)


def test_members_that_never_agree_are_as_far_apart_as_can_be(model, examples):
  def sure_of(label):
    def biased(leaf):
      zeros = jnp.zeros_like(leaf)
      is_bias_of_head = leaf.shape == (CLASSES,)
      return zeros.at[label].set(200.0) if is_bias_of_head else zeros

    return jax.tree.map(biased, model.init(jax.random.key(0)))

  evaluate = make_evaluate(model, sharding.make_mesh(1), loss_chunk_tokens=None)
  result = evaluate([sure_of(0), sure_of(3)], batches(examples, 16))
  assert result.disagreement == result.total_variation == 1


def test_a_broken_member_scores_what_it_deserves(model, examples):
  broken = jax.tree.map(
    lambda leaf: jnp.full_like(leaf, jnp.nan), model.init(jax.random.key(0))
  )
  evaluate = make_evaluate(model, sharding.make_mesh(1), loss_chunk_tokens=None)
  assert np.isnan(
    evaluate([broken], batches(examples, 16)).members[0].task_loss
  )


def test_no_examples_are_refused(model):
  evaluate = make_evaluate(model, sharding.make_mesh(1), loss_chunk_tokens=None)
  with pytest.raises(ValueError, match='no examples'):
    evaluate([model.init(jax.random.key(0))], [])


# A network with a memory.


def remember(variables, inputs, seen):
  """Each lane counts its tokens; the more, the likelier is the class 0."""
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
    yield {
      'inputs': labels[:, part],
      'labels': labels[:, part],
      'mask': mask[:, part],
    }


def loss_by_hand(gain, seen):
  return np.log1p(np.exp(-gain * seen / 1000))


@pytest.mark.parametrize(
  ('num_devices', 'chunk', 'length'), [(1, None, 96), (4, 50, 128)]
)
def test_memory_is_carried_and_the_gap_is_that_by_hand(
  num_devices, chunk, length
):
  lanes, tokens, gains = 4, 8 * length, (1.0, -2.0)
  evaluate = make_evaluate(
    REMEMBERING, sharding.make_mesh(num_devices), loss_chunk_tokens=chunk
  )
  members = [{'gain': jnp.float32(gain)} for gain in gains]
  # In training there were three lanes, so the first comes twice.
  carried = [jnp.array([700.0, 0.0, 50.0]), jnp.array([9.0, 90.0, 900.0])]
  batches = list(text(lanes, tokens, length))
  result = evaluate(members, batches, memories=carried)
  mask = np.concatenate([batch['mask'] for batch in batches], axis=1)
  seen = np.arange(1, tokens + 1)
  # Tokens 257 to 512 of each lane, as far as they are there.
  asked = mask * (seen > 256) * (seen <= 512)
  assert asked.sum() > 0
  for member, (gain, start) in enumerate(zip(gains, carried, strict=True)):
    zero = loss_by_hand(gain, np.tile(seen, (lanes, 1)))
    warm = loss_by_hand(gain, np.asarray(start)[[0, 1, 2, 0], None] + seen)
    np.testing.assert_allclose(
      result.members[member].task_loss,
      (zero * mask).sum() / mask.sum(),
      rtol=1e-5,
    )
    np.testing.assert_allclose(
      result.memory_gap[member],
      ((zero - warm) * asked).sum() / asked.sum(),
      rtol=1e-4,
    )
  assert result.memory_gap[0] > 0.01 > -0.01 > result.memory_gap[1]
  assert result.num_examples == mask.sum()
  # Asking for the gap changes nothing else.
  assert evaluate(members, batches) == result._replace(memory_gap=None)


@pytest.mark.parametrize(('num_devices', 'chunk'), [(1, None), (4, 50)])
def test_each_token_is_an_example_and_of_two_classes_one_is_written(
  num_devices, chunk
):
  evaluate = make_evaluate(
    REMEMBERING, sharding.make_mesh(num_devices), loss_chunk_tokens=chunk
  )
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


def test_no_gap_is_known_of_short_lanes_or_without_a_memory(model, examples):
  evaluate = make_evaluate(
    REMEMBERING, sharding.make_mesh(1), loss_chunk_tokens=None
  )
  short = list(text(2, 256, 128))
  members = [{'gain': jnp.float32(1)}]
  assert evaluate(members, short, memories=[jnp.ones(2)]).memory_gap is None
  evaluate = make_evaluate(model, sharding.make_mesh(1), loss_chunk_tokens=None)
  member = model.init(jax.random.key(0))
  result = evaluate([member], batches(examples, 16), memories=[()])
  assert result.memory_gap is None

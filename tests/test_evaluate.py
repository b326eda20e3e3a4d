"""Exact evaluation: each example once, against NumPy on the whole set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codistill import sharding
from codistill.evaluate import make_evaluate
from codistill.models import make_dnn

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

"""The chunked loss: values and gradients of the plain one, and no big array."""

import dataclasses
import functools
import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from networks import assert_close

from codistill import losses, sharding
from codistill.evaluate import make_evaluate
from codistill.models import Head, Model, Prediction
from codistill.train_state import TrainState
from codistill.train_step import make_objective

WORDS, WIDTH, LANES, TIME = 13, 4, 8, 5
ROUNDING = {'rtol': 2e-5, 'atol': 1e-6}
UNIGRAM = np.arange(1, WORDS + 1, dtype=np.float32) / (WORDS * (WORDS + 1) / 2)


DISTILL_LOSSES = {
  **losses.DISTILL_LOSSES,
  'top_k_kl': functools.partial(losses.top_k_kl, k=3),
}


def every_psi(targets, logits):
  """Each loss with a weight of its own."""
  return sum(
    weight * loss(targets, logits)
    for weight, loss in enumerate(DISTILL_LOSSES.values(), 1)
  )


SCHEDULED = {
  'task_weight': lambda step: 1.5 + step,
  'distill_weight': lambda step: 0.5 * (step + 1.0),
}


def lookup(variables, inputs, memory):
  """A network that compiles fast."""
  params = variables['params']
  head = Head(params['kernel'], params['bias'])
  return Prediction(params['embedding'][inputs], head), memory


MODEL = Model(
  init=lambda key: weights(0),
  predict=lookup,
  forward=lambda v, x, memory, key: (lookup(v, x, memory)[0], {}, memory),
  memory=lambda batch_size: (),
)


def weights(seed, words=WORDS, width=WIDTH, dtype=np.float32):
  rng = np.random.default_rng(seed)
  shapes = {'embedding': (words, width), 'kernel': (width, words)}
  shapes['bias'] = (words,)
  params = {
    name: jnp.asarray(rng.normal(size=shape), dtype)
    for name, shape in shapes.items()
  }
  return {'params': params}


def batch_of(shape, words=WORDS, seed=5):
  rng = np.random.default_rng(seed)
  return {
    name: rng.integers(words, size=shape, dtype=np.int32)
    for name in ('inputs', 'labels')
  }


def valued(mesh, chunk, peers=2, **changes):
  """(params, peers, batch) → value, metrics."""
  settings = {'task_weight': 0.7, 'distill_weight': 1.3, **changes}
  descent = dataclasses.replace(
    losses.ALGORITHM_1, loss_chunk_tokens=chunk, **settings
  )
  descended = make_objective(MODEL, descent, mesh)
  distill = peers > 0 or changes.get('constant_targets') is not None
  key = jax.random.key_data(jax.random.key(0))

  def value(params, peers, batch):
    state = TrainState(jnp.int32(0), {'params': params}, (), (), {}, key, ())
    memories = ((),) * len(peers)
    value, (metrics, *_) = descended(
      params, state, batch, peers, memories, distill
    )
    return value, metrics

  return value


def descent(*arguments, **changes):
  """(params, peers, batch) → (value, metrics), gradients."""
  return jax.value_and_grad(
    valued(*arguments, **changes), argnums=(0, 1), has_aux=True
  )


@pytest.mark.parametrize(
  ('num_devices', 'chunk', 'options'),
  [
    (1, 7, {'distill_loss': every_psi}),
    # 40 tokens at once, one by one; more than there are.
    (1, 40, {'temperature': 2.0}),
    (1, 1, {'peer_average': losses.average_of_logits}),
    (1, 1_000, {'peers': 1}),
    # Weights that are known on the device alone.
    (2, 7, SCHEDULED),
    # 5 a device in chunks of 2 or 1.
    (8, 2, {}),
    # Burn-in, which has no ψ; a constant teacher; labels without time.
    (2, 3, {'peers': 0}),
    (2, 3, {'peers': 0, 'constant_targets': UNIGRAM}),
    (4, 3, {'shape': (LANES * 2,)}),
  ],
)
def test_values_and_gradients_are_those_of_the_plain_loss(
  num_devices, chunk, options
):
  options = dict(options)
  shape, peers = options.pop('shape', (LANES, TIME)), options.pop('peers', 2)
  arguments = (
    weights(0)['params'],
    tuple(weights(seed) for seed in range(1, peers + 1)),
    batch_of(shape),
  )
  mesh = sharding.make_mesh(num_devices)
  part, whole = sharding.split(mesh), sharding.replicated(mesh)
  plain = jax.jit(descent(sharding.make_mesh(1), None, peers, **options))
  ours = jax.jit(
    descent(mesh, chunk, peers, **options), in_shardings=(whole, whole, part)
  )
  found = ours(*arguments)
  expected = plain(*arguments)
  assert_close(found, expected, **ROUNDING)
  (_, metrics), (mine, theirs) = found
  names = {'task_loss', 'accuracy'}
  if peers or options:
    names |= {'distill_loss'}
  if options == SCHEDULED:
    names |= SCHEDULED.keys()
    assert float(metrics['task_weight']) == 1.5
  assert set(metrics) == names
  assert float(max(jnp.abs(x).max() for x in jax.tree.leaves(mine))) > 1e-3
  # No gradient reaches a peer in any way.
  for leaf in jax.tree.leaves((theirs, expected[1][1])):
    np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


def test_a_weight_of_the_loss_is_a_weight_of_its_gradient():
  params, batch = weights(0)['params'], batch_of((LANES, TIME))

  def gradient(chunk, weight):
    value = valued(sharding.make_mesh(1), chunk, 0)
    return jax.jit(jax.grad(lambda p, x: weight * value(p, (), x)[0]))(
      params, batch
    )

  once, thrice = gradient(7, 1.0), gradient(7, 3.0)
  assert_close(jax.tree.map(lambda x: 3 * x, once), thrice, **ROUNDING)


def test_bf16_adds_up_in_float32():
  arguments = (
    weights(0, dtype=jnp.bfloat16)['params'],
    (weights(1, dtype=jnp.bfloat16),),
    batch_of((64, 64)),
  )
  mesh = sharding.make_mesh(1)
  (value, _), (ours, _) = jax.jit(descent(mesh, 8, 1))(*arguments)
  (exact, _), (theirs, _) = jax.jit(descent(mesh, None, 1))(*arguments)
  assert abs(float(value) - float(exact)) < 1e-5
  for one, other in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
    assert one.dtype == jnp.bfloat16
    one, other = (np.asarray(x, np.float32) for x in (one, other))
    assert np.abs(one - other).max() <= 2**-6 * np.abs(other).max()


def equations(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for value in jax.tree.leaves(
      list(equation.params.values()),
      is_leaf=lambda x: isinstance(x, jax.extend.core.Jaxpr),
    ):
      inner = getattr(value, 'jaxpr', value)
      if isinstance(inner, jax.extend.core.Jaxpr):
        yield from equations(inner)


def largest(jaxpr):
  return max(
    math.prod(variable.aval.shape)
    for equation in equations(jaxpr)
    for variable in equation.outvars
  )


def test_no_array_has_all_logits_and_devices_add_up_once():
  words, tokens, chunk = 1_000, 16 * 32, 7
  arguments = (
    weights(0, words)['params'],
    (weights(1, words),),
    batch_of((16, 32), words),
  )
  mesh = sharding.make_mesh(2)
  plain, ours = (
    jax.make_jaxpr(descent(mesh, size, 1))(*arguments).jaxpr
    for size in (None, chunk)
  )
  assert largest(plain) == tokens * words
  assert largest(ours) == chunk * words
  [scan] = [e for e in equations(ours) if e.primitive.name == 'scan']
  inside = {e.primitive.name for e in equations(scan.params['jaxpr'].jaxpr)}
  assert 'dot_general' in inside
  assert not any('psum' in name for name in inside)


def test_evaluation_has_the_same_scores_in_chunks():
  members = [weights(seed) for seed in range(2)]
  rng, shape = np.random.default_rng(0), (LANES, 3 * TIME)
  batches = [
    {**batch_of(shape, seed=seed), 'mask': rng.integers(2, size=shape)}
    for seed in range(2)
  ]
  plain, ours = (
    make_evaluate(sharding.make_mesh(n), loss_chunk_tokens=chunk)(
      [MODEL, MODEL], members, batches
    )
    for n, chunk in ((1, None), (2, 7))
  )
  assert ours.num_examples == sum(batch['mask'].sum() for batch in batches)
  assert ours.memory_gap is None
  assert ours.ensemble.accuracy > 0
  one, other = jax.tree.leaves(plain), jax.tree.leaves(ours)
  np.testing.assert_allclose(one, other, rtol=1e-5)

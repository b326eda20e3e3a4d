"""The two updates: their one difference, memories, sharding, compilations."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import (
  CLASSES,
  SHAPE,
  TOKENS,
  VOCABULARY,
  assert_close,
  in_memory,
  make_small_dnn,
  make_small_lstm,
  make_tiny_resnet,
  sgd,
)

from codistill import losses, sharding
from codistill.algorithm import Member, Peer, codistill
from codistill.models import Head, Model, Prediction
from codistill.models.model import LinearHead, make_feedforward
from codistill.train_state import Network, init_state, place_state
from codistill.train_step import make_objective, make_updates

BATCH = 16
PLAIN_SGD = sgd(0.5, momentum=0.0, weight_decay=0.0)


def state_of(model, member=0):
  return init_state(
    Network(model, sgd()),
    batch_size=BATCH,
    init_key=jax.random.key(member),
    noise_key=jax.random.key(100 + member),
    num_async_workers=1,
  )


def batch_of(step, member=0):
  rng = np.random.default_rng((step, member))
  return {
    'inputs': jnp.asarray(rng.normal(size=(BATCH, *SHAPE)), jnp.float32),
    'labels': jnp.asarray(rng.integers(CLASSES, size=BATCH), jnp.int32),
  }


def updates_of(model, mesh=None, optimizer=None, num_microbatches=1, **changes):
  return make_updates(
    [Network(model, optimizer or sgd())],
    mesh or sharding.make_mesh(1),
    dataclasses.replace(losses.ALGORITHM_1, **changes),
    num_async_workers=1,
    num_microbatches=num_microbatches,
  )


def host(tree):
  return jax.tree.map(np.array, tree)


def largest_difference(one, other):
  each = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), one, other)
  return max(jax.tree.leaves(each))


def peer_of(model, member=1, mesh=None):
  variables = state_of(model, member).variables
  return Peer(
    member, 0, sharding.replicate(variables, mesh) if mesh else variables
  )


def test_the_updates_differ_in_psi_alone():
  model = make_small_dnn()
  peer, updates, batch = peer_of(model), updates_of(model), batch_of(0)
  silent = updates_of(model, distill_weight=0.0)
  alone, metrics = updates.burn_in(state_of(model), batch)
  asked, same = updates.codistill(state_of(model), batch, ())
  unheard, _ = silent.codistill(state_of(model), batch, (peer,))
  taught, both = updates.codistill(state_of(model), batch, (peer,))
  # Without a peer codistill is burn-in.
  assert_close(host((alone, metrics)), host((asked, same)))
  assert largest_difference(alone.variables, unheard.variables) < 1e-7
  assert largest_difference(alone.variables, taught.variables) > 1e-3
  assert 'distill_loss' not in metrics
  # They are logged before weighting, each by itself.
  np.testing.assert_allclose(both['task_loss'], metrics['task_loss'], rtol=1e-6)
  predict = jax.jit(model.predict)
  student, teacher = (
    predict(variables, batch['inputs'], ())[0].logits
    for variables in (state_of(model).variables, peer.variables)
  )
  by_hand = jax.nn.softmax(teacher) * -jax.nn.log_softmax(student)
  by_hand = by_hand.sum(-1).mean()
  np.testing.assert_allclose(both['distill_loss'], by_hand, rtol=1e-5)


@pytest.mark.parametrize('num_microbatches', [1, 4])
def test_norms_are_those_of_all_that_is_descended_before_it_is_clipped(
  num_microbatches,
):
  model, peer = make_small_dnn(), peer_of(make_small_dnn())
  clipped = optax.chain(optax.clip_by_global_norm(1e-3), sgd())
  updates = updates_of(
    model, optimizer=clipped, num_microbatches=num_microbatches
  )
  state, batch = state_of(model), batch_of(0)
  state = dataclasses.replace(
    state, opt_state=clipped.init(state.variables['params'])
  )
  descended = make_objective(model, losses.ALGORITHM_1, sharding.make_mesh(1))
  gradient = jax.jit(jax.grad(descended, has_aux=True), static_argnums=5)
  gradients, _ = gradient(
    state.variables['params'], state, batch, (peer.variables,), ((),), True
  )
  new, metrics = updates.codistill(state, batch, (peer,))
  for name, tree in (
    ('gradient_norm', gradients),
    ('parameter_norm', new.variables['params']),
  ):
    squares = (np.square(leaf).sum() for leaf in jax.tree.leaves(tree))
    np.testing.assert_allclose(metrics[name], sum(squares) ** 0.5, rtol=1e-5)
  assert metrics['gradient_norm'] > 0.01
  # Nobody has said what the rate is.
  assert 'learning_rate' not in metrics


def test_a_constant_teacher_needs_no_peer_and_smooths():
  model = make_small_dnn()
  uniform = np.full(CLASSES, 1 / CLASSES, np.float32)
  updates = updates_of(
    model, constant_targets=uniform, task_weight=0.9, distill_weight=0.1
  )
  smoothed, metrics = updates.codistill(state_of(model), batch_of(0), ())

  # 0.9 φ(y) + 0.1 ψ(uniform) is φ on labels smoothed by 0.1.
  def smooth_loss(labels, logits):
    targets = 0.9 * jax.nn.one_hot(labels, CLASSES) + 0.1 / CLASSES
    return -jnp.sum(targets * jax.nn.log_softmax(logits), -1)

  reference, _ = updates_of(model, task_loss=smooth_loss).burn_in(
    state_of(model), batch_of(0)
  )
  assert largest_difference(smoothed.variables, reference.variables) < 1e-6
  assert float(metrics['distill_loss']) >= np.log(CLASSES) - 1e-6


def test_one_compilation_for_each_number_of_peers_and_the_state_is_donated():
  model, traces, mesh = make_small_dnn(), [], sharding.make_mesh(1)

  def counting(*arguments):
    traces.append(len(arguments))
    return model.forward(*arguments)

  updates = updates_of(dataclasses.replace(model, forward=counting), mesh)
  state = sharding.replicate(state_of(model), mesh)
  peers = [peer_of(model, m, mesh) for m in range(1, 5)]
  teams = peers[:1], peers[1:2], peers[:2], peers[2:], peers[:1], peers[:3]
  for step, team in enumerate(teams):
    before, batch = state, sharding.split_batch(batch_of(step), mesh)
    state, _ = updates.codistill(state, batch, tuple(team))
    for leaf in jax.tree.leaves((before.variables, before.opt_state)):
      assert leaf.is_deleted()
  # One for one, two and three peers each, for any peers.
  assert len(traces) == 3
  # Peers' arrays are not donated.
  for leaf in jax.tree.leaves([peer.variables for peer in peers]):
    assert not leaf.is_deleted()


def test_batch_norm_of_a_teacher_uses_and_keeps_its_statistics():
  model = make_tiny_resnet()
  peer = state_of(model, 1).variables
  moved = jax.tree.map(lambda x: x + 3.0, peer['batch_stats'])
  shifted = {**peer, 'batch_stats': moved}
  updates = updates_of(model)
  one, a = updates.codistill(state_of(model), batch_of(0), (Peer(1, 0, peer),))
  _, b = updates.codistill(state_of(model), batch_of(0), (Peer(1, 0, shifted),))
  assert abs(float(a['distill_loss']) - float(b['distill_loss'])) > 1e-5
  # The student's statistics move, the teacher's do not.
  before = state_of(model).variables['batch_stats']
  assert largest_difference(one.variables['batch_stats'], before) > 1e-3
  assert_close(peer, state_of(model, 1).variables)


# Members of a run.


def codistilled(num_devices):
  """The variables and metrics of two members after five steps."""
  mesh, model = sharding.make_mesh(num_devices), make_tiny_resnet()
  team = [
    Member(
      i,
      sharding.replicate(state_of(model, i), mesh),
      (sharding.split_batch(batch_of(t, i), mesh) for t in range(5)),
    )
    for i in range(2)
  ]
  reports = codistill(team, updates_of(model, mesh), in_memory(2), 2, 5)
  metrics = [host(report.metrics) for report in reports]
  return [host(member.state.variables) for member in team], metrics


def test_eight_devices_equal_one_to_rounding_and_members_stay_apart():
  ours, our_metrics = codistilled(8)
  theirs, their_metrics = codistilled(1)
  for one, other in zip(ours, theirs, strict=True):
    assert largest_difference(one, other) < 2e-5
  assert_close(our_metrics, their_metrics, rtol=1e-4)
  # Members start apart and stay apart.
  assert largest_difference(*theirs) > 0.05


# A network with a memory.


def count_batches(variables, inputs, count):
  """Counts its batches in its carry; its logits are biased by the count."""
  inputs = inputs.reshape(len(inputs), -1)
  features = jnp.concatenate([inputs, count[:, None]], axis=-1)
  return Prediction(features, Head(**variables['params'])), count + 1


def first_weights(key):
  kernel = jax.random.normal(key, (np.prod(SHAPE) + 1, CLASSES)) / 8
  return {'params': {'kernel': kernel, 'bias': jnp.zeros(CLASSES)}}


COUNTER = Model(
  init=first_weights,
  predict=count_batches,
  forward=lambda v, x, n, key: (count_batches(v, x, n)[0], {}, n + 1),
  memory=jnp.zeros,
)


def test_a_peers_memory_is_its_own_and_starts_from_zero_when_admitted():
  updates, state = updates_of(COUNTER), state_of(COUNTER)
  first, second = peer_of(COUNTER, 1), peer_of(COUNTER, 2)
  schedule = [(), (first,), (first,), (second, first), (second,), (first,)]
  for step, peers in enumerate(schedule):
    state, _ = updates.codistill(state, batch_of(step), peers)
  # Mine counts every step; theirs counts the steps at which they taught me.
  np.testing.assert_array_equal(state.memory, np.full(BATCH, 6.0))
  np.testing.assert_array_equal(state.peer_memories[1], np.full(BATCH, 4.0))
  np.testing.assert_array_equal(state.peer_memories[2], np.full(BATCH, 2.0))


# The language model's memory.


def text_of(step, member=0):
  rng = np.random.default_rng((step, member, 7))
  tokens = rng.integers(VOCABULARY, size=(BATCH, TOKENS + 1), dtype=np.int32)
  tokens = jnp.asarray(tokens)
  return {'inputs': tokens[:, :-1], 'labels': tokens[:, 1:]}


def test_a_peers_memory_goes_on_under_the_weights_that_it_has_now():
  model = make_small_lstm(num_layers=1)
  updates, state = updates_of(model), state_of(model)
  memory, predict = model.memory(BATCH), jax.jit(model.predict)
  for step in range(3):
    batch = text_of(step)
    weights = state_of(model, 10 + step).variables
    state, _ = updates.codistill(state, batch, (Peer(4, step, weights),))
    _, memory = predict(weights, batch['inputs'], memory)
  assert set(state.peer_memories) == {4}
  assert largest_difference(host(state.peer_memories[4]), host(memory)) < 1e-5
  # It is not mine.
  assert largest_difference(host(state.memory), host(memory)) > 0.1


def test_no_gradient_reaches_the_batch_before():
  model = make_small_lstm(num_layers=1)
  updates = updates_of(model, optimizer=PLAIN_SGD)
  first, _ = updates.burn_in(state_of(model), text_of(0))
  first = host(first)
  second, _ = updates.burn_in(first, text_of(1))

  def loss(variables, through_time):
    memory = jax.tree.map(jnp.asarray, first.memory)
    if through_time:
      start = model.memory(BATCH)
      _, memory = model.predict(variables, text_of(0)['inputs'], start)
    batch = text_of(1)
    logits = model.predict(variables, batch['inputs'], memory)[0].logits
    return losses.task_cross_entropy(batch['labels'], logits).mean()

  gradient = jax.jit(jax.grad(loss), static_argnums=1)
  here, everywhere = (
    host(gradient(first.variables, flag)) for flag in (False, True)
  )
  change = jax.tree.map(jnp.subtract, first.variables, second.variables)
  step = jax.tree.map(lambda x: x / 0.5, host(change))
  assert largest_difference(step, here) < 1e-5
  assert largest_difference(step, everywhere) > 1e-3


def counted(updates, mesh, num_steps=3):
  """Counts of a member and its peer, lane by lane, after each step."""
  state, seen = place_state(state_of(COUNTER), mesh), []
  peer = peer_of(COUNTER, 1, mesh)
  for step in range(num_steps):
    batch = sharding.split_batch(batch_of(step), mesh)
    state, _ = updates.codistill(state, batch, (peer,))
    seen.append(host((state.memory, state.peer_memories[1])))
  return seen


def drawn_lanes(step, probability):
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(100), step), 1)
  return np.asarray(jax.random.bernoulli(key, probability, (BATCH,)))


@pytest.mark.parametrize(
  ('num_devices', 'probability'), [(1, 0.0), (1, 0.4), (8, 0.4), (1, 1.0)]
)
def test_resets_are_of_the_lanes_that_the_key_and_the_step_draw(
  num_devices, probability
):
  mesh = sharding.make_mesh(num_devices)
  updates = updates_of(COUNTER, mesh, memory_reset_probability=probability)
  expected, drawn = np.zeros(BATCH), []
  for step, seen in enumerate(counted(updates, mesh)):
    lanes = drawn_lanes(step, probability)
    expected = np.where(lanes, 0, expected) + 1
    for carry in seen:
      np.testing.assert_array_equal(carry, expected)
    drawn.append(lanes.tolist())
  if probability in (0, 1):
    assert drawn == [[probability == 1] * BATCH] * 3
  else:  # They are neither none nor all, and not the same ones again.
    assert all(0 < sum(lanes) < BATCH for lanes in drawn)
    assert drawn[1] != drawn[2]


def test_a_reset_zeroes_all_of_a_lane_and_nothing_of_another():
  model, rng = make_small_lstm(), np.random.default_rng(0)
  reset = dataclasses.replace(losses.ALGORITHM_1, memory_reset_probability=0.4)
  objective = make_objective(model, reset, sharding.make_mesh(1))
  carried = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(x.dtype), model.memory(BATCH)
  )
  state = dataclasses.replace(state_of(model), memory=carried)

  @jax.jit
  def after(state):
    params = state.variables['params']
    return objective(params, state, text_of(0), (), (), False)[1][2]

  lanes = drawn_lanes(0, 0.4)
  start = jax.tree.map(lambda x: np.where(lanes[:, None], 0, x), carried)
  _, expected = jax.jit(model.predict)(
    state.variables, text_of(0)['inputs'], start
  )
  assert 0 < lanes.sum() < BATCH
  assert largest_difference(host(after(state)), host(expected)) < 1e-6


@functools.cache
def exact_run(make_model, batch_of, num_devices=1, **changes):
  """Three updates in float64, where rounding cannot hide errors."""
  with jax.enable_x64(True):
    mesh, model = sharding.make_mesh(num_devices), make_model()
    updates = updates_of(model, mesh, optimizer=PLAIN_SGD, **changes)
    state, found = place_state(state_of(model), mesh), []
    peer = peer_of(model, 1, mesh)
    for step in range(3):
      batch = sharding.split_batch(batch_of(step), mesh)
      state, metrics = updates.codistill(state, batch, (peer,))
      found.append(host(metrics))
    # Each device has its lanes of every carry, and only those.
    for carry in jax.tree.leaves((state.memory, state.peer_memories)):
      shapes = {shard.data.shape for shard in carry.addressable_shards}
      assert shapes == {(BATCH // num_devices, 8)}
    return host((state.variables, state.memory, state.peer_memories)), found


exact_lstm = functools.partial(
  make_small_lstm, num_layers=1, dtype='float64', param_dtype='float64'
)


exact_resnet = functools.partial(make_tiny_resnet, 2, dtype='float64')


@pytest.mark.parametrize(
  ('run', 'options', 'difference'),
  [
    ((exact_lstm, text_of, 8), {'loss_chunk_tokens': 5}, 1e-11),
    # One takes a BatchNorm group of two at a time, the other a lane.
    ((exact_lstm, text_of, 2), {'num_microbatches': 4}, 1e-6),
    ((exact_resnet, batch_of, 2), {'num_microbatches': 4}, 1e-6),
  ],
)
def test_a_batch_on_devices_in_chunks_or_in_parts_is_that_of_one_piece(
  run, options, difference
):
  ours, metrics = exact_run(*run, **options)
  theirs, their_metrics = exact_run(*run[:2])
  assert largest_difference(ours, theirs) < difference
  assert_close(metrics, their_metrics, rtol=1e-6)


def test_a_placed_state_has_its_carries_split_and_all_else_whole():
  mesh, model = sharding.make_mesh(8), make_small_lstm()
  state = place_state(state_of(model), mesh)
  assert_close(host(state), host(state_of(model)))
  zero = updates_of(model, mesh).zero_memory(model, BATCH)
  for leaf in jax.tree.leaves((state.memory, zero)):
    assert leaf.sharding.shard_shape(leaf.shape) == (BATCH // 8, 8)
  for leaf in jax.tree.leaves((state.variables, state.opt_state, state.step)):
    assert leaf.sharding.is_fully_replicated


# Noise.


class Dropping(nn.Module):
  """Dropout before the head."""

  @nn.compact
  def __call__(self, inputs, train):
    features = inputs.reshape(len(inputs), -1)
    features = nn.Dropout(0.5, deterministic=not train)(features)
    kernel = nn.initializers.lecun_normal()
    head = LinearHead(CLASSES, jnp.float32, kernel, name='head')
    return Prediction(features, head(features))


def test_noise_follows_the_members_key_and_the_step():
  model = make_feedforward(Dropping(), SHAPE)
  updates = updates_of(model, optimizer=sgd(0.0))

  def task_losses(noise):
    key, found = jax.random.key_data(jax.random.key(noise)), []
    state = dataclasses.replace(state_of(model), key=key)
    for _ in range(2):
      state, metrics = updates.burn_in(state, batch_of(0))
      found.append(float(metrics['task_loss']))
    return found

  first, second = task_losses(1)
  assert task_losses(1) == [first, second] != task_losses(2)
  assert first != second


def test_each_part_of_a_batch_has_noise_of_its_own():
  mesh = sharding.make_mesh(1)
  parts = {'memory_reset_probability': 0.5, 'num_microbatches': 2}
  updates = updates_of(COUNTER, mesh, **parts)
  carry = counted(updates, mesh, num_steps=2)[-1][0]
  halves = np.asarray(carry).reshape(2, -1)
  assert set(halves.ravel()) == {1.0, 2.0}
  assert halves[0].tolist() != halves[1].tolist()

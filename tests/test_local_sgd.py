"""Local SGD and DiLoCo: against their NumPy transcription, and their order."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import assert_close, make_small_dnn, make_tiny_resnet, sgd
from test_algorithm import (
  BATCH,
  CLASSES,
  FEATURES,
  RATE,
  descend,
  forward,
  to_numpy,
)

from codistill import losses, sharding
from codistill.algorithm import Member, Peer
from codistill.exchange.memory import FrozenExchange, InMemoryExchange
from codistill.exchange.rules import ANY_PEER
from codistill.exchange.topology import grouped, make_topology
from codistill.rivals.averaging import (
  AveragingUpdates,
  make_outer_optimizer,
  mean_of,
)
from codistill.rivals.local_sgd import OuterSteps, local_sgd
from codistill.train_state import Network, init_state
from codistill.train_step import make_updates

DILOCO = (0.7, 0.9, True)
LOCAL_SGD = (1.0, 0.0, False)


def add(one, other, factor=1.0):
  return {name: one[name] + factor * other[name] for name in one}


def mean(thetas):
  return {
    name: np.mean([t[name] for t in thetas], axis=0) for name in thetas[0]
  }


def transcription(
  thetas, streams, n_burn_in, num_steps, *, H, d, sees, teachers, outer
):
  """The pseudo-code of `codistill.rivals.local_sgd` in NumPy."""
  rate, momentum, nesterov = outer
  N = range(len(thetas))
  thetas, anchors, past = list(thetas), list(thetas), {0: list(thetas)}
  velocities = [{name: 0 * value for name, value in t.items()} for t in thetas]
  for t in range(1, num_steps + d + 2):
    s = t - 1 - d
    for i in N if s > 0 and s % H == 0 else ():
      pull = add(anchors[i], mean([past[s][j] for j in sees(i)]), -1)
      v = velocities[i] = add(pull, velocities[i], momentum)
      anchors[i] = add(
        anchors[i], add(pull, v, momentum) if nesterov else v, -rate
      )
      thetas[i] = add(anchors[i], add(thetas[i], past[s][i], -1))
    for i in N if t <= num_steps else ():
      inputs, labels = streams[i][t - 1]
      targets = [(np.eye(CLASSES)[labels], 1)]
      if t > n_burn_in and teachers(i):
        stale = [past[max(s - s % H, 0)][j] for j in teachers(i)]
        targets += [
          (np.mean([forward(j, inputs)[1] for j in stale], axis=0), 1)
        ]
      thetas[i] = descend(thetas[i], inputs, targets)
    past[t] = list(thetas)
  return thetas


def examples(members, num_steps):
  rng = np.random.default_rng(0)
  return [
    [
      (rng.normal(size=(BATCH, FEATURES)), rng.integers(CLASSES, size=BATCH))
      for _ in range(num_steps)
    ]
    for _ in range(members)
  ]


@functools.cache
def network_of(model):
  return Network(model, sgd(RATE, momentum=0.0, weight_decay=0.0))


@functools.cache
def inner_updates(model):
  return make_updates(
    [network_of(model)],
    sharding.make_mesh(1),
    losses.ALGORITHM_1,
    num_async_workers=1,
    num_microbatches=1,
  )


@functools.cache
def averaging(model, outer, differences=False, precision='float32'):
  return AveragingUpdates(
    **vars(inner_updates(model)),
    optimizer=make_outer_optimizer(*outer),
    mesh=sharding.make_mesh(1),
    differences=differences,
    publish_precision=precision,
    teacher_precision='float32',
  )


def begin(model, updates, streams, *, delay, start=lambda member: 0):
  """Members with the initial weights that `start` numbers."""
  members = []
  for i, stream in enumerate(streams):
    state = init_state(
      network_of(model),
      batch_size=BATCH,
      num_async_workers=1,
      init_key=jax.random.key(start(i)),
      noise_key=jax.random.key(0),
    )
    batches = (
      {'inputs': jnp.asarray(x), 'labels': jnp.asarray(y)} for x, y in stream
    )
    state = updates.begin(state, is_delayed=delay > 0)
    members.append(Member(i, state, batches))
  return members


def exchange_of(graph, interval, delay, precision='float32'):
  return InMemoryExchange(
    graph,
    reload_interval_steps=interval,
    delay_steps=delay,
    immediate=False,
    rules=ANY_PEER,
    publish_precision=precision,
  )


def trained(outer, differences, d, graph, *, members, H, n_burn_in, num_steps):
  """Both ways: the members at the end, in NumPy and here."""
  streams = examples(members, num_steps)
  if graph == 'pairs of pairs':
    topology, size = grouped(make_topology('all', 2), 2), 2
  else:
    topology, size = make_topology(graph, members), members
  with jax.enable_x64(True):
    sizes = {'input_shape': (FEATURES,), 'num_classes': CLASSES}
    model = make_small_dnn(dtype='float64', param_dtype='float64', **sizes)
    updates = averaging(model, outer, differences)
    start = (lambda member: member // 2) if size == 2 else (lambda _: 0)
    team = begin(model, updates, streams, delay=d, start=start)
    before = [to_numpy(member.state.variables) for member in team]
    exchange, steps = exchange_of(topology, H, d), OuterSteps(H, d, size)
    parts = (team, updates, exchange, steps, n_burn_in, num_steps)
    assert len(list(local_sgd(*parts))) == members * num_steps
    ours = [to_numpy(member.state.variables) for member in team]

  def group(i, *, is_mine):
    seen = topology.teachers(i, 0)
    return [j for j in seen if (j // size == i // size) == is_mine]

  theirs = transcription(
    *(before, streams, n_burn_in, num_steps),
    H=H,
    d=d,
    sees=lambda i: [i, *group(i, is_mine=True)],
    teachers=lambda i: group(i, is_mine=False),
    outer=outer,
  )
  return before, theirs, ours


@pytest.mark.parametrize(
  ('outer', 'differences', 'd', 'graph'),
  [
    (LOCAL_SGD, False, 0, 'all'),
    (LOCAL_SGD, False, 0, 'ring'),
    (LOCAL_SGD, False, 1, 'all'),
    (DILOCO, False, 0, 'all'),
    (DILOCO, True, 0, 'all'),
    (DILOCO, True, 2, 'all'),
    (DILOCO, False, 2, 'ring'),
    ((0.5, 0.9, False), False, 0, 'all'),
    (LOCAL_SGD, False, 0, 'pairs of pairs'),
    (DILOCO, False, 1, 'pairs of pairs'),
  ],
)
def test_equals_the_numpy_transcription(outer, differences, d, graph):
  members = 4 if graph == 'pairs of pairs' else 3
  before, theirs, ours = trained(
    *(outer, differences, d, graph),
    members=members,
    H=3,
    n_burn_in=4,
    num_steps=12,
  )
  for one, other, start in zip(ours, theirs, before, strict=True):
    for name in one:
      assert one[name].dtype == np.float64
      np.testing.assert_allclose(one[name], other[name], rtol=0, atol=1e-12)
      assert np.abs(one[name] - start[name]).max() > 1e-3
  # A run ends with an average, which may come when all steps are made.
  equal = [np.allclose(one['w1'], ours[0]['w1'], 0, 1e-14) for one in ours]
  alone = [True] + [False] * (members - 1)
  alike = {'all': [True] * 3, 'pairs of pairs': [True, True, False, False]}
  assert equal == alike.get(graph, alone)


def test_an_average_of_one_step_of_sgd_is_a_step_with_all_batches():
  """An interval of 1 is synchronous SGD, whatever else is wrong."""
  _, _, ours = trained(
    *(LOCAL_SGD, False, 0, 'all'), members=3, H=1, n_burn_in=9, num_steps=6
  )
  streams = examples(3, 6)
  with jax.enable_x64(True):
    sizes = {'input_shape': (FEATURES,), 'num_classes': CLASSES}
    model = make_small_dnn(dtype='float64', param_dtype='float64', **sizes)
    theta = to_numpy(model.init(jax.random.key(0)))
  for step in range(6):
    inputs, labels = (
      np.concatenate([stream[step][part] for stream in streams])
      for part in (0, 1)
    )
    theta = descend(theta, inputs, [(np.eye(CLASSES)[labels], 1)])
  for name, value in theta.items():
    np.testing.assert_allclose(ours[0][name], value, rtol=0, atol=1e-12)


def small_team(members, H, d=0, **keywords):
  model = make_small_dnn(input_shape=(FEATURES,), num_classes=CLASSES)
  updates = averaging(model, DILOCO, **keywords)
  exchange = exchange_of(
    make_topology('all', members), H, d, keywords.get('precision', 'float32')
  )
  team = begin(model, updates, examples(members, 12), delay=d)
  return team, updates, exchange, OuterSteps(H, d, members)


def params_of(team):
  return [jax.device_get(member.state.variables['params']) for member in team]


@pytest.mark.parametrize('precision', ['bfloat16', 'int8'])
def test_rounded_differences_are_the_same_for_all_and_nearly_exact(precision):
  found = {}
  for one in ('float32', precision):
    parts = small_team(3, 4, differences=True, precision=one)
    list(local_sgd(*parts, 99, 12))
    first, *others = params_of(parts[0])
    for other in others:
      jax.tree.map(np.testing.assert_array_equal, first, other)
    found[one] = to_numpy({'params': first})
  exact, rounded = found['float32'], found[precision]
  gaps = [np.abs(exact[name] - rounded[name]).max() for name in ('w1', 'w2')]
  assert 0 < max(gaps) < 0.01


def test_equal_members_of_16_bits_are_their_average_bit_for_bit():
  model = make_small_dnn(
    input_shape=(FEATURES,), num_classes=CLASSES, param_dtype='bfloat16'
  )
  for differences, delay in ((False, 0), (True, 1)):
    updates = averaging(model, DILOCO, differences)
    [member] = begin(model, updates, [()], delay=delay)
    before = jax.device_get(member.state.variables)
    assert all(leaf.dtype == 'bfloat16' for leaf in jax.tree.leaves(before))
    published = jax.device_get(updates.published(member.state))
    peers = tuple(Peer(other, 5, published) for other in range(1, 8))
    state = updates.outer(member.state, 0, 5, peers)
    jax.tree.map(np.testing.assert_array_equal, before, state.variables)
    # Steps that are too small for 16 bits add up.
    outer = jax.tree.leaves((state.past.params, state.past.opt_state))
    assert all(leaf.dtype == 'float32' for leaf in outer)
  jax.tree.map(np.testing.assert_array_equal, before, mean_of((before,) * 8))


def test_batch_statistics_are_averaged_and_have_no_momentum():
  model = make_tiny_resnet()
  updates = averaging(model, DILOCO, differences=True)
  [member] = begin(model, updates, [()], delay=0)
  stats = member.state.variables['batch_stats']
  assert jax.tree.leaves(stats)
  theirs = jax.tree.map(lambda leaf: leaf + 3, stats)
  zero = jax.tree.map(jnp.zeros_like, member.state.variables['params'])
  peer = Peer(1, 5, {'params': zero, 'batch_stats': theirs})
  expected = jax.device_get(jax.tree.map(lambda leaf: leaf + 1.5, stats))
  before = jax.device_get(member.state.variables['params'])
  state = updates.outer(member.state, 0, 5, (peer,))
  assert_close(state.variables['batch_stats'], expected, rtol=1e-6)
  # Neither member has changed its weights.
  assert_close(state.variables['params'], before)


def test_an_outer_step_is_made_once_though_it_is_asked_for_again():
  team, updates, exchange, steps = small_team(2, 4)
  # Steps up to 8 are made, and 9 would begin with the second outer step.
  reports = local_sgd(team, updates, exchange, steps, 99, 12)
  for _ in itertools.islice(reports, 16):
    apart = params_of(team)
  with pytest.raises(AssertionError):
    jax.tree.map(np.testing.assert_array_equal, *apart)
  steps.make(team, updates, exchange, 9)
  early = params_of(team)
  jax.tree.map(np.testing.assert_array_equal, *early)
  # As after a resume, which does not know that.
  again = OuterSteps(4, 0, 2)
  averaged = again.make(team, updates, exchange, 9)
  assert [[peer.member for peer in averaged[who]] for who in (0, 1)] == [
    [1],
    [0],
  ]
  jax.tree.map(np.testing.assert_array_equal, early, params_of(team))
  # The next report names the peers, and an undisturbed run ends alike.
  assert [peer.step for peer in next(reports).peers] == [8]
  list(reports)
  undisturbed = small_team(2, 4)
  list(local_sgd(*undisturbed, 99, 12))
  jax.tree.map(
    np.testing.assert_array_equal, params_of(team), params_of(undisturbed[0])
  )


def test_between_two_averages_nothing_is_asked_for_and_nothing_copied():
  team, updates, exchange, steps = small_team(2, 4, d=1)
  calls = []

  class Watched(FrozenExchange):
    def offer(self, member, step, variables, task_loss=None):
      calls.append(('offer', member, step, variables is not None))
      exchange.offer(member, step, variables, task_loss)

    def freshest(self, member, step):
      calls.append(('freshest', member, step))
      return exchange.freshest(member, step)

  list(local_sgd(team, updates, Watched(), steps, 99, 8))
  offers = [call for call in calls if call[0] == 'offer' and call[3]]
  assert offers == [('offer', i, s, True) for s in (0, 4, 8) for i in (0, 1)]
  assert [call for call in calls if call[0] == 'freshest'] == [
    ('freshest', i, t) for t in (6, 10) for i in (0, 1)
  ]


def test_groups_see_their_own_and_counterparts_elsewhere():
  graph = grouped(make_topology('ring', 3), 2)
  assert graph.members == 6
  assert [graph.teachers(i, 0) for i in range(6)] == [
    (1, 2),
    (0, 3),
    (3, 4),
    (2, 5),
    (0, 5),
    (1, 4),
  ]
  assert graph.candidates(3) == (2, 5)

"""Algorithm 1: against its NumPy transcription, and the order of events."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import in_memory, make_small_dnn, sgd

from codistill import losses, sharding
from codistill.algorithm import Member, codistill
from codistill.exchange.memory import FrozenExchange
from codistill.train_state import Network, init_state
from codistill.train_step import make_updates

MEMBERS, CLASSES, FEATURES, BATCH = 3, 4, 5, 8
RATE = 0.3


def softmax(logits):
  exps = np.exp(logits - logits.max(-1, keepdims=True))
  return exps / exps.sum(-1, keepdims=True)


def forward(theta, inputs):
  hidden = np.maximum(inputs @ theta['w1'] + theta['b1'], 0)
  return hidden, softmax(hidden @ theta['w2'] + theta['b2'])


def descend(theta, inputs, targets_and_weights):
  """θ − η∇ of Σ w · cross-entropy(targets, F(θ, f)), by hand."""
  hidden, prediction = forward(theta, inputs)
  at_logits = sum(
    weight * (targets.sum(-1, keepdims=True) * prediction - targets)
    for targets, weight in targets_and_weights
  ) / len(inputs)
  at_hidden = (at_logits @ theta['w2'].T) * (hidden > 0)
  gradient = {
    'w1': inputs.T @ at_hidden,
    'b1': at_hidden.sum(0),
    'w2': hidden.T @ at_logits,
    'b2': at_logits.sum(0),
  }
  return {name: theta[name] - RATE * gradient[name] for name in theta}


def algorithm_1(thetas, streams, n_burn_in, num_steps):
  """The paper's pseudo-code in NumPy: Gauss-Seidel, as literally written."""
  thetas = list(thetas)
  for t in range(n_burn_in):
    for i in range(len(thetas)):
      inputs, labels = streams[i][t]
      thetas[i] = descend(thetas[i], inputs, [(np.eye(CLASSES)[labels], 1)])
  for t in range(n_burn_in, num_steps):
    for i in range(len(thetas)):
      inputs, labels = streams[i][t]
      peers = [theta for j, theta in enumerate(thetas) if j != i]
      teacher = np.mean([forward(peer, inputs)[1] for peer in peers], axis=0)
      thetas[i] = descend(
        thetas[i], inputs, [(np.eye(CLASSES)[labels], 1), (teacher, 1)]
      )
  return thetas


def to_numpy(variables):
  params = variables['params']
  return {
    'w1': np.asarray(params['Dense_0']['kernel']),
    'b1': np.asarray(params['Dense_0']['bias']),
    'w2': np.asarray(params['head']['kernel']),
    'b2': np.asarray(params['head']['bias']),
  }


@pytest.mark.parametrize('burn_in', [0, 4])
def test_equals_the_numpy_transcription(burn_in):
  num_steps, rng = 12, np.random.default_rng(0)
  streams = [
    [
      (rng.normal(size=(BATCH, FEATURES)), rng.integers(CLASSES, size=BATCH))
      for _ in range(num_steps)
    ]
    for _ in range(MEMBERS)
  ]
  with jax.enable_x64(True):
    sizes = {'input_shape': (FEATURES,), 'num_classes': CLASSES}
    model = make_small_dnn(dtype='float64', param_dtype='float64', **sizes)
    optimizer = sgd(RATE, momentum=0.0, weight_decay=0.0)
    mesh, descent = sharding.make_mesh(1), losses.ALGORITHM_1
    parts = {'num_async_workers': 1, 'num_microbatches': 1}
    network = Network(model, optimizer)
    updates = make_updates([network], mesh, descent, **parts)
    members = []
    for i, stream in enumerate(streams):
      keys = {'init_key': jax.random.key(i), 'noise_key': jax.random.key(0)}
      sizes = {'batch_size': BATCH, 'num_async_workers': 1}
      state = init_state(network, **sizes, **keys)
      batches = (
        {'inputs': jnp.asarray(x), 'labels': jnp.asarray(y)} for x, y in stream
      )
      members.append(Member(i, state, batches))
    start = [to_numpy(member.state.variables) for member in members]
    exchange = in_memory(MEMBERS, 1, 0, immediate=True)
    reports = list(codistill(members, updates, exchange, burn_in, num_steps))
    ours = [to_numpy(member.state.variables) for member in members]
  theirs = algorithm_1(start, streams, burn_in, num_steps)
  assert len(reports) == MEMBERS * num_steps
  for one, other, before in zip(ours, theirs, start, strict=True):
    for name in one:
      assert one[name].dtype == np.float64
      np.testing.assert_allclose(one[name], other[name], rtol=0, atol=1e-12)
      assert np.abs(one[name] - before[name]).max() > 1e-3


# The order of events, on a tape.


@dataclasses.dataclass(frozen=True)
class TapeState:
  """A state with variables that tell its member and age."""

  member: int
  step: int

  @property
  def variables(self):
    return {'params': np.array([self.member, self.step])}


class Tape:
  """Updates and exchange that record their calls."""

  def __init__(self, exchange):
    self.events = []
    self._exchange = exchange

  def burn_in(self, state, batch):
    self.events.append(('burn_in', state.member, state.step + 1, batch))
    return dataclasses.replace(state, step=state.step + 1), {'task_loss': 0.0}

  def codistill(self, state, batch, peers):
    step = state.step + 1
    self.events.append(('codistill', state.member, step, batch))
    for peer in peers:
      # The copy is what its label says.
      assert peer.variables['params'].tolist() == [peer.member, peer.step]
    return dataclasses.replace(state, step=step), {'task_loss': 0.0}

  def published(self, state):
    return state.variables

  def offer(self, member, step, variables, task_loss=None):
    self.events.append(('offer', member, step))
    self._exchange.offer(member, step, variables, task_loss)

  def freshest(self, member, step):
    self.events.append(('freshest', member, step))
    return self._exchange.freshest(member, step)


def tape_of(exchange, *, members, burn_in, num_steps, start_step=0):
  tape = Tape(exchange)
  team = [
    Member(i, TapeState(i, start_step), itertools.count(start_step))
    for i in range(members)
  ]
  reports = list(codistill(team, tape, tape, burn_in, num_steps, start_step))
  return tape.events, reports


def test_burn_in_asks_for_no_peer_and_the_two_loops_follow_each_other():
  events, reports = tape_of(
    in_memory(2, 1, 0), members=2, burn_in=2, num_steps=3
  )
  steps = [('burn_in', 1), ('burn_in', 2), ('codistill', 3)]
  expected = [('offer', 0, 0), ('offer', 1, 0)]
  for kind, step in steps:
    for member in (0, 1):
      if kind == 'codistill':
        expected.append(('freshest', member, step))
      # Batch 0 is that of step 1.
      expected += [(kind, member, step, step - 1), ('offer', member, step)]
  assert events == expected
  assert [(r.member.index, r.step, r.ends_round) for r in reports] == [
    (member, step, member == 1) for step in (1, 2, 3) for member in (0, 1)
  ]


@pytest.mark.parametrize(
  ('interval', 'delay', 'taught_by'),
  [
    # Step 4 is taught by what was published at step 3, and so on.
    (1, 0, {4: 3, 5: 4, 6: 5, 7: 6, 8: 7, 9: 8, 10: 9}),
    (3, 0, {4: 3, 5: 3, 6: 3, 7: 6, 8: 6, 9: 6, 10: 9}),
    (1, 2, {4: 1, 5: 2, 6: 3, 7: 4, 8: 5, 9: 6, 10: 7}),
    (3, 2, {4: 0, 5: 0, 6: 3, 7: 3, 8: 3, 9: 6, 10: 6}),
  ],
)
def test_publication_and_reload_happen_when_they_should(
  interval, delay, taught_by
):
  _, reports = tape_of(
    in_memory(3, interval, delay), members=3, burn_in=3, num_steps=10
  )
  for report in reports:
    others = [j for j in range(3) if j != report.member.index]
    expected = (
      [(j, taught_by[report.step]) for j in others] if report.step > 3 else []
    )
    assert [(p.member, p.step) for p in report.peers] == expected


def test_a_resumed_run_goes_on_with_the_events_of_an_uninterrupted_one():
  whole, _ = tape_of(in_memory(2, 3, 2), members=2, burn_in=2, num_steps=9)
  exchange = in_memory(2, 3, 2)
  first, _ = tape_of(exchange, members=2, burn_in=2, num_steps=5)
  later = in_memory(2, 3, 2)
  later.restore(exchange.publications())
  second, _ = tape_of(later, members=2, burn_in=2, num_steps=9, start_step=5)
  assert first + second == whole


def test_an_inactive_member_is_left_out_and_the_others_go_on():
  tape = Tape(in_memory(3, 1, 0))
  team = [Member(i, TapeState(i, 0), itertools.count()) for i in range(3)]
  seen = []
  for report in codistill(team, tape, tape, 1, 4):
    seen.append((report.member.index, report.step, report.ends_round))
    if seen[-1][:2] == (2, 2):
      report.member.active = False
  assert seen == [
    *((member, step, member == 2) for step in (1, 2) for member in (0, 1, 2)),
    *((member, step, member == 1) for step in (3, 4) for member in (0, 1)),
  ]


def test_without_peers_a_burn_in_longer_than_the_run_is_the_whole_run():
  events, reports = tape_of(FrozenExchange(), members=1, burn_in=9, num_steps=4)
  kinds = [event[0] for event in events]
  assert kinds == ['offer'] + ['burn_in', 'offer'] * 4
  assert [report.ends_round for report in reports] == [True] * 4

"""The table that every exchange must pass, and what each kind adds."""

import contextlib
import functools
import shutil
import tempfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codistill import precision
from codistill.algorithm import Exchange, Peer
from codistill.exchange import topology
from codistill.exchange.folder.exchange import CheckpointExchange
from codistill.exchange.folder.settings import Settings
from codistill.exchange.memory import FrozenExchange, InMemoryExchange
from codistill.exchange.rules import ANY_PEER
from codistill.precision import FULL

# For the draws of random neighbours: all members draw both others soon, and
# once one of them for long.
SEED = 4
# Closes exchanges in folders, and removes the folders.
EXITS = contextlib.ExitStack()
TEMPORARY = functools.partial(
  tempfile.TemporaryDirectory, prefix='exchange-', ignore_cleanup_errors=True
)


@functools.cache
def numbers(member, step):
  """Weights that tell their member and step."""
  whose = np.float32(100 * member + step)
  thirds = np.arange(12, dtype=np.float32).reshape(3, 4) / 3
  return {
    'params': {
      'b': np.full(4, whose),
      # Any rounding changes some of it, and no two scales are alike.
      'w': (whose + thirds) * np.float32([1, 10, 100, 1000]),
    },
    'batch_stats': {'mean': np.full(2, np.float32(step))},
  }


def variables(member, step):
  return jax.tree.map(jnp.asarray, numbers(member, step))


@functools.cache
def rounded(member, step, published, held):
  """What a member offered, rounded as `codistill.precision` rounds it."""
  offered = numbers(member, step)
  if (published, held) == (FULL, FULL):
    return offered
  sent = precision.encode(offered, published)
  return jax.device_get(precision.convert(sent, offered, published, held))


def look(exchange, member, step):
  """Members and steps of the copies that a member sees, checked."""
  peers = exchange.freshest(member, step)
  for peer in peers:
    jax.tree.map(
      functools.partial(np.testing.assert_array_equal, strict=True),
      jax.device_get(peer.variables),
      rounded(peer.member, peer.step, *exchange.precisions),
    )
  return [(peer.member, peer.step) for peer in peers]


class Kind(NamedTuple):
  """The settings that decide what an exchange shows."""

  interval: int = 1
  delay: int = 0
  graph: str = 'all'
  precisions: tuple[str, str] = (FULL, FULL)

  def make_graph(self, members=3):
    return topology.make_topology(self.graph, members, num_random=1, seed=SEED)


PLAIN = Kind()


def numbers_of(kind):
  return {
    'reload_interval_steps': kind.interval,
    'delay_steps': kind.delay,
    'publish_precision': kind.precisions[0],
    'teacher_precision': kind.precisions[1],
  }


def in_memory(kind=PLAIN, members=3, before=None, immediate=False):
  graph, more = kind.make_graph(members), numbers_of(kind)
  more |= {'immediate': immediate, 'rules': ANY_PEER}
  exchange = InMemoryExchange(graph, **more)
  exchange.precisions = kind.precisions
  return exchange


def in_folder(kind, members=3, before=None):
  """All members in this process, synchronous; `before` gives the folder."""
  if before is not None:
    before.__exit__()
  folder = before.folder if before else EXITS.enter_context(TEMPORARY())
  exchange = CheckpointExchange(
    folder,
    kind.make_graph(members),
    Settings(
      synchronous=True,
      keep_publications=kind.delay // kind.interval + 4,
      keep_s=0.0,
      wait_timeout_s=5.0,
      **numbers_of(kind),
    ),
    members=range(members),
    like=variables(0, 0),
  )
  exchange.folder, exchange.precisions = folder, kind.precisions
  return EXITS.enter_context(exchange)


@pytest.fixture(autouse=True)
def close():
  with EXITS:
    yield


def frozen(kind, before=None):
  peers = tuple(Peer(m, 7, variables(m, 7)) for m in (10, 11))
  exchange = FrozenExchange(peers)
  exchange.precisions = kind.precisions
  return exchange


KINDS = {
  'memory': (in_memory, PLAIN),
  'memory-k3-d2': (in_memory, Kind(3, 2)),
  'memory-ring': (in_memory, Kind(1, 0, 'ring')),
  'memory-random': (in_memory, Kind(3, 1, 'random')),
  'memory-int8': (in_memory, Kind(3, 0, 'all', ('int8', 'int8'))),
  # It publishes rarely, because a publication takes a tenth of a second.
  'folder-int8': (in_folder, Kind(5, 0, 'all', ('bfloat16', 'int8'))),
  'folder-random': (in_folder, Kind(4, 2, 'random')),
  'frozen': (frozen, PLAIN),
}
every_exchange = pytest.mark.parametrize(
  ('make', 'kind'), KINDS.values(), ids=KINDS.keys()
)
NUM_STEPS = 12


def play(exchange, steps, order=(0, 1, 2), after_step=lambda step: None):
  """Lets three members take turns; returns what each saw at each step."""
  if steps[0] == 1:
    for member in range(3):
      exchange.offer(member, 0, variables(member, 0))
  seen = {}
  for step in steps:
    for member in order:
      seen[member, step] = look(exchange, member, step)
      exchange.offer(member, step, variables(member, step), jnp.float32(1))
    after_step(step)
  return seen


def expected(kind, member, step):
  """Copies that a member sees: one published at s, from s + 1 + delay on."""
  visible = step - 1 - kind.delay
  if visible < 0:
    return []
  teachers = kind.make_graph().teachers(member, visible // kind.interval)
  return [(peer, visible - visible % kind.interval) for peer in teachers]


@every_exchange
def test_a_publication_at_s_is_seen_from_s_plus_1_plus_delay(make, kind):
  """It holds for any order of members, and after a resume at any step."""
  in_a_folder = make is in_folder
  exchange, stored = make(kind), {}
  assert isinstance(exchange, Exchange)

  def store(step):
    if not in_a_folder or step == NUM_STEPS - 3:
      stored[step] = exchange.publications()

  steps = range(1, NUM_STEPS + 1)
  seen = play(exchange, steps, after_step=store)
  for key, peers in seen.items():
    wanted = [(10, 7), (11, 7)] if make is frozen else expected(kind, *key)
    assert peers == wanted
  if kind.graph == 'random':  # One draw alone would show nothing.
    assert {p for step in steps for p, _ in seen[0, step]} == {1, 2}
  for copies in exchange.publications().variables.values():
    # They are those held back by the delay, the newest visible one, and the
    # one before it for members that have yet to take their turn.
    assert len(copies) <= kind.delay // kind.interval + 2
  for order in ([2, 1, 0],) if in_a_folder else ([2, 1, 0], [1, 2, 0]):
    # A publication in a folder takes a tenth of a second, so use fewer.
    some = steps[: kind.interval + kind.delay + 2 if in_a_folder else NUM_STEPS]
    assert play(make(kind), some, order).items() <= seen.items()
  for stop, publications in stored.items():
    if rest := steps[stop : stop + kind.interval + 1]:
      after = make(kind, before=exchange)
      after.restore(publications)
      assert play(after, rest).items() <= seen.items()


@pytest.mark.parametrize('name', ['memory', 'memory-int8', 'folder-int8'])
def test_what_is_seen_survives_the_donation_of_what_was_offered(name):
  make, kind = KINDS[name]

  def train(tree):
    return jax.tree.map(lambda leaf: leaf * 0 - 1, tree)

  train, exchange = jax.jit(train, donate_argnums=0), make(kind)
  for step in range(7):
    for member in range(3):
      offered = variables(member, step)
      exchange.offer(member, step, offered)
      train(offered)
      assert offered['params']['w'].is_deleted()
  assert look(exchange, 0, 7)


@pytest.mark.parametrize(
  ('make', 'precisions'),
  [
    (in_memory, ('bfloat16', 'int8')),
    (in_memory, ('int8', 'bfloat16')),
    (in_folder, ('int8', 'bfloat16')),
  ],
)
def test_rounded_weights_are_seen_and_come_back_as_they_were_rounded(
  make, precisions
):
  kind = Kind(precisions=precisions)
  before = make(kind, members=2)
  for member in range(2):
    before.offer(member, 0, variables(member, 0))
  assert look(before, 0, 1) == [(1, 0)]
  [seen] = before.freshest(0, 1)
  full = precision.decode(seen.variables, variables(1, 0))['params']
  assert (full['w'] != numbers(1, 0)['params']['w']).any()
  np.testing.assert_array_equal(full['b'], numbers(1, 0)['params']['b'])
  publications = before.publications()
  after = make(kind, members=2, before=before)
  if make is in_folder:
    # Copies come from the checkpoint, not from there.
    shutil.rmtree(f'{after.folder}/1')
  after.restore(publications)
  assert look(after, 0, 1) == [(1, 0)]


def test_weights_that_are_not_finite_are_never_seen():
  exchange = in_memory(members=2)
  exchange.offer(1, 3, variables(1, 3))
  broken = variables(1, 4)
  broken['params']['w'] = broken['params']['w'].at[2].set(jnp.nan)
  exchange.offer(1, 4, broken)
  assert list(exchange.publications().variables[1]) == [3]
  assert look(exchange, 0, 5) == look(exchange, 0, 50) == [(1, 3)]
  # A member that recovers is heard again.
  exchange.offer(1, 51, variables(1, 51))
  assert look(exchange, 0, 52) == [(1, 51)]
  # It is not seen if only its loss is not finite, either.
  exchange.offer(1, 53, variables(1, 53), jnp.float32(jnp.inf))
  assert look(exchange, 0, 54) == [(1, 51)]
  # Nor is one that was never finite.
  exchange = in_memory(members=3)
  exchange.offer(1, 0, variables(1, jnp.inf))
  exchange.offer(2, 0, variables(2, 0))
  assert look(exchange, 0, 1) == [(2, 0)]
  # A member that stops grows old, and the other does not.
  exchange.offer(1, 1, variables(1, 1))
  for step in range(1, 6):
    exchange.offer(2, step, variables(2, step))
  assert look(exchange, 0, 6) == [(1, 1), (2, 5)]


def test_immediate_shows_what_a_member_did_earlier_in_the_same_round():
  seen = play(in_memory(immediate=True), range(1, 4))
  assert seen[0, 2] == [(1, 1), (2, 1)]
  assert seen[1, 2] == [(0, 2), (2, 1)]
  assert seen[2, 2] == [(0, 2), (1, 2)]


def test_without_peers_frozen_shows_none():
  assert FrozenExchange().freshest(0, 5) == ()

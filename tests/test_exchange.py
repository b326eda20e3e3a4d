"""The table that every exchange must pass, and what each kind adds."""

import functools
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codistill import precision
from codistill.algorithm import Exchange, Peer
from codistill.exchange import topology
from codistill.exchange.folder.exchange import CheckpointExchange
from codistill.exchange.memory import FrozenExchange, InMemoryExchange
from codistill.exchange.rules import ANY_PEER
from codistill.precision import FULL

# Of the draws of random neighbours; all members draw both others soon, and
# once one of them for long.
SEED = 4


def variables(member, step):
  """Weights that tell whose they are and when they were."""
  whose = np.float32(100 * member + step)
  thirds = np.arange(12, dtype=np.float32).reshape(3, 4) / 3
  return {
    'params': {
      'b': jnp.asarray(np.full(4, whose)),
      # Whatever it is rounded to, some of it changes, and no scale is alike.
      'w': jnp.asarray((whose + thirds) * np.float32([1, 10, 100, 1000])),
    },
    'batch_stats': {'mean': jnp.asarray(np.full(2, np.float32(step)))},
  }


@functools.cache
def rounded(member, step, published, held):
  """What a member offered, rounded as `codistill.precision` rounds it."""
  offered = variables(member, step)
  return jax.device_get(
    precision.convert(
      precision.encode(offered, published), offered, published, held
    )
  )


def assert_is_publication(exchange, peer):
  expected = rounded(peer.member, peer.step, *exchange.precisions)

  def same(found, wanted):
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)

  jax.tree.map(same, jax.device_get(peer.variables), expected)


def in_memory(
  members=3,
  interval=1,
  delay=0,
  immediate=False,
  graph='all',
  rules=ANY_PEER,
  precisions=(FULL, FULL),
  before=None,
):
  exchange = InMemoryExchange(
    topology.make_topology(graph, members, num_random=1, seed=SEED),
    reload_interval_steps=interval,
    delay_steps=delay,
    immediate=immediate,
    rules=rules,
    publish_precision=precisions[0],
    teacher_precision=precisions[1],
  )
  exchange.precisions = precisions
  return exchange


def in_folder(
  members=3,
  interval=1,
  delay=0,
  graph='all',
  rules=ANY_PEER,
  precisions=(FULL, FULL),
  before=None,
):
  """All members in this process, synchronous; in the folder of `before`."""
  if before is None:
    folder = tempfile.mkdtemp(prefix='exchange-')
  else:
    folder = before.folder
    before.__exit__()
  exchange = CheckpointExchange(
    folder,
    topology.make_topology(graph, members, num_random=1, seed=SEED),
    members=range(members),
    like=variables(0, 0),
    reload_interval_steps=interval,
    delay_steps=delay,
    rules=rules,
    publish_precision=precisions[0],
    teacher_precision=precisions[1],
    synchronous=True,
    keep_publications=delay // interval + 4,
    keep_s=0.0,
    wait_timeout_s=5.0,
  )
  exchange.folder, exchange.precisions = folder, precisions
  OPEN.append(exchange.__enter__())
  return exchange


OPEN = []


@pytest.fixture(autouse=True)
def close():
  yield
  while OPEN:
    exchange = OPEN.pop()
    exchange.__exit__()
    shutil.rmtree(exchange.folder, ignore_errors=True)


def frozen(members=3, before=None):
  exchange = FrozenExchange(
    tuple(Peer(m, 7, variables(m, 7)) for m in range(10, 10 + members - 1))
  )
  exchange.precisions = (FULL, FULL)
  return exchange


# Every exchange, in every way that its visibility can be set: (make it, k, d).
KINDS = {
  'memory': (in_memory, 1, 0),
  'memory, k=3': (functools.partial(in_memory, interval=3), 3, 0),
  'memory, d=2': (functools.partial(in_memory, delay=2), 1, 2),
  'memory, k=3, d=2': (
    functools.partial(in_memory, interval=3, delay=2),
    3,
    2,
  ),
  'memory, ring': (functools.partial(in_memory, graph='ring'), 1, 0),
  'memory, random, k=3, d=1': (
    functools.partial(in_memory, interval=3, delay=1, graph='random'),
    3,
    1,
  ),
  'memory, k=3, int8': (
    functools.partial(in_memory, interval=3, precisions=('int8', 'int8')),
    3,
    0,
  ),
  # A tenth of a second a publication: fewer of them.
  'folder, k=5, bfloat16 held in int8': (
    functools.partial(in_folder, interval=5, precisions=('bfloat16', 'int8')),
    5,
    0,
  ),
  'folder, random, k=4, d=2': (
    functools.partial(in_folder, interval=4, delay=2, graph='random'),
    4,
    2,
  ),
  'frozen': (frozen, None, None),
}
every_exchange = pytest.mark.parametrize(
  ('make', 'interval', 'delay'), KINDS.values(), ids=KINDS.keys()
)
ORDERS = ([0, 1, 2], [2, 1, 0], [1, 2, 0])


def play(exchange, num_steps, order=(0, 1, 2), start=0):
  """Lets three members take turns; what each saw, by (member, step)."""
  if start == 0:
    for member in range(3):
      exchange.offer(member, 0, variables(member, 0))
  seen = {}
  for step in range(start + 1, num_steps + 1):
    for member in order:
      peers = exchange.freshest(member, step)
      seen[member, step] = [(peer.member, peer.step) for peer in peers]
      for peer in peers:
        assert_is_publication(exchange, peer)
      exchange.offer(member, step, variables(member, step), jnp.float32(1))
  return seen


@every_exchange
def test_is_an_exchange(make, interval, delay):
  assert isinstance(make(), Exchange)


@every_exchange
def test_a_publication_at_s_is_seen_from_s_plus_1_plus_delay(
  make, interval, delay
):
  for (member, step), peers in play(make(), 10).items():
    assert member not in [peer for peer, _ in peers]
    for _, at in peers:
      if interval is None:
        assert at == 7
      else:
        visible = step - 1 - delay
        assert at == visible - visible % interval


@every_exchange
def test_nothing_is_seen_before_it_is_visible(make, interval, delay):
  if interval is None:
    pytest.skip('frozen peers are there from the start')
  exchange = make()
  if isinstance(exchange, CheckpointExchange):
    pytest.skip('waits for them')
  for member in range(3):
    exchange.offer(member, interval, variables(member, interval))
  for step in range(1, interval + delay + 1):
    assert exchange.freshest(0, step) == ()
  assert exchange.freshest(0, interval + delay + 1) != ()


@every_exchange
def test_the_order_of_members_does_not_matter(make, interval, delay):
  runs = [play(make(), 10, order) for order in ORDERS]
  assert runs[0] == runs[1] == runs[2]


@every_exchange
def test_what_is_seen_survives_the_donation_of_what_was_offered(
  make, interval, delay
):
  train = jax.jit(
    lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 1, tree),
    donate_argnums=0,
  )
  exchange = make()
  for step in range(13):
    for member in range(3):
      offered = variables(member, step)
      exchange.offer(member, step, offered)
      train(offered)
      assert offered['params']['w'].is_deleted()
  seen = exchange.freshest(0, 13)
  assert seen
  for peer in seen:
    assert_is_publication(exchange, peer)


@every_exchange
def test_resumes_at_every_step_with_the_same_stale_peers(make, interval, delay):
  whole = play(make(), 10)
  for stop in range(1, 10) if interval in (1, 3) else (4, 5):
    before = make()
    play(before, stop)
    publications = before.publications()
    after = make(before=before)
    after.restore(publications)
    rest = play(after, 10, start=stop)
    assert rest == {key: whole[key] for key in whole if key[1] > stop}


@every_exchange
def test_holds_no_more_copies_than_may_still_be_asked_for(
  make, interval, delay
):
  exchange = make()
  play(exchange, 30)
  for steps in exchange.publications().variables.values():
    # Those held back by the delay, the newest visible, and the one before it
    # for a member whose turn is still to come in this round.
    assert len(steps) <= delay // interval + 2


def test_random_neighbours_are_those_that_the_graph_draws_at_each_reload():
  interval, delay = 3, 1
  graph = topology.make_topology('random', 3, num_random=1, seed=SEED)
  keywords = {'interval': interval, 'delay': delay, 'graph': 'random'}
  runs = [play(make(**keywords), 14) for make in (in_memory, in_folder)]
  assert runs[0] == runs[1]
  for member in range(3):
    drawn = [graph.teachers(member, reload) for reload in range(5)]
    # Updates 1 to 4 see nothing newer than step 0, 5 to 7 that of step 3, ….
    reloads = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4]
    for step, reload in enumerate(reloads, start=1):
      peers = tuple(peer for peer, _ in runs[0][member, step])
      # The first update asks for what was published a step before the start.
      assert peers == (() if step == 1 else drawn[reload])
    assert len(set(drawn)) > 1


@pytest.mark.parametrize('make', [in_memory, in_folder])
@pytest.mark.parametrize('held', ['bfloat16', 'int8'])
@pytest.mark.parametrize('published', ['bfloat16', 'int8'])
def test_rounded_weights_are_seen_and_come_back_as_they_were_rounded(
  make, published, held
):
  before = make(members=2, precisions=(published, held))
  for member in range(2):
    before.offer(member, 0, variables(member, 0))
  [seen] = before.freshest(0, 1)
  assert_is_publication(before, seen)
  full = precision.decode(seen.variables, variables(1, 0))['params']
  assert (full['w'] != variables(1, 0)['params']['w']).any()
  np.testing.assert_array_equal(full['b'], variables(1, 0)['params']['b'])
  publications = before.publications()
  after = make(members=2, precisions=(published, held), before=before)
  if isinstance(after, CheckpointExchange):
    # From the checkpoint, not from there.
    shutil.rmtree(f'{after.folder}/1')
  after.restore(publications)
  [again] = after.freshest(0, 1)
  assert_is_publication(after, again)


# What the kind in memory adds.


def test_weights_that_are_not_finite_are_never_seen():
  exchange = in_memory(members=2)
  exchange.offer(1, 3, variables(1, 3))
  broken = variables(1, 4)
  broken['params']['w'] = broken['params']['w'].at[2].set(jnp.nan)
  exchange.offer(1, 4, broken)
  assert list(exchange.publications().variables[1]) == [3]
  assert [peer.step for peer in exchange.freshest(0, 5)] == [3]
  assert [peer.step for peer in exchange.freshest(0, 50)] == [3]
  # A member that recovers is heard again.
  exchange.offer(1, 51, variables(1, 51))
  assert [peer.step for peer in exchange.freshest(0, 52)] == [51]


def test_weights_whose_loss_is_not_finite_are_never_seen():
  exchange = in_memory(members=2)
  exchange.offer(1, 1, variables(1, 1), jnp.float32(0.5))
  exchange.offer(1, 2, variables(1, 2), jnp.float32(jnp.inf))
  assert [peer.step for peer in exchange.freshest(0, 3)] == [1]


def test_a_member_that_was_never_finite_is_left_out():
  exchange = in_memory(members=3)
  exchange.offer(1, 0, variables(1, jnp.inf))
  exchange.offer(2, 0, variables(2, 0))
  assert [peer.member for peer in exchange.freshest(0, 1)] == [2]


def test_immediate_shows_what_a_member_did_earlier_in_the_same_round():
  seen = play(in_memory(immediate=True), 3)
  assert seen[0, 2] == [(1, 1), (2, 1)]
  assert seen[1, 2] == [(0, 2), (2, 1)]
  assert seen[2, 2] == [(0, 2), (1, 2)]


def test_ages_differ_between_a_member_that_stopped_and_one_that_goes_on():
  exchange = in_memory(members=3)
  for step in range(6):
    exchange.offer(2, step, variables(2, step))
    if step < 3:
      exchange.offer(1, step, variables(1, step))
  assert [(p.member, p.step) for p in exchange.freshest(0, 6)] == [
    (1, 2),
    (2, 5),
  ]


def test_intervals_and_delays_out_of_range_are_refused():
  with pytest.raises(
    ValueError, match='reload_interval_steps must be at least'
  ):
    in_memory(interval=0)
  with pytest.raises(ValueError, match='delay_steps must not be negative'):
    in_memory(delay=-1)


def test_without_peers_frozen_shows_none():
  assert FrozenExchange().freshest(0, 5) == ()

"""Members that meet in a folder without waiting: what they see, and when.

What synchronous members see is in the table of tests/test_exchange.py, and
that whole runs agree in tests/test_apart.py.
"""

import json
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codistill import sharding
from codistill.exchange import topology
from codistill.exchange.folder import publication
from codistill.exchange.folder.exchange import CheckpointExchange
from codistill.exchange.folder.lease import LeaseHeldError, LeaseLostError
from codistill.exchange.folder.publication import Notes
from codistill.exchange.folder.waiter import (
  PeerTimeoutError,
  WaitInterruptedError,
)
from codistill.exchange.rules import Rules

LONG = 60.0  # Seconds; nothing takes that long unless it is broken.


def variables(member, step):
  return {
    'params': {'w': jnp.full((4, 2), 100.0 * member + step)},
    'batch_stats': {'mean': jnp.full((2,), float(step))},
  }


@pytest.fixture
def make(tmp_path):
  """Exchanges of one member each in one folder; closed at the end."""
  made = []

  def make(member, members=2, like=None, graph='all', **keywords):
    exchange = CheckpointExchange(
      tmp_path / 'exchange',
      topology.make_topology(graph, members),
      members=(member,),
      like=variables(0, 0) if like is None else like,
      **{
        'reload_interval_steps': 1,
        'poll_interval_s': 0.02,
        'keep_s': 0.0,
        'config_hash': 'ours',
        **keywords,
      },
    )
    made.append(exchange.__enter__())
    return exchange

  yield make
  for exchange in made:
    exchange.__exit__()


def folder(tmp_path, member=1):
  return publication.epath.Path(tmp_path) / 'exchange' / str(member)


def publish(tmp_path, step, member=1, tree=None, **notes):
  """As a member elsewhere does."""
  publication.write(
    folder(tmp_path, member),
    variables(member, step) if tree is None else tree,
    Notes(
      **{
        'member': member,
        'step': step,
        'incarnation': 1,
        'wall_time': time.time(),
        'task_loss': None,
        'config_hash': 'ours',
        'precision': 'float32',
        'num_bytes': 40,
        **notes,
      }
    ),
  )


def until(condition, what='it'):
  deadline = time.monotonic() + LONG
  while not (result := condition()):
    assert time.monotonic() < deadline, f'{what} did not happen'
    time.sleep(0.01)
  return result


def sees(exchange, *steps, member=0, at=1):
  """Waits until just these copies teach, one of each peer."""

  def now():
    return [peer.step for peer in exchange.freshest(member, at)]

  until(lambda: now() == list(steps), f'seeing {steps}')
  for peer in exchange.freshest(member, at):
    jax.tree.map(
      np.testing.assert_array_equal,
      peer.variables,
      variables(peer.member, peer.step),
    )


def events(exchange, member=0):
  """All that happened so far, each time again."""
  kept = exchange.__dict__.setdefault('kept', [])
  kept += exchange.account(member).events
  return kept


def kinds(exchange, member=0):
  return [event['event'] for event in events(exchange, member)]


def test_nobody_there_is_no_peer(make):
  exchange = make(0, members=3)
  assert exchange.freshest(0, 5) == ()
  account = exchange.account(0)
  assert account.left_out == {1: 'absent', 2: 'absent'}
  assert account.failed_loads == 0


def test_the_freshest_finished_copy_teaches_whatever_its_step(make):
  reader, writer = make(0), make(1)
  writer.offer(1, 0, variables(1, 0))
  sees(reader, 0)
  for step in (1, 2, 3):
    writer.offer(1, step, variables(1, step), jnp.float32(step))
  # Ahead of its student, by two steps.
  sees(reader, 3, at=1)
  assert reader.account(0).left_out == {}


def test_a_graph_that_is_redrawn_is_followed(make, tmp_path):
  for member in (1, 2):
    publish(tmp_path, 7, member=member)
  graph = topology.make_topology('random', 3)
  drawn = [graph.teachers(0, reload) for reload in range(6)]
  assert set(drawn) == {(1,), (2,)}
  reader = make(0, members=3, graph='random', reload_interval_steps=10)

  def taught_by(teachers, step):
    peers = [peer.member for peer in reader.freshest(0, step)]
    return peers == list(teachers)

  for reload, teachers in enumerate(drawn):
    # The old ones teach until the new ones are there: never none.
    if reload:
      assert reader.freshest(0, 10 * reload + 1)
    until(lambda t=teachers, r=reload: taught_by(t, 10 * r + 1), 'new teachers')
    # And those who teach no more need no memory.
    until(lambda t=teachers: set(held(reader)) == set(t), 'old ones to go')


def held(exchange):
  copies = exchange.publications().variables
  return [member for member, steps in copies.items() if steps]


def test_only_every_kth_step_is_published(make, tmp_path):
  writer = make(1, reload_interval_steps=4, keep_publications=9)
  for step in range(10):
    writer.offer(1, step, variables(1, step), jnp.float32(step))
    assert writer._publisher.flush(LONG)
  assert sorted(publication.steps(folder(tmp_path))) == [0, 4, 8]
  notes = publication.read_notes(folder(tmp_path) / '8')
  assert notes._replace(wall_time=0.0) == Notes(
    member=1,
    step=8,
    incarnation=1,
    wall_time=0.0,
    task_loss=6.5,  # Of steps 5 to 8.
    config_hash='ours',
    precision='float32',
    num_bytes=40,
  )
  assert abs(notes.wall_time - time.time()) < 2 * LONG


def test_a_peer_is_left_out_while_it_is_too_old(make):
  reader = make(0, rules=Rules(max_age_steps=5))
  writer = make(1)
  writer.offer(1, 2, variables(1, 2))
  sees(reader, 2, at=8)
  assert reader.freshest(0, 9) == ()
  assert reader.account(0).left_out == {1: 'old'}
  writer.offer(1, 4, variables(1, 4))
  sees(reader, 4, at=9)


def test_a_peer_is_left_out_while_it_is_far_worse(make):
  reader = make(0, rules=Rules(max_task_loss_ratio=2.0))
  writer = make(1)
  # Its own loss is not known before it publishes.
  writer.offer(1, 1, variables(1, 1), jnp.float32(9.0))
  sees(reader, 1)
  reader.offer(0, 1, variables(0, 1), jnp.float32(3.0))
  assert reader.freshest(0, 2) == ()
  assert reader.account(0).left_out == {1: 'worse'}
  writer.offer(1, 2, variables(1, 2), jnp.float32(5.9))
  sees(reader, 2)


def test_what_is_not_finite_is_not_published(make, tmp_path):
  writer = make(1)
  writer.offer(1, 0, variables(1, 0))
  broken = variables(1, 1)
  broken['params']['w'] = broken['params']['w'].at[2, 1].set(jnp.nan)
  writer.offer(1, 1, broken)
  until(lambda: 'refuse' in kinds(writer, 1))
  writer.offer(1, 2, variables(1, 2), jnp.float32(jnp.inf))
  until(lambda: kinds(writer, 1).count('refuse') == 2)
  assert sorted(publication.steps(folder(tmp_path))) == [0]
  said = [event['message'] for event in events(writer, 1) if 'message' in event]
  assert said == [
    'member 1 is not finite at step 1 and publishes nothing'
  ]  # Once.


def test_what_is_not_finite_on_disk_is_not_taken(make, tmp_path):
  publish(tmp_path, 3)
  reader = make(0)
  sees(reader, 3)
  tree = variables(1, 4)
  tree['batch_stats']['mean'] *= jnp.nan
  publish(tmp_path, 4, tree=tree)
  until(lambda: reader.account(0).failed_loads)
  sees(reader, 3)


def other_shape(tmp_path):
  publish(tmp_path, 9, tree={'params': {'w': jnp.zeros((3, 2))}})


def other_names(tmp_path):
  tree = variables(1, 9)
  tree['params']['v'] = tree['params'].pop('w')
  publish(tmp_path, 9, tree=tree)


def other_config(tmp_path):
  publish(tmp_path, 9, config_hash='theirs')


def no_notes(tmp_path):
  publication.ocp.save(folder(tmp_path) / '9', variables(1, 9))


def nothing_in_it(tmp_path):
  (folder(tmp_path) / '9').mkdir(parents=True)


@pytest.mark.parametrize(
  'spoil', [other_shape, other_names, other_config, no_notes, nothing_in_it]
)
def test_what_is_not_for_us_leaves_the_old_copy(make, tmp_path, spoil):
  publish(tmp_path, 3)
  reader = make(0)
  sees(reader, 3)
  spoil(tmp_path)
  until(lambda: kinds(reader).count('failed load') >= 2)
  sees(reader, 3)
  said = [e['message'] for e in events(reader) if 'message' in e]
  assert len(said) == 1
  # The next good one is taken all the same.
  publish(tmp_path, 10)
  sees(reader, 10)


def test_a_failure_is_said_once_and_counted(make, tmp_path):
  nothing_in_it(tmp_path)
  reader = make(0)
  until(lambda: kinds(reader).count('failed load') >= 3)
  said = [e['message'] for e in events(reader) if 'message' in e]
  assert len(said) == 1
  assert '/1/9 cannot be read' in said[0]
  assert reader.account(0).failed_loads >= 3


def test_attempts_become_rarer(make, tmp_path):
  nothing_in_it(tmp_path)
  reader = make(0)
  until(lambda: reader.account(0).failed_loads >= 4)
  [(_, pause)] = reader._reader._patience.values()
  assert pause >= 8 * 0.02


def test_a_copy_that_is_pruned_under_the_reader_is_no_loss(
  make, tmp_path, monkeypatch
):
  publish(tmp_path, 3)
  reader = make(0)
  sees(reader, 3)
  real, pruned = publication.load, threading.Event()

  def load(path, *arguments):
    if path.name == '4':
      publication.remove(path)
      pruned.set()
    return real(path, *arguments)

  monkeypatch.setattr(publication, 'load', load)
  publish(tmp_path, 4)
  assert pruned.wait(LONG)
  until(lambda: reader.account(0).failed_loads)
  sees(reader, 3)
  publish(tmp_path, 5)
  sees(reader, 5)


def test_a_copy_that_is_replaced_under_the_reader_is_read_again(
  make, tmp_path, monkeypatch
):
  real, times = publication.ocp.load, []

  def load(path, abstract):
    result = real(path, abstract)
    if not times:
      times.append(path)
      publish(tmp_path, 4, incarnation=2)
    return result

  monkeypatch.setattr(publication.ocp, 'load', load)
  publish(tmp_path, 4, tree=variables(9, 9))
  reader = make(0)
  sees(reader, 4)
  assert reader.account(0).failed_loads == 1


# A member that comes back.


def test_the_newest_life_counts_not_the_highest_step(make, tmp_path):
  for step in (10, 20, 30):
    publish(tmp_path, step)
  reader = make(0)
  sees(reader, 30)
  # It resumed at 15; its lease was lost with its disk, but not this folder.
  writer = make(1, keep_publications=3)
  writer.offer(1, 20, variables(7, 7))
  until(lambda: 'publish' in kinds(writer, 1))
  assert publication.read_notes(folder(tmp_path) / '20').incarnation == 2
  until(lambda: reader.freshest(0, 1)[0].step == 20)
  np.testing.assert_array_equal(
    reader.freshest(0, 1)[0].variables['params']['w'], 707.0
  )
  writer.offer(1, 30, variables(1, 30))
  sees(reader, 30)
  writer.offer(1, 40, variables(1, 40))
  sees(reader, 40)
  # What the first life left behind goes first.
  until(lambda: sorted(publication.steps(folder(tmp_path))) == [20, 30, 40])


def test_a_folder_that_came_back_empty_begins_anew(make, tmp_path):
  publish(tmp_path, 30, incarnation=5)
  reader = make(0)
  sees(reader, 30)
  folder(tmp_path).rmtree()
  publish(tmp_path, 2, incarnation=1)
  # Without a lease it is nobody's new life.
  time.sleep(0.2)
  sees(reader, 30)
  folder(tmp_path).rmtree()
  writer = make(1)
  writer.offer(1, 2, variables(1, 2))
  sees(reader, 2)


def test_an_older_life_does_not_come_back_when_the_newer_loses_all(
  make, tmp_path
):
  """As when it is killed while it replaces its only publication."""
  publish(tmp_path, 30)
  writer = make(1)
  writer.offer(1, 20, variables(1, 20))
  reader = make(0)
  sees(reader, 20)
  publication.remove(folder(tmp_path) / '20')
  time.sleep(0.2)
  sees(reader, 20)


def test_whoever_was_suspended_does_not_undo_what_its_successor_did(
  make, tmp_path
):
  old = make(1)
  old.offer(1, 5, variables(1, 5))
  until(lambda: 'publish' in kinds(old, 1))
  old._publisher._leases[1].beat()  # So that it writes no more by itself.
  path = folder(tmp_path) / 'lease.json'
  path.write_text(
    json.dumps(json.loads(path.read_text()) | {'nonce': 'x', 'incarnation': 2})
  )
  publish(tmp_path, 7, incarnation=2)
  # Its last beat was before that.
  old.offer(1, 6, variables(1, 6))
  until(lambda: 'failed publish' in kinds(old, 1))
  assert sorted(publication.steps(folder(tmp_path))) == [5, 7]


def test_what_a_kill_left_half_written_is_cleared(make, tmp_path):
  for name in ('9.orbax-checkpoint-tmp', '.8.removed'):
    (folder(tmp_path) / name / 'state').mkdir(parents=True)
  publish(tmp_path, 7)
  make(1)
  assert {path.name for path in folder(tmp_path).iterdir()} == {
    *('7', 'lease.json', '.lease.json.lock')
  }


def test_a_relative_folder_is_meant_from_here(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  exchange = CheckpointExchange(
    'exchange',
    topology.make_topology('all', 2),
    members=(1,),
    like=variables(0, 0),
    reload_interval_steps=1,
  )
  with exchange:
    exchange.offer(1, 7, variables(1, 7))
  assert sorted(publication.steps(folder(tmp_path))) == [7]


def test_a_damaged_newest_does_not_bring_back_an_older_one(make, tmp_path):
  publish(tmp_path, 10)
  publish(tmp_path, 20)
  reader = make(0)
  sees(reader, 20)
  publication.remove(folder(tmp_path) / '20')
  nothing_in_it(tmp_path)
  until(lambda: reader.account(0).failed_loads)
  sees(reader, 20)


def test_a_resumed_member_has_its_peers_at_once(make, tmp_path):
  publish(tmp_path, 3, task_loss=0.25)
  first = make(0)
  sees(first, 3)
  publications = first.publications()
  first.__exit__()
  folder(tmp_path).rmtree()
  second = make(0, rules=Rules(max_task_loss_ratio=2.0))
  assert second.freshest(0, 1) == ()
  second.restore(publications)
  sees(second, 3)
  # With what it is judged by.
  second.offer(0, 1, variables(0, 1), jnp.float32(0.1))
  assert second.freshest(0, 2) == ()
  assert second.account(0).left_out == {1: 'worse'}


def test_what_has_been_read_since_is_not_undone_by_a_resume(make, tmp_path):
  publish(tmp_path, 3)
  first = make(0)
  sees(first, 3)
  publications = first.publications()
  first.__exit__()
  publish(tmp_path, 5)
  second = make(0, poll_interval_s=LONG)  # It looks once.
  sees(second, 5)
  second.restore(publications)
  assert [peer.step for peer in second.freshest(0, 1)] == [5]


def test_one_job_a_member(make):
  first = make(0)
  with pytest.raises(LeaseHeldError, match='member 0 in'):
    make(0)
  first.__exit__()
  make(0)


def test_whoever_has_been_replaced_stops(make, tmp_path):
  exchange = make(0)
  path = folder(tmp_path, 0) / 'lease.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'nonce': 'x'}))
  exchange._publisher._leases[0].beat()
  with pytest.raises(LeaseLostError, match='taken over member 0'):
    exchange.offer(0, 1, variables(0, 1))
  with pytest.raises(LeaseLostError, match='taken over member 0'):
    exchange.freshest(0, 1)


# The folder.


def test_the_newest_few_stay_and_the_young(make, tmp_path):
  writer = make(1, keep_publications=2)
  patient = make(0, keep_publications=2, keep_s=1000.0)
  for step in range(5):
    for member, exchange in ((1, writer), (0, patient)):
      exchange.offer(member, step, variables(member, step))
      assert exchange._publisher.flush(LONG)
  assert sorted(publication.steps(folder(tmp_path, 1))) == [3, 4]
  assert sorted(publication.steps(folder(tmp_path, 0))) == [0, 1, 2, 3, 4]


def test_a_slow_disk_skips_publications_and_keeps_nobody(
  make, tmp_path, monkeypatch
):
  real, go, writing = publication.write, threading.Event(), threading.Event()

  def write(*arguments):
    writing.set()
    assert go.wait(LONG)
    real(*arguments)

  monkeypatch.setattr(publication, 'write', write)
  writer = make(1)
  writer.offer(1, 0, variables(1, 0))
  assert writing.wait(LONG)
  for step in range(1, 8):
    writer.offer(1, step, variables(1, step))
  assert len(writer._publisher._offers) == 1  # Nothing grows.
  go.set()
  until(lambda: kinds(writer, 1).count('publish') == 2)
  assert kinds(writer, 1).count('skip') == 6
  assert sorted(publication.steps(folder(tmp_path))) == [0, 7]


def test_a_folder_that_cannot_be_written_stops_nobody(
  make, tmp_path, monkeypatch
):
  def write(*arguments):
    raise OSError('no more disk')

  with monkeypatch.context() as patch:
    patch.setattr(publication, 'write', write)
    writer = make(1)
    writer.offer(1, 0, variables(1, 0))
    until(lambda: 'failed publish' in kinds(writer, 1))
    [said] = [e['message'] for e in events(writer, 1) if 'message' in e]
    assert said == 'member 1 cannot publish: OSError no more disk'
  assert writer._publisher.flush(LONG)
  writer.offer(1, 1, variables(1, 1))
  until(lambda: 'publish' in kinds(writer, 1))


def test_what_was_offered_is_published_before_the_end(make, tmp_path):
  writer = make(1)
  writer.offer(1, 7, variables(1, 7))
  writer.__exit__()
  assert sorted(publication.steps(folder(tmp_path))) == [7]


def test_an_earlier_run_is_forgotten_by_its_own_member_only(make, tmp_path):
  publish(tmp_path, 500)
  publish(tmp_path, 500, member=0)
  make(0).forget()
  assert publication.steps(folder(tmp_path, 0)) == {}
  assert list(publication.steps(folder(tmp_path, 1))) == [500]


def test_copies_come_in_this_process_s_sharding(make, tmp_path):
  publish(tmp_path, 3)
  place = sharding.replicated(sharding.make_mesh(8))
  like = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
    variables(0, 0),
  )
  reader = make(0, like=like)
  sees(reader, 3)
  for leaf in jax.tree.leaves(reader.freshest(0, 1)[0].variables):
    assert leaf.sharding == place


# Synchronous members.


def test_a_synchronous_member_waits_no_longer_than_it_was_told(make):
  exchange = make(0, synchronous=True, wait_timeout_s=0.1)
  with pytest.raises(PeerTimeoutError) as caught:
    exchange.freshest(0, 1)
  assert 'member 1 has not published step 0' in str(caught.value)
  assert 'codistill.wait_timeout_s' in str(caught.value)


def test_a_synchronous_member_says_why_it_waited_in_vain(make, tmp_path):
  publish(tmp_path, 0, config_hash='theirs')
  exchange = make(0, synchronous=True, wait_timeout_s=0.1)
  with pytest.raises(PeerTimeoutError, match='/1/0 is of another config'):
    exchange.freshest(0, 1)


def test_a_synchronous_member_without_a_disk_makes_no_checkpoint(
  make, monkeypatch
):
  def write(*arguments):
    raise OSError('no more disk')

  monkeypatch.setattr(publication, 'write', write)
  exchange = make(0, synchronous=True, wait_timeout_s=0.1)
  exchange.offer(0, 0, variables(0, 0))
  with pytest.raises(PeerTimeoutError) as caught:
    exchange.publications()
  assert 'could not publish to' in str(caught.value)
  # Nor later: it would not offer that step again.
  assert exchange._publisher.flush(LONG)
  with pytest.raises(PeerTimeoutError, match='no more disk'):
    exchange.publications()


def test_a_refusal_is_remembered_in_the_next_life(make):
  keywords = {'synchronous': True, 'wait_timeout_s': LONG}
  writer = make(1, **keywords)
  for step, loss in ((0, None), (1, 1.0), (2, jnp.nan)):
    loss = None if loss is None else jnp.float32(loss)
    writer.offer(1, step, variables(1, step), loss)
  writer.__exit__()
  make(1, **keywords)
  reader = make(0, **keywords)
  assert [peer.step for peer in reader.freshest(0, 3)] == [1]


def test_a_member_that_has_withdrawn_holds_nobody_s_copies(tmp_path):
  exchange = CheckpointExchange(
    tmp_path / 'exchange',
    topology.make_topology('all', 3),
    members=range(3),
    like=variables(0, 0),
    reload_interval_steps=1,
    synchronous=True,
  )
  with exchange:
    for step in range(8):
      active = range(3) if step < 3 else range(2)
      for member in active:
        exchange.offer(member, step, variables(member, step))
      for member in active:
        exchange.freshest(member, step + 1)
      if step == 2:
        exchange.withdraw(2)
    held = exchange.publications().variables
    assert {m: len(steps) for m, steps in held.items()} == {0: 1, 1: 1, 2: 1}
    assert len(exchange._reader._notes) <= 6


def test_a_synchronous_member_can_be_told_to_stop(make):
  exchange = make(0, synchronous=True)
  exchange.should_stop = lambda: True
  with pytest.raises(WaitInterruptedError):
    exchange.freshest(0, 1)


def test_a_synchronous_member_does_not_wait_for_what_was_refused(make):
  keywords = {'synchronous': True, 'wait_timeout_s': LONG}
  reader, writer = make(0, **keywords), make(1, **keywords)
  for step, loss in ((0, None), (1, 1.0), (2, jnp.nan), (3, 1.0)):
    loss = None if loss is None else jnp.float32(loss)
    writer.offer(1, step, variables(1, step), loss)
  assert [peer.step for peer in reader.freshest(0, 2)] == [1]
  assert [peer.step for peer in reader.freshest(0, 3)] == [1]
  assert [peer.step for peer in reader.freshest(0, 4)] == [3]
  writer.withdraw(1)
  assert [peer.step for peer in reader.freshest(0, 9)] == [3]


def test_a_synchronous_member_that_repeats_itself_writes_nothing(
  make, tmp_path
):
  publish(tmp_path, 5)
  before = publication.steps(folder(tmp_path))
  notes = publication.read_notes(folder(tmp_path) / '5')
  writer = make(1, synchronous=True)
  writer.offer(1, 5, variables(1, 5))
  until(lambda: 'publish' in kinds(writer, 1))
  assert publication.steps(folder(tmp_path)) == before
  assert publication.read_notes(folder(tmp_path) / '5') == notes


@pytest.mark.parametrize(
  ('keywords', 'said'),
  [
    ({'delay_steps': 1}, 'set synchronous, or delay_steps to 0'),
    ({'reload_interval_steps': 0}, 'must be at least 1'),
    ({'keep_publications': 1}, 'keep_publications is 1'),
    ({'poll_interval_s': -1.0}, 'poll_interval_s must not be negative'),
    ({'lease_timeout_s': 0.0}, 'lease_timeout_s must be positive'),
  ],
)
def test_numbers_out_of_range_are_refused(make, keywords, said):
  with pytest.raises(ValueError, match=said):
    make(0, **keywords)

"""Members that meet in a folder without waiting: what they see, and when.

tests/test_exchange.py has synchronous members, tests/test_apart.py whole runs.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import os
import pathlib
import re
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stand_ins
from etils import epath
from networks import assert_close

from codistill import sharding
from codistill.algorithm import Publications
from codistill.exchange import topology
from codistill.exchange.folder import publication, waiter
from codistill.exchange.folder.exchange import CheckpointExchange
from codistill.exchange.folder.lease import LeaseHeldError, LeaseLostError
from codistill.exchange.folder.publication import Notes
from codistill.exchange.folder.settings import Settings
from codistill.exchange.rules import ANY_PEER, Rules
from codistill.storage import step_folders

LONG = 60.0  # Seconds; nothing takes that long.
FULL = OSError('no more disk')
NO_DISK = mock.patch.object(publication, 'write', side_effect=FULL)
until = functools.partial(stand_ins.until, seconds=LONG)
# The notes of a checkpoint of a resumed member that nobody had taught, and of
# checkpoints that were made before lives were told apart.
GOES_ON = Publications(
  {},
  {
    'losses': {'running': {}, 'published': {}},
    'copies': {},
    'last_step': {},
  },
)
SETTINGS = Settings(reload_interval_steps=1, poll_interval_s=0.02, keep_s=0.0)


def variables(member, step, name='w'):
  return {
    'params': {name: np.full((4, 2), 100 * member + step, np.float32)},
    'batch_stats': {'mean': np.full(2, step, np.float32)},
  }


def offer(exchange, member, step, loss=None, tree=None):
  tree = jax.device_put(tree or variables(member, step))
  exchange.offer(member, step, tree, None if loss is None else np.float32(loss))


def publish(exchange, *what, **more):
  offer(exchange, *what, **more)
  assert exchange._publisher.flush(LONG)


def said(step, member=1, **notes):
  said = Notes(member, step, 1, time.time(), None, 'ours', 'float32', 40)
  return said._replace(**notes)


class Meeting:
  """Exchanges in one folder, and members elsewhere."""

  def __init__(self, folder, exits):
    self.folder, self._exits = epath.Path(folder), exits

  def make(
    self,
    *mine,
    members=2,
    like=None,
    graph='all',
    rules=ANY_PEER,
    anew=False,
    before=None,
    networks=(),
    vocabulary='',
    **settings,
  ):
    exchange = CheckpointExchange(
      self.folder,
      topology.make_topology(graph, members),
      dataclasses.replace(SETTINGS, **settings),
      members=mine,
      like=like or jax.device_put(variables(0, 0)),
      networks=networks,
      rules=rules,
      config_hash='ours',
      vocabulary=vocabulary,
    )
    if before is not None:
      exchange.restore(before)
    self._exits.enter_context(exchange)
    if not anew:
      exchange.restore(GOES_ON)
    return exchange

  def publish(self, step, member=1, tree=None, **notes):
    """Publishes as a member elsewhere does."""
    tree = tree or variables(member, step)
    publication.write(self.of(member), tree, said(step, member, **notes))

  def save(self, at, **notes):
    path = self.of() / str(at)
    publication.ocp.save(path, variables(1, at), custom_metadata=notes)

  def of(self, member=1):
    return self.folder / str(member)

  def steps(self, member=1):
    return sorted(step_folders.finished(self.of(member)))


@pytest.fixture
def meeting(tmp_path):
  with contextlib.ExitStack() as exits:
    yield Meeting(tmp_path / 'exchange', exits)


def seen_by(exchange, at=1):
  return [peer.step for peer in exchange.freshest(0, at)]


def sees(exchange, *steps, at=1):
  """Waits until exactly these copies teach member 0, one of each peer."""
  until(lambda: seen_by(exchange, at) == list(steps), what=f'seeing {steps}')
  for peer in exchange.freshest(0, at):
    assert_close(peer.variables, variables(peer.member, peer.step))


def events(exchange, member=0, key='event'):
  """All events so far; further calls return them again."""
  kept = exchange.__dict__.setdefault('kept', [])
  kept += exchange.account(member).events
  return [event[key] for event in kept if key in event]


def happened(exchange, event, member=0, times=1):
  until(lambda: events(exchange, member).count(event) >= times, what=event)


def test_the_freshest_finished_copy_teaches_at_any_step(meeting, monkeypatch):
  described, real = [], publication.describe
  monkeypatch.setattr(
    publication, 'describe', lambda path: described.append(path) or real(path)
  )
  # Copies have this process's own sharding.
  place = sharding.replicated(sharding.make_mesh(8))
  like = jax.device_put(variables(0, 0), place)
  reader, writer = meeting.make(0, like=like), meeting.make(1)
  offer(writer, 1, 0)
  sees(reader, 0)
  for step in (1, 2, 3):
    offer(writer, 1, step, step)
  sees(reader, 3)  # It is ahead of its student by two steps.
  assert reader.account(0).left_out == {}
  for leaf in jax.tree.leaves(reader.freshest(0, 1)[0].variables):
    assert leaf.sharding == place
  # Each costs memory that is never given back.
  assert {path.name for path in described} >= {'0', '3'}
  assert len(described) == len(set(described))


def test_a_graph_that_is_redrawn_is_followed(meeting):
  for member in (1, 2):
    meeting.publish(7, member=member)
  graph = topology.make_topology('random', 3)
  drawn = [graph.teachers(0, reload) for reload in range(6)]
  assert set(drawn) == {(1,), (2,)}
  reader = meeting.make(0, members=3, graph='random', reload_interval_steps=10)

  def teach(step, teachers):
    # Peers that teach no more need no memory.
    copies = reader.publications().variables
    held = tuple(member for member, steps in copies.items() if steps)
    teach = tuple(peer.member for peer in reader.freshest(0, step))
    return teach == held == teachers

  for step, teachers in zip(range(1, 61, 10), drawn, strict=True):
    # Old ones teach until the new ones are there, so there is always one.
    assert reader.freshest(0, step) or step == 1
    until(lambda now=(step, teachers): teach(*now), what=f'{teachers} to teach')


def test_each_kth_step_is_published_and_the_newest_and_young_stay(meeting):
  settings = {'reload_interval_steps': 4, 'keep_publications': 2}
  writer = meeting.make(1, **settings)
  patient = meeting.make(0, keep_s=1000.0, **settings)
  for step in range(10):
    publish(writer, 1, step, step)
    publish(patient, 0, step)
  assert (meeting.steps(0), meeting.steps(1)) == ([0, 4, 8], [4, 8])
  notes = publication.describe(meeting.of() / '8').notes
  # The loss is that of steps 5 to 8.
  network = publication.network_note('', variables(0, 0))
  told = {'wall_time': notes.wall_time, 'task_loss': 6.5, 'network': network}
  assert notes == said(8, **told)
  assert abs(notes.wall_time - time.time()) < 2 * LONG
  # A member that begins anew removes an earlier run, but only of its own.
  patient.__exit__()
  offer(meeting.make(0, anew=True, **settings), 0, 1)
  assert (meeting.steps(0), meeting.steps(1)) == ([], [4, 8])


def test_a_peer_is_left_out_while_it_is_absent_too_old_or_far_worse(meeting):
  rules = Rules(max_age_steps=5, max_task_loss_ratio=2.0)
  reader, writer = meeting.make(0, rules=rules), meeting.make(1)
  assert reader.freshest(0, 5) == ()
  account = reader.account(0)
  assert (account.left_out, account.failed_loads) == ({1: 'absent'}, 0)
  # Its own loss is not known before it publishes.
  offer(writer, 1, 2, 9.0)
  sees(reader, 2, at=8)
  assert seen_by(reader, 9) == []
  assert reader.account(0).left_out == {1: 'old'}
  offer(reader, 0, 1, 3.0)
  assert seen_by(reader, 8) == []
  assert reader.account(0).left_out == {1: 'worse'}
  offer(writer, 1, 4, 5.9)
  sees(reader, 4, at=9)


def test_what_cannot_be_written_or_is_not_finite_stops_nobody(meeting):
  writer = meeting.make(1)
  with NO_DISK:
    publish(writer, 1, 0)
  happened(writer, 'failed publish', 1)
  publish(writer, 1, 1)
  broken = variables(1, 2)
  broken['params']['w'][2, 1] = np.nan
  publish(writer, 1, 2, tree=broken)
  happened(writer, 'refuse', 1)
  publish(writer, 1, 3, np.inf)
  happened(writer, 'refuse', 1, times=2)
  assert meeting.steps() == [1]
  assert events(writer, 1, 'message') == [
    'member 1 cannot publish: OSError no more disk',
    'member 1 is not finite at step 2 and publishes nothing',  # Once.
  ]


# Things that a member may find in the folder of another, and what it says.
SPOILT = (
  ('other shapes', lambda m, s: m.publish(s, tree={'w': np.zeros((3, 2))})),
  ('other shapes', lambda m, s: m.publish(s, tree=variables(1, s, 'v'))),
  ('other numbers', lambda m, s: m.save(s, checksum=0, **said(s)._asdict())),
  ('of another config', lambda m, s: m.publish(s, config_hash='theirs')),
  ('not finite', lambda m, s: m.publish(s, tree=variables(np.nan, s))),
  ('cannot be read', lambda m, s: (m.of() / str(s)).mkdir()),
  ('cannot be read', Meeting.save),
)


def test_what_is_not_for_us_is_said_once_and_leaves_the_old_copy(meeting):
  meeting.publish(0)
  reader = meeting.make(0)
  for number, (words, spoil) in enumerate(SPOILT):
    good, bad = 2 * number, 2 * number + 1
    sees(reader, good)  # It is taken after any other one.
    spoil(meeting, bad)
    enough = events(reader).count('failed load') + 3
    happened(reader, 'failed load', times=enough)
    assert re.search(f'/1/{bad} .*{words}', reader._reader.why(1))
    # Attempts become rarer.
    pauses = [pause for _, pause in reader._reader._patience.values()]
    assert max(pauses) >= 8 * 0.02
    sees(reader, good)
    step_folders.remove(meeting.of() / str(bad))
    meeting.publish(bad + 1)
  sees(reader, 2 * len(SPOILT))
  messages = events(reader, key='message')
  assert reader.account(0).failed_loads >= 3 * len(SPOILT)
  for words, _ in SPOILT:
    assert sum(words in message for message in messages) == 1, words


@pytest.mark.parametrize('is_replaced', [True, False])
def test_a_copy_may_go_under_the_reader(meeting, monkeypatch, is_replaced):
  meeting.publish(3)
  reader = meeting.make(0)
  sees(reader, 3)
  real = publication.ocp.load

  def load(path, abstract):
    if path.name == '4':
      monkeypatch.undo()
      if is_replaced:
        at = path.stat().mtime
        meeting.publish(4, incarnation=2)
        os.utime(path, (at, at))  # Within the same second.
      else:
        step_folders.remove(path)
    return real(path, abstract)

  monkeypatch.setattr(publication.ocp, 'load', load)
  meeting.publish(4, tree=variables(9, 9))
  until(lambda: reader.account(0).failed_loads == 1)
  # It is read again, or the next one is.
  sees(reader, 4 if is_replaced else 3)
  meeting.publish(5, incarnation=2)
  sees(reader, 5)


def test_the_newest_life_counts_not_the_highest_step(meeting):
  meeting.publish(20, tree=variables(7, 7))
  meeting.publish(30)
  reader = meeting.make(0)
  sees(reader, 30)
  # It resumed at 15; its lease was lost with its disk, but not this folder.
  writer = meeting.make(1, keep_publications=2)
  publish(writer, 1, 20)
  assert publication.describe(meeting.of() / '20').notes.incarnation == 2
  sees(reader, 20)
  publish(writer, 1, 25)
  # Publications of the first life go first.
  assert meeting.steps() == [20, 25]
  sees(reader, 25)


def test_another_network_or_vocabulary_is_left_out_counted_and_said_once(
  meeting,
):
  wide = {'params': {'w': np.zeros((4, 3), np.float32)}}
  likes = {'narrow': variables(0, 0), 'wide': wide}
  ours = publication.network_note('wide', wide)
  assert ours.startswith('wide: 12 numbers, shapes ')
  theirs = publication.network_note('wide', variables(1, 0))
  reader = meeting.make(
    0,
    like=jax.device_put(likes),
    networks=('narrow', 'wide'),
    vocabulary='pieces',
  )
  events = []

  def left_out(why):
    assert reader.freshest(0, 1) == ()
    found = reader.account(0)
    events.extend(event for event in found.events if 'message' in event)
    return found.left_out == {1: why} and found.failed_loads == len(events)

  meeting.publish(3, network=theirs)
  until(lambda: left_out('network'))
  meeting.publish(4, network=theirs)
  meeting.publish(5, network=ours, vocabulary='others')
  until(lambda: left_out('network') and len(events) == 2)
  first, second = (event['message'] for event in events)
  assert f'the network of member 1 is {theirs}, but' in first
  assert f'member 0 expects {ours}: member 1 cannot teach; give' in first
  assert 'the vocabulary of member 1 is others, but' in second
  # The right one teaches, in a tree of its own.
  meeting.publish(6, tree=wide, network=ours, vocabulary='pieces')
  until(lambda: seen_by(reader) == [6])
  [peer] = reader.freshest(0, 7)
  assert_close(peer.variables, wide)
  assert reader.account(0).failed_loads == 2


@pytest.mark.parametrize('synchronous', [False, True])
def test_a_second_run_in_a_folder_is_not_taught_by_the_first(
  meeting, synchronous
):
  settings = {'synchronous': synchronous, 'wait_timeout_s': 0.2, 'anew': True}
  first = [meeting.make(member, **settings) for member in (0, 1)]
  for member, exchange in enumerate(first):
    publish(exchange, member, 9, 1.0)
  sees(first[0], 9, at=10)
  for member, exchange in enumerate(first):
    exchange.__exit__()
    # Readers tell publications of a step apart by the second of writing.
    os.utime(meeting.of(member) / '9', (0, 0))
  one = meeting.make(0, **settings)

  def leaves_out():
    try:
      assert one.freshest(0, 10) == ()
    except waiter.PeerTimeoutError as error:
      return 'member 1 does not teach until it is' in str(error)
    return one.account(0).left_out == {1: 'earlier'}

  until(leaves_out)
  # That does not change if its publications are restored before it enters.
  stored = one.publications()
  one.__exit__()
  one = meeting.make(0, before=stored, **settings)
  until(leaves_out)
  # Its own publication of that step is not taken for this run's, either.
  publish(one, 0, 9, 2.0)
  notes = publication.describe(meeting.of(0) / '9').notes
  assert (notes.incarnation, notes.task_loss) == (3, 2.0)
  assert json.loads((meeting.of(0) / 'lease.json').read_text())['began'] == 2
  other = meeting.make(1, **settings)
  for step in (8, 9):
    publish(other, 1, step, 1.0)
    assert meeting.steps() == [8, 9][: step - 7]
    sees(one, step, at=step + 1)
  # A member that begins anew learns from a peer at work, which is ahead.
  one.__exit__()
  one = meeting.make(0, **settings | {'wait_timeout_s': LONG})
  sees(one, 9, at=10 if synchronous else 1)
  assert one.account(0).left_out == {}
  # And says that this life of its own is another beginning.
  lease = json.loads((meeting.of(0) / 'lease.json').read_text())
  assert lease['began'] == lease['incarnation'] > 2


def test_an_older_life_does_not_come_back_when_the_newer_loses_all(meeting):
  """It may be killed while it replaces its only publication."""
  meeting.publish(30)
  reader, writer = meeting.make(0), meeting.make(1)
  offer(writer, 1, 20)
  sees(reader, 20)
  step_folders.remove(meeting.of() / '20')
  time.sleep(0.2)
  sees(reader, 20)
  # Nor does an older one of the same life when the newest is damaged.
  meeting.publish(10, incarnation=2)
  (meeting.of() / '20').mkdir()
  until(lambda: reader.account(0).failed_loads)
  sees(reader, 20)
  # An empty folder without a lease is not taken for a new life, either.
  writer.__exit__()
  meeting.of().rmtree()
  meeting.publish(2)
  time.sleep(0.2)
  sees(reader, 20)
  meeting.of().rmtree()
  offer(meeting.make(1), 1, 2)
  sees(reader, 2)


def test_a_replaced_member_stops_and_undoes_nothing(meeting):
  old = meeting.make(1)
  with pytest.raises(LeaseHeldError, match='member 1 in'):
    meeting.make(1)
  publish(old, 1, 5)
  lease = old._publisher._leases[1]
  lease.beat()  # So that it writes no more by itself.
  found = json.loads(lease.path.read_text())
  lease.path.write_text(json.dumps(found | {'nonce': 'x', 'incarnation': 2}))
  meeting.publish(7, incarnation=2)
  # It was suspended: its last beat was before that.
  publish(old, 1, 6)
  happened(old, 'failed publish', 1)
  assert meeting.steps() == [5, 7]
  for ask in (lambda: offer(old, 1, 8), lambda: old.freshest(1, 8)):
    with pytest.raises(LeaseLostError, match='taken over member 1'):
      ask()


def test_a_relative_folder_is_meant_from_here_and_closed_in_order(meeting):
  folder = meeting.folder
  with contextlib.chdir(folder.parent):
    meeting.folder = folder.name
    writer = meeting.make(1)
  offer(writer, 1, 7)
  # The newest offer is there at the end, and the next job need not wait.
  writer.__exit__()
  meeting.folder = folder
  assert meeting.steps() == [7]
  # Files that a kill left half written are cleared.
  for name in ('9.orbax-checkpoint-tmp', '.8.removed'):
    (meeting.of() / name / 'state').mkdir(parents=True)
  meeting.make(1)
  # The lease may be just being renewed through these.
  names = {path.name for path in meeting.of().iterdir()}
  names = {name for name in names if not name.startswith('.lease.json.')}
  assert names == {'7', 'lease.json'}


def test_what_cannot_be_removed_keeps_nobody(meeting, monkeypatch):
  real = os.unlink

  def unlink(path, *arguments, **keywords):
    # NFS says so while somebody has the file open.
    if os.fspath(path).endswith('_METADATA'):
      raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
    return real(path, *arguments, **keywords)

  monkeypatch.setattr(os, 'unlink', unlink)
  writer = meeting.make(1, keep_publications=2)
  for step in range(5):
    publish(writer, 1, step)
  assert meeting.steps() == [3, 4]
  assert events(writer, 1, 'message') == [mock.ANY]
  assert events(writer, 1).count('failed prune') == 3
  writer.__exit__()
  # It does not keep one that begins again and republishes a step, either.
  writer = meeting.make(1, keep_publications=2)
  publish(writer, 1, 4)
  assert events(writer, 1).count('publish') == 1
  assert len(list(meeting.of().glob('.*.removed'))) == 4
  monkeypatch.undo()
  publish(writer, 1, 5)
  assert not list(meeting.of().glob('.*.removed'))


def test_steps_are_any_integers_and_shapes_are_enough(meeting):
  like = jax.eval_shape(lambda: variables(0, 0))
  exchange = meeting.make(0, like=like)
  for step in (jnp.int32(1), np.int64(2)):
    exchange.offer(0, step, jax.device_put(variables(0, 0)))
    assert exchange._publisher.flush(LONG)
  assert meeting.steps(0) == [1, 2]
  meeting.publish(2)
  sees(exchange, 2, at=jnp.int32(1))


def test_what_cannot_work_is_refused_and_not_waited_for(tmp_path):
  def make(member):
    return CheckpointExchange(
      tmp_path,
      topology.make_topology('all', 2),
      SETTINGS,
      members=(member,),
      like=jax.device_put(variables(0, 0)),
    )

  with pytest.raises(ValueError, match='member 2 is not in a graph of 2'):
    make(2)
  with pytest.raises(RuntimeError, match='in a with block'):
    make(0).freshest(0, 1)
  assert not list(tmp_path.iterdir())


def test_a_resumed_member_has_its_peers_at_once(meeting):
  meeting.publish(3, task_loss=0.25)
  first = meeting.make(0)
  sees(first, 3)
  publications = first.publications()
  first.__exit__()
  meeting.of().rmtree()
  second = meeting.make(0, rules=Rules(max_task_loss_ratio=2.0))
  assert second.freshest(0, 1) == ()
  # Orbax makes text of the numbers.
  as_text = {
    str(peer): {str(at): copy for at, copy in copies.items()}
    for peer, copies in publications.variables.items()
  }
  second.restore(publications._replace(variables=as_text))
  sees(second, 3)
  # The peer's loss is restored with its copy.
  offer(second, 0, 1, 0.1)
  assert second.freshest(0, 2) == ()
  assert second.account(0).left_out == {1: 'worse'}
  second.__exit__()
  # A copy that was read since then stays.
  meeting.publish(5)
  third = meeting.make(0, poll_interval_s=LONG)  # It looks once.
  sees(third, 5)
  third.restore(publications)
  assert seen_by(third) == [5]


def test_a_synchronous_member_waits_no_longer_than_it_was_told(meeting):
  exchange = meeting.make(0, synchronous=True, wait_timeout_s=0.1)

  def fails(words, ask=lambda: exchange.freshest(0, 1)):
    with pytest.raises(waiter.PeerTimeoutError, match=words):
      ask()

  fails('member 1 has not published step 0.*codistill.wait_timeout_s')
  # It says why it waited in vain.
  meeting.publish(0, config_hash='theirs')
  fails('/1/0 is of another config')
  # Without a disk it makes no checkpoint.
  with NO_DISK:
    offer(exchange, 0, 0)
    fails('could not publish to', exchange.publications)
    # It makes none later, either, because it would not offer that step again.
    assert exchange._publisher.flush(LONG)
    fails('no more disk', exchange.publications)
  exchange.should_stop = lambda: True
  with pytest.raises(waiter.WaitInterruptedError):
    exchange.freshest(0, 1)


def test_a_synchronous_member_does_not_wait_for_what_was_refused(meeting):
  settings = {'synchronous': True, 'wait_timeout_s': 20.0}
  reader, writer = meeting.make(0, **settings), meeting.make(1, **settings)
  for step, loss in ((0, None), (1, 1.0), (2, np.nan), (3, 1.0), (4, np.nan)):
    offer(writer, 1, step, loss)
  for at, step in ((2, 1), (3, 1), (4, 3)):
    assert seen_by(reader, at) == [step]
  # Its next life remembers the refusal.
  writer.__exit__()
  writer = meeting.make(1, **settings)
  assert seen_by(reader, 5) == [3]
  writer.withdraw(1)
  assert seen_by(reader, 9) == [3]
  # What an earlier life published is not written again.
  notes = publication.describe(meeting.of() / '3').notes
  publish(writer, 1, 3)
  assert publication.describe(meeting.of() / '3').notes == notes
  # Unless a crash of the host has left zeros.
  for data in pathlib.Path(meeting.of() / '3').glob('state/**/d/*'):
    data.write_bytes(bytes(data.stat().st_size))
  publish(writer, 1, 3)
  there = publication.describe(meeting.of() / '3')
  publication.load(meeting.of() / '3', variables(1, 3), there)
  assert publication.describe(meeting.of() / '3').notes != notes


def test_a_member_that_has_withdrawn_holds_nobody_s_copies(meeting):
  exchange = meeting.make(0, 1, 2, members=3, synchronous=True)
  for step in range(5):
    active = range(3) if step < 2 else range(2)
    for member in active:
      offer(exchange, member, step)
    for member in active:
      exchange.freshest(member, step + 1)
    if step == 1:
      exchange.withdraw(2)
  held = exchange.publications().variables
  assert [len(held[member]) for member in range(3)] == [1, 1, 1]
  assert len(exchange._reader._described) <= 6


@pytest.mark.parametrize(
  ('key', 'value', 'words'),
  [
    ('delay_steps', 1, 'set synchronous, or delay_steps to 0'),
    ('delay_steps', -1, 'delay_steps must not be negative'),
    ('publish_precision', 'int4', 'publish_precision'),
    ('keep_publications', 1, 'keep_publications is 1'),
    ('keep_s', -1.0, 'keep_s must not be negative'),
    ('poll_interval_s', -1.0, 'poll_interval_s must not be negative'),
    ('wait_timeout_s', -1.0, 'wait_timeout_s must not be negative'),
    ('lease_timeout_s', 0.0, 'lease_timeout_s must be positive'),
  ],
)
def test_numbers_out_of_range_are_refused(key, value, words):
  with pytest.raises(ValueError, match=words):
    dataclasses.replace(SETTINGS, **{key: value})

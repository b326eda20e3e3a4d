"""All processes of a member take up the same copies at the same meeting."""

import itertools
import random
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest

from codistill import hosts
from codistill.exchange.folder.agreement import Agreement, Proposal
from codistill.exchange.folder.follower import Follower
from codistill.exchange.folder.reader import Reader
from codistill.exchange.folder.settings import Settings
from codistill.exchange.folder.waiter import (
  PeerTimeoutError,
  Waiter,
  WaitInterruptedError,
)
from codistill.exchange.memory import Copy
from codistill.exchange.topology import make_topology

PROCESSES = MEMBERS = 3
PEER = 1


class Processes:
  """Agreements of one member's processes, which meet in this process."""

  def __init__(self, monkeypatch):
    self.all = [Agreement(MEMBERS) for _ in range(PROCESSES)]
    self.first, *self.others = self.all
    self._at = threading.local()
    self._told = [None] * PROCESSES
    # A process that does not come must not keep the others, nor the tests.
    self._barrier = threading.Barrier(PROCESSES, timeout=10)
    monkeypatch.setattr(hosts, 'gather', self._gather)

  def _gather(self, numbers):
    self._told[self._at.process] = np.asarray(numbers, np.int32)
    self._barrier.wait()
    told = np.stack(self._told)
    self._barrier.wait()
    return told

  def now(self):
    """The process that this thread plays in a meeting."""
    return self.all[self._at.process]

  def are_free(self):
    return all(
      process.is_free(PEER) and process.wanted(PEER) is None
      for process in self.all
    )

  def meet(self, reloads=(0,) * PROCESSES):
    """The outcome of a meeting, which must be the same for all processes."""

    def go(process):
      self._at.process = process
      outcome = self.all[process].meet(reloads[process])
      # Each process has its own copy, not one that was sent.
      for step, copy in outcome.agreed.values():
        assert copy.variables == {'step': step, 'process': process}
      return outcome._replace(
        agreed={
          peer: Proposal(copy.incarnation, step)
          for peer, (step, copy) in outcome.agreed.items()
        }
      )

    with ThreadPoolExecutor(PROCESSES) as pool:
      outcomes = list(pool.map(go, range(PROCESSES)))
    assert outcomes == outcomes[:1] * PROCESSES
    return outcomes[0]

  def load(self, process, proposal, peer=PEER):
    incarnation, step = proposal
    variables = {'step': step, 'process': self.all.index(process)}
    process.loaded(peer, step, Copy(variables, True, 0.5, incarnation))

  def propose(self, proposal, peer=PEER):
    self.load(self.first, proposal, peer)
    assert peer not in self.meet().agreed

  def follow(self, proposal, peer=PEER):
    for process in self.others:
      assert process.wanted(peer) == proposal
      self.load(process, proposal, peer)
      assert process.wanted(peer) is None


@pytest.fixture
def processes(monkeypatch):
  return Processes(monkeypatch)


FIRST, SECOND = Proposal(1, 10), Proposal(1, 20)


def test_the_first_takes_up_fresher_ones_until_it_has_proposed_one(monkeypatch):
  """There are no meetings in the burn-in, however long it is."""
  monkeypatch.setattr(hosts, 'are_several', lambda: True)
  listed, loads = [], []

  def load(peer, step, written, take):
    loads.append(step)
    take(Copy({}, True, 0.5, 1))
    return True

  reader = mock.Mock(
    spec=Reader,
    listed=lambda peer: dict.fromkeys(listed, 0),
    forget=lambda peer, keep: None,
    notes=lambda peer, step, written: Proposal(1, step),
    load=load,
  )
  graph = make_topology('all', 2)
  follower = Follower(graph, Settings(reload_interval_steps=8), reader, (0,))
  for step in (0, 50, 100):
    listed[:] = [max(0, step - 50), step]
    for _ in range(2):  # It is loaded once.
      follower._look_for(PEER)
  assert loads == [0, 50, 100]
  # The others do not have it yet.
  nothing = [(-1, -1, 0)] * 3
  monkeypatch.setattr(hosts, 'gather', lambda mine: np.array([mine, nothing]))
  follower._meet(0)
  listed.append(150)
  follower._look_for(PEER)
  assert loads == [0, 50, 100]
  monkeypatch.setattr(hosts, 'gather', lambda mine: np.array([mine, mine]))
  follower._meet(0)
  assert follower.newest(0, PEER, 101)[0] == 100
  follower._look_for(PEER)
  assert loads == [0, 50, 100, 150]


def test_what_the_first_has_teaches_when_the_slowest_has_it(processes):
  assert processes.are_free()
  processes.propose(FIRST)
  quick, slow = processes.others
  processes.load(quick, FIRST)
  for _ in range(3):
    assert processes.meet().agreed == {}
    assert slow.wanted(PEER) == FIRST
    assert quick.wanted(PEER) is None
    assert not processes.first.is_free(PEER)
  processes.load(slow, FIRST)
  assert processes.meet().agreed == {PEER: FIRST}
  assert processes.are_free()
  # Only once; and the first process draws the neighbours.
  assert processes.meet(reloads=(4, 3, 9)) == ({}, (), 4)


def test_one_that_cannot_load_it_drops_it_everywhere(processes):
  processes.propose(FIRST)
  able, unable = processes.others
  processes.load(able, FIRST)
  unable.failed(PEER)
  assert processes.meet()[:2] == ({}, (PEER,))
  # Nobody holds on to it, and the first looks for another.
  assert processes.are_free()
  assert processes.meet().failed == ()
  processes.propose(SECOND)
  processes.follow(SECOND)
  assert processes.meet().agreed == {PEER: SECOND}


def test_a_failure_counts_against_what_was_proposed_alone(processes):
  # It failed before the first had proposed anything.
  processes.others[0].failed(PEER)
  processes.load(processes.first, FIRST)
  assert processes.meet().failed == (PEER,)
  processes.load(processes.first, SECOND)
  assert processes.meet().failed == ()
  # It can be loaded after all.
  processes.others[0].failed(PEER)
  processes.follow(SECOND)
  assert processes.meet().agreed == {PEER: SECOND}


@pytest.mark.parametrize(
  ('newer', 'older'), [(SECOND, FIRST), (Proposal(2, 10), FIRST)]
)
def test_another_publication_or_life_is_not_mixed_with_it(
  processes, newer, older
):
  """The first process takes up a newer one while the others load."""
  processes.propose(older)
  processes.load(processes.first, newer)
  processes.follow(older)
  assert processes.meet().agreed == {}
  processes.follow(newer)
  assert processes.meet().agreed == {PEER: newer}


def test_one_that_is_loaded_during_a_meeting_waits_for_the_next(processes):
  gather = hosts.gather

  def load_meanwhile(numbers):
    told = gather(numbers)
    if processes.now() is processes.first:
      processes.load(processes.first, SECOND)
    return told

  for process in processes.all:
    processes.load(process, FIRST)
  with mock.patch.object(hosts, 'gather', load_meanwhile):
    assert processes.meet().agreed == {PEER: FIRST}
  assert processes.meet().agreed == {}
  processes.follow(SECOND)
  assert processes.meet().agreed == {PEER: SECOND}


def test_peers_are_agreed_on_one_by_one(processes):
  processes.propose(FIRST, 0)
  processes.propose(SECOND, 2)
  processes.follow(SECOND, 2)
  assert processes.meet().agreed == {2: SECOND}
  assert processes.others[0].wanted(0) == FIRST
  processes.others[0].failed(0)
  assert processes.meet().failed == (0,)


def test_alone_it_agrees_with_itself_at_once():
  one, copy = Agreement(MEMBERS), Copy({}, True, 0.5, 1)
  one.loaded(PEER, 10, copy)
  assert one.meet(2) == ({PEER: (10, copy)}, (), 2)
  assert one.meet(3) == ({}, (), 3)


@pytest.mark.parametrize('seed', range(3))
def test_processes_stay_the_same_through_delays_and_failures(processes, seed):
  """They have the same copies, in order, and make progress."""
  rng = random.Random(seed)
  steps = itertools.count(1)
  taught = []
  for _ in range(60):
    if processes.first.is_free(PEER) and rng.random() < 0.7:
      processes.load(processes.first, Proposal(1, next(steps)))
    for process in processes.others:
      wanted = process.wanted(PEER)
      if wanted and (chance := rng.random()) < 0.1:
        process.failed(PEER)
      elif wanted and chance < 0.5:
        processes.load(process, wanted)
    taught += [step for _, step in processes.meet().agreed.values()]
  assert taught == sorted(set(taught))
  assert len(taught) > 5


def test_a_process_that_waits_in_vain_is_not_left_alone(monkeypatch):
  """One that raised alone would have the others wait in the next update."""
  waiter = object.__new__(Waiter)
  waiter._reader = types.SimpleNamespace(folder='there')
  monkeypatch.setattr(waiter, '_await', lambda peer, at: at)
  for others, error in (
    ([4, False, True], PeerTimeoutError),
    ([4, True, True], WaitInterruptedError),
    ([2, False, False], PeerTimeoutError),
  ):
    told = np.array([[4, False, False], others])
    monkeypatch.setattr(hosts, 'gather', lambda numbers, told=told: told)
    with pytest.raises(error):
      waiter._await_everywhere(0, 1, 4)

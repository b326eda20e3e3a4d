"""All processes of a member take up the same copies at the same meeting."""

import itertools
import random
import threading

import numpy as np
import pytest

from codistill import hosts
from codistill.exchange.folder import agreement
from codistill.exchange.folder.agreement import Agreement, Proposal
from codistill.exchange.memory import Copy

PROCESSES = 3
MEMBERS = 3
PEER = 1


class Processes:
  """Agreements of one member's processes, which meet in this process."""

  def __init__(self, monkeypatch):
    self.all = [Agreement(MEMBERS) for _ in range(PROCESSES)]
    self.first, *self.others = self.all
    self._at = threading.local()
    self._told = [None] * PROCESSES
    # Who does not come must not keep the others, nor the tests.
    self._barrier = threading.Barrier(PROCESSES, timeout=10)
    monkeypatch.setattr(hosts, 'gather', self._gather)

  def _gather(self, numbers):
    self._told[self._at.process] = np.asarray(numbers, np.int32)
    self._barrier.wait()
    told = np.stack(self._told)
    self._barrier.wait()
    return told

  def meet(self, reloads=(0,) * PROCESSES):
    """What comes of a meeting, once for each process."""
    outcomes = [None] * PROCESSES

    def go(process):
      self._at.process = process
      outcomes[process] = self.all[process].meet(reloads[process])

    threads = [
      threading.Thread(target=go, args=(process,))
      for process in range(PROCESSES)
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    return outcomes

  def agreed(self, reloads=(0,) * PROCESSES):
    """By peer incarnation and step: the same for all, or it fails."""
    outcomes = self.meet(reloads)
    shown = [
      (
        {
          peer: (copy.incarnation, step)
          for peer, (step, copy) in outcome.agreed.items()
        },
        outcome.failed,
        outcome.reload,
      )
      for outcome in outcomes
    ]
    assert shown == shown[:1] * PROCESSES
    return shown[0][0]


@pytest.fixture
def processes(monkeypatch):
  return Processes(monkeypatch)


def copy_of(step, incarnation=1):
  return Copy({'step': step}, True, 0.5, incarnation)


def load(process, proposal, peer=PEER):
  """As a thread that reads does, once it has what it was to load."""
  process.loaded(peer, proposal.step, copy_of(*reversed(proposal)))


def test_what_the_first_has_teaches_when_all_have_it(processes):
  for process in processes.all:
    assert process.is_free(PEER)
    assert process.wanted(PEER) is None
  load(processes.first, Proposal(1, 10))
  assert not processes.first.is_free(PEER)
  assert processes.agreed() == {}
  for process in processes.others:
    assert process.wanted(PEER) == Proposal(1, 10)
    load(process, Proposal(1, 10))
    assert process.wanted(PEER) is None
  # The copy of this process, and not one that was sent.
  outcomes = processes.meet()
  for process, outcome in zip(processes.all, outcomes, strict=True):
    step, copy = outcome.agreed[PEER]
    assert (step, copy.variables) == (10, {'step': 10})
    assert process.is_free(PEER)
    assert process.wanted(PEER) is None
  # And once.
  assert processes.agreed() == {}


def test_a_slow_process_delays_all_and_splits_none(processes):
  load(processes.first, Proposal(1, 10))
  processes.agreed()
  quick, slow = processes.others
  load(quick, Proposal(1, 10))
  for _ in range(3):
    assert processes.agreed() == {}
    assert slow.wanted(PEER) == Proposal(1, 10)
    assert quick.wanted(PEER) is None
    assert not processes.first.is_free(PEER)
  load(slow, Proposal(1, 10))
  assert processes.agreed() == {PEER: (1, 10)}


def test_one_that_cannot_load_it_drops_it_everywhere(processes):
  load(processes.first, Proposal(1, 10))
  processes.agreed()
  able, unable = processes.others
  load(able, Proposal(1, 10))
  unable.failed(PEER)
  outcomes = processes.meet()
  assert [outcome.failed for outcome in outcomes] == [(PEER,)] * PROCESSES
  assert all(not outcome.agreed for outcome in outcomes)
  # Nobody holds on to it, and the first looks for another.
  for process in processes.all:
    assert process.is_free(PEER)
    assert process.wanted(PEER) is None
  assert [outcome.failed for outcome in processes.meet()] == [()] * PROCESSES
  load(processes.first, Proposal(1, 20))
  processes.agreed()
  for process in processes.others:
    load(process, Proposal(1, 20))
  assert processes.agreed() == {PEER: (1, 20)}


def test_a_failure_counts_against_what_was_proposed_alone(processes):
  # One from before the first has proposed anything.
  processes.others[0].failed(PEER)
  load(processes.first, Proposal(1, 10))
  outcomes = processes.meet()
  assert outcomes[0].failed == (PEER,)
  load(processes.first, Proposal(1, 20))
  assert [outcome.failed for outcome in processes.meet()] == [()] * PROCESSES
  # One that could be loaded after all.
  processes.others[0].failed(PEER)
  for process in processes.others:
    load(process, Proposal(1, 20))
  assert processes.agreed() == {PEER: (1, 20)}


def test_another_publication_meanwhile_is_not_mixed_with_it(processes):
  """The first process takes a newer one up while the others load."""
  load(processes.first, Proposal(1, 10))
  processes.agreed()
  load(processes.first, Proposal(1, 20))
  for process in processes.others:
    load(process, Proposal(1, 10))
  assert processes.agreed() == {}
  for process in processes.others:
    assert process.wanted(PEER) == Proposal(1, 20)
    load(process, Proposal(1, 20))
  outcomes = processes.meet()
  for outcome in outcomes:
    assert outcome.agreed[PEER][1].variables == {'step': 20}


def test_the_same_step_of_another_life_is_another_publication(processes):
  load(processes.first, Proposal(2, 10))
  processes.agreed()
  for process in processes.others:
    load(process, Proposal(1, 10))
  assert processes.agreed() == {}
  for process in processes.others:
    assert process.wanted(PEER) == Proposal(2, 10)
    load(process, Proposal(2, 10))
  assert processes.agreed() == {PEER: (2, 10)}


def test_peers_are_agreed_on_one_by_one(processes):
  for peer, step in ((0, 5), (2, 7)):
    load(processes.first, Proposal(1, step), peer)
  processes.agreed()
  for process in processes.others:
    load(process, Proposal(1, 7), 2)
  assert processes.agreed() == {2: (1, 7)}
  for process in processes.others:
    assert process.wanted(0) == Proposal(1, 5)
  processes.others[0].failed(0)
  outcomes = processes.meet()
  assert [outcome.failed for outcome in outcomes] == [(0,)] * PROCESSES


def test_the_draw_of_neighbours_is_that_of_the_first(processes):
  outcomes = processes.meet(reloads=(4, 3, 9))
  assert [outcome.reload for outcome in outcomes] == [4] * PROCESSES


def test_alone_it_agrees_with_itself_at_once():
  one = Agreement(MEMBERS)
  load(one, Proposal(1, 10))
  outcome = one.meet(2)
  assert (outcome.agreed[PEER][0], outcome.reload) == (10, 2)
  assert agreement.Outcome({}, (), 3) == one.meet(3)


@pytest.mark.parametrize('seed', range(5))
def test_whoever_is_slow_or_fails_they_stay_the_same(processes, seed):
  """Random delays and failures: the same copies, in order, and progress."""
  rng = random.Random(seed)
  steps = itertools.count(1)
  taught = []
  for _ in range(60):
    if processes.first.is_free(PEER) and rng.random() < 0.7:
      load(processes.first, Proposal(1, next(steps)))
    for process in processes.others:
      wanted = process.wanted(PEER)
      if wanted and rng.random() < 0.5:
        if rng.random() < 0.2:
          process.failed(PEER)
        else:
          load(process, wanted)
    taught += [step for _, step in processes.agreed().values()]
  assert taught == sorted(set(taught))
  assert len(taught) > 5

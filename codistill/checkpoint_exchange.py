"""Members of many jobs meet in a folder: Orbax checkpoints, read when finished.

The paper's members are jobs that share nothing else (§2.1). Each publishes its
weights to `<folder>/<member>/<step>/` and takes up the freshest finished ones
of its neighbours, both in the background: the train loop copies its weights on
the device and goes on. Members start late, die, come back, stall or fall ill;
whoever is left goes on with what it has.

With `synchronous` on, members wait for each other instead, so that every one
sees exactly what it would see of members in the same process.

Of a member of several processes (`codistill.hosts`) the first one publishes and
holds the lease; all of them load what `codistill.agreement` says.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from etils import epath

from codistill import hosts, precision, publication
from codistill.agreement import Agreement
from codistill.algorithm import Account, Exchange, Peer, Publications
from codistill.exchange import (
  Copy,
  all_finite,
  check_cadence,
  check_precisions,
  choose_peers,
  from_publications,
  make_copy,
  reload_number,
  to_publications,
)
from codistill.lease import Lease, LeaseLostError, read_lease
from codistill.precision import FULL
from codistill.publication import Notes, UnreadableError
from codistill.rules import ANY_PEER, Rules, TaskLosses
from codistill.topology import Teachers, Topology

PyTree = Any
_LOG = logging.getLogger(__name__)
# Seconds: between two looks at what a synchronous member waits for, for the
# last publications at the end, and the most between two attempts at a
# publication that cannot be read.
_LOOK_S = 0.02
_CLOSE_S = 30.0
_MOST_PATIENCE_S = 60.0
# Events kept for whoever asks.
_MOST_EVENTS = 1_000
# Beyond all steps.
_NEVER = 1 << 62
# Refusals that a lease remembers for synchronous peers.
_REFUSALS = 100
# Meetings of a member's processes in a reload interval: a copy is proposed at
# one and teaches from the next or a later one on.
_MEETINGS = 4


class PeerTimeoutError(Exception):
  """A synchronous member has waited long enough."""


class WaitInterruptedError(Exception):
  """A synchronous member was told to stop while it waited."""


@dataclasses.dataclass(eq=False)
class _Offer:
  """A copy on its way to the folder."""

  member: int
  step: int
  copy: Copy
  began: float  # Monotonic.
  stall_seconds: float = 0.0


class CheckpointExchange(Exchange):
  """Members that exchange Orbax checkpoints through a folder.

  Enter it before use: it takes a lease on each of this process's members, so
  that there is one job a member, and starts a thread that publishes and one
  that reads.
  """

  def __init__(
    self,
    folder: epath.PathLike,
    topology: Topology,
    *,
    members: Iterable[int],
    like: PyTree,
    reload_interval_steps: int,
    delay_steps: int = 0,
    rules: Rules = ANY_PEER,
    synchronous: bool = False,
    publish_precision: str = FULL,
    teacher_precision: str = FULL,
    config_hash: str = '',
    keep_publications: int = 3,
    keep_s: float = 30.0,
    poll_interval_s: float = 0.5,
    wait_timeout_s: float = 600.0,
    lease_timeout_s: float = 60.0,
  ):
    """Reads and writes nothing yet.

    Args:
      folder: shared by all members; local, or an object store as far as Orbax
        and etils go.
      topology: who learns from whom; redrawn, if it is, at a member's own
        reload intervals.
      members: those of this process.
      like: a member's variables, or `jax.ShapeDtypeStruct`s of them with the
        shardings that peers are to be loaded into.
      reload_interval_steps: k, updates between two publications, ≥ 1.
      delay_steps: d ≥ 0, by how many more steps each publication is held back;
        for synchronous members.
      rules: which peers may teach.
      synchronous: wait for each other rather than take the freshest.
      publish_precision: what this process publishes in.
      teacher_precision: what it holds teachers in.
      config_hash: publications with another one are not read.
      keep_publications: how many of the newest stay in the folder, ≥ 2.
      keep_s: and for how many seconds after publication all do, so that slow
        readers get to the end.
      poll_interval_s: seconds between two looks at the neighbours' folders.
      wait_timeout_s: seconds that a synchronous member waits for a peer.
      lease_timeout_s: seconds after which a job without a sign of life is
        taken for dead.

    Raises:
      ValueError: if a number is out of range, or a delay is asked of members
        that have no common steps.
    """
    check_cadence(reload_interval_steps, delay_steps)
    check_precisions(publish_precision, teacher_precision)
    if delay_steps and not synchronous:
      raise ValueError(
        'delay_steps counts steps that members have in common, and those of '
        'several jobs have none; set synchronous, or delay_steps to 0'
      )
    if keep_publications < 2:
      raise ValueError(
        f'keep_publications is {keep_publications}; with less than 2 the one '
        'that is being read goes'
      )
    for name, value in (
      ('keep_s', keep_s),
      ('poll_interval_s', poll_interval_s),
      ('wait_timeout_s', wait_timeout_s),
    ):
      if value < 0:
        raise ValueError(f'{name} must not be negative: {value}')
    self._folder = epath.Path(folder)
    if '://' not in self._folder.as_posix():
      self._folder = self._folder.resolve()  # Orbax takes no relative one.
    self._topology = topology
    self._members = tuple(members)
    self._like = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=leaf.sharding
      ),
      like,
    )
    # Without places, so that they can be told to another process.
    self._shapes = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), like
    )
    self._publish_precision = publish_precision
    self._teacher_precision = teacher_precision
    self._interval = reload_interval_steps
    self._lag = delay_steps + 1
    self._rules = rules
    self._synchronous = synchronous
    self._config_hash = config_hash
    self._keep = keep_publications
    self._keep_s = keep_s
    self._poll_s = poll_interval_s
    self._wait_s = wait_timeout_s
    self._first = hosts.is_first()
    # Whoever has a world of several saves and loads beside it.
    self._beside = hosts.OwnWorld() if hosts.are_several() else None
    self._agreement = (
      Agreement(topology.members)
      if hosts.are_several() and not synchronous
      else None
    )
    self._met: set[int] = set()
    self._meet_every = max(1, reload_interval_steps // _MEETINGS)
    self._leases = {
      member: Lease(
        self._member_folder(member) / 'lease.json',
        timeout_s=lease_timeout_s,
        what=f'member {member} in {self._folder}',
        step=None,
        refused=[],
        withdrawn=None,
      )
      for member in (self._members if self._first else ())
    }
    self._losses = TaskLosses()
    self._last_step: dict[int, int] = {}
    # Why what a synchronous member offered is not in the folder, by step.
    self._gave_up: dict[tuple[int, int], str] = {}
    self._why: dict[int, str] = {}
    # Shared with the threads, under this lock.
    self._changed = threading.Condition()
    self._offers: list[_Offer] = []
    self._publishing = False
    self._copies: dict[int, dict[int, Copy]] = {
      member: {} for member in range(topology.members)
    }
    # At which reload each member is, and whose teachers are its teachers now: a
    # graph that is redrawn changes when all of the newly drawn have been looked
    # for, and then for all processes of a member at once.
    self._reload = dict.fromkeys(self._members, 0)
    self._looked_for = dict(self._reload)
    self._followed = dict(self._reload)
    self._events: dict[int, collections.deque[dict[str, Any]]] = {
      # Whoever does not ask need not pay.
      member: collections.deque(maxlen=_MOST_EVENTS)
      for member in self._members
    }
    self._warned: set[tuple[Any, ...]] = set()
    self._failed_loads: dict[int, int] = {}
    self._closing = threading.Event()
    self._threads: list[threading.Thread] = []
    # Of the train loop alone.
    self._left_out: dict[int, dict[int, str]] = {}
    self._stalls: dict[int, float] = {}
    self._seen: dict[tuple[int, int], int] = {}
    # Of the publisher's thread alone.
    self._published_at: dict[tuple[int, int], float] = {}
    self._began = time.monotonic()
    # Of whoever reads: what is known of publications, by (member, step, time),
    # and of those that could not be read, when to try again.
    self._notes: dict[tuple[int, int, int], Notes] = {}
    self._patience: dict[tuple[int, int, int], tuple[float, float]] = {}

  # The life of an exchange.

  def __enter__(self) -> CheckpointExchange:
    """Takes the leases and starts to publish and to read.

    Raises:
      LeaseHeldError: if another job does one of these members' work.
      OSError: if the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
      for member, lease in self._leases.items():
        known = self._incarnations(member)
        before = read_lease(lease.path).get('refused')
        if isinstance(before, list):
          # Peers may not have got there yet.
          lease.notes['refused'] = before
        lease.acquire(at_least=1 + max(known, default=0))
        stack.callback(lease.release)
        publication.clear(self._member_folder(member))
      stack.pop_all()
    work = [self._publish_forever]
    if not self._synchronous:
      work.append(self._read_forever)
    if not self._first:
      work.remove(self._publish_forever)
    # Daemons: a disk that hangs must not keep the process.
    self._threads = [
      threading.Thread(target=one, name=one.__name__, daemon=True)
      for one in work
    ]
    for thread in self._threads:
      thread.start()
    return self

  def __exit__(self, *exception: object) -> None:
    """Publishes what was offered, within bounds, and returns the leases."""
    with contextlib.suppress(LeaseLostError):
      self._check_leases()
      self._flush(_CLOSE_S)
    self._closing.set()
    with self._changed:
      self._changed.notify_all()
    for thread in self._threads:
      # The interpreter's end is no place for one at work in native code.
      thread.join(_CLOSE_S)
    for member, lease in self._leases.items():
      lease.release(step=self._last_step.get(member))
    if self._beside is not None:
      self._beside.close()

  def forget(self) -> None:
    """Removes what this process's members published in an earlier run."""
    for member, lease in self._leases.items():
      folder = self._member_folder(member)
      for step in publication.steps(folder):
        publication.remove(folder / str(step))
      lease.note(refused=[])

  # What Algorithm 1 asks for.

  def offer(
    self, member: int, step: int, variables: PyTree, task_loss: Any = None
  ) -> None:
    """Publishes a copy, in the background, every k-th step.

    If the one before is still on its way to a slow disk, this one waits in its
    place; an asynchronous member forgets one that waits already.

    Raises:
      LeaseLostError: if another job has taken over.
    """
    began = time.monotonic()
    self._check_leases()
    self._last_step[member] = step
    self._losses.add(member, task_loss)
    task_loss = self._losses.publish(member) if self._is_due(step) else None
    if self._is_due(step) and self._first:
      copy = make_copy(
        # What this process has of it: no other takes part.
        jax.tree.map(_here, variables),
        task_loss,
        self._publish_precision,
        self._publish_precision,
      )
      copy.incarnation = self._leases[member].incarnation
      offer = _Offer(member, step, copy, began)
      self._enqueue(offer)
      offer.stall_seconds = time.monotonic() - began
    self._stall(member, began)

  def freshest(self, member: int, step: int) -> tuple[Peer, ...]:
    """The freshest copy of each neighbour that may teach.

    Raises:
      LeaseLostError: if another job has taken over.
      PeerTimeoutError: if a synchronous member has waited too long.
      WaitInterruptedError: if it was told to stop while it waited.
    """
    began = time.monotonic()
    self._check_leases()
    if self._agreement is not None and (
      member not in self._met or step % self._meet_every == 0
    ):
      self._meet(member, step)

    def newest(peer: int) -> tuple[int, Copy] | None:
      found = (
        self._await_visible(member, peer, step)
        if self._synchronous
        else self._newest(peer)
      )
      if found is not None:
        self._saw(member, peer, found[0])
      return found

    teachers = self._teachers_at(member, step)
    peers, self._left_out[member] = choose_peers(
      member, step, teachers, newest, self._rules, self._losses
    )
    for peer in set(self._topology.candidates(member)) - set(teachers):
      self._saw(member, peer, self._visible(step))
    self._stall(member, began)
    return peers

  def account(self, member: int) -> Account:
    """What was done for a member since it was last asked."""
    with self._changed:
      events = tuple(self._events[member])
      self._events[member].clear()
      failed = sum(
        self._failed_loads.get(peer, 0)
        for peer in self._topology.candidates(member)
      )
    return Account(
      left_out=self._left_out.pop(member, {}),
      failed_loads=failed,
      stall_seconds=self._stalls.pop(member, 0.0),
      events=events,
    )

  def withdraw(self, member: int) -> None:
    """Tells peers not to wait for this member any more."""
    if self._first:
      self._leases[member].note(withdrawn=self._last_step.get(member, 0))
    # It asks for nothing any more, either.
    for peer in self._topology.candidates(member):
      self._saw(member, peer, _NEVER)

  def publications(self) -> Publications:
    """The copies that this process has of its neighbours.

    A synchronous member's own are in the folder by then, because it will not
    offer them again.

    Raises:
      PeerTimeoutError: if they cannot be written in time.
    """
    if self._synchronous:
      patience = min(self._wait_s, _CLOSE_S) if self.should_stop() else None
      landed = self._flush(self._wait_s if patience is None else patience)
      if hosts.any_says(not landed or bool(self._gave_up)):
        why = ''.join(f' ({text})' for text in self._gave_up.values())
        raise PeerTimeoutError(
          f'could not publish to {self._folder} in time{why}; see that it can '
          'be written, or allow for more (codistill.wait_timeout_s)'
        )
    with self._changed:
      found = to_publications(self._copies, self._losses)
    steps = {str(member): step for member, step in self._last_step.items()}
    return found._replace(notes={**found.notes, 'last_step': steps})

  def restore(self, publications: Publications) -> None:
    """Puts back what `publications` returned."""
    copies = from_publications(publications, self._losses)
    for member, step in publications.notes['last_step'].items():
      self._last_step[int(member)] = step
    with self._changed:
      for member, steps in copies.items():
        # What a thread has read since is at least as fresh.
        self._copies[member] = {**steps, **self._copies[member]}

  # Publishing.

  def _enqueue(self, offer: _Offer) -> None:
    with self._changed:
      mine = [one for one in self._offers if one.member == offer.member]
      if self._synchronous and mine:
        # Nothing may be left out, and no queue may grow for ever: it grows by
        # one a timeout. Whoever stops does so before the next update.
        deadline = time.monotonic() + self._wait_s
        while (
          mine[-1] in self._offers
          and time.monotonic() < deadline
          and not self.should_stop()
        ):
          self._changed.wait(_LOOK_S)
      elif mine:
        self._offers.remove(mine[-1])
        self._event(
          offer.member,
          'skip',
          publication=mine[-1].step,
          message='the disk is slower than the training; some publications '
          'are left out',
        )
      self._offers.append(offer)
      self._changed.notify_all()

  def _publish_forever(self) -> None:
    while True:
      with self._changed:
        self._changed.wait_for(lambda: self._offers or self._closing.is_set())
        if not self._offers:
          return
        # First: at no moment is an offer neither waiting nor on its way.
        self._publishing = True
        offer = self._offers.pop(0)
        self._changed.notify_all()
      try:
        self._publish(offer)
      # The thread must live: whoever comes after may be well.
      except Exception as error:
        self._event(
          offer.member,
          'failed publish',
          publication=offer.step,
          message=f'member {offer.member} cannot publish: {_brief(error)}',
        )
      finally:
        with self._changed:
          self._publishing = False
          self._changed.notify_all()

  def _publish(self, offer: _Offer) -> None:
    """Publishes or refuses; a synchronous member tries until it has."""
    member, lease = offer.member, self._leases[offer.member]
    # Whoever was suspended for long must not undo what its successor did.
    lease.beat()
    lease.check()
    if not offer.copy.finite:
      refused = [*lease.notes['refused'], offer.step][-_REFUSALS:]
      lease.note(refused=refused, step=offer.step)
      self._event(
        member,
        'refuse',
        publication=offer.step,
        message=f'member {member} is not finite at step {offer.step} and '
        'publishes nothing',
      )
      return
    until = time.monotonic() + (self._wait_s if self._synchronous else 0)
    while True:
      try:
        self._write(offer)
        break
      # Whatever a disk or Orbax may raise: training goes on without it.
      except Exception as error:
        with contextlib.suppress(OSError):
          publication.clear(self._member_folder(member))  # Disks are finite.
        self._event(
          member,
          'failed publish',
          publication=offer.step,
          message=f'member {member} cannot publish: {_brief(error)}',
        )
        if self._closing.wait(1.0) or time.monotonic() > until:
          if self._synchronous:
            self._gave_up[member, offer.step] = _brief(error)
          return
    lease.note(step=offer.step)
    try:
      self._prune(member)
    except Exception as error:
      self._event(
        member,
        'failed prune',
        message=f'cannot remove old publications of member {member}: '
        f'{_brief(error)}',
      )

  def _write(self, offer: _Offer) -> None:
    folder = self._member_folder(offer.member)
    copy = offer.copy
    notes = Notes(
      member=offer.member,
      step=offer.step,
      incarnation=copy.incarnation,
      wall_time=time.time(),
      task_loss=None if copy.task_loss is None else float(copy.task_loss),
      config_hash=self._config_hash,
      precision=self._publish_precision,
      num_bytes=precision.num_bytes(copy.variables),
    )
    if not (self._synchronous and self._is_published(folder, notes)):
      self._call(
        publication.write, folder, jax.device_get(copy.variables), notes
      )
    self._published_at[offer.member, offer.step] = time.monotonic()
    self._event(
      offer.member,
      'publish',
      publication=offer.step,
      bytes=notes.num_bytes,
      took_seconds=time.monotonic() - offer.began,
      stall_seconds=offer.stall_seconds,
    )

  def _is_published(self, folder: epath.Path, notes: Notes) -> bool:
    """Whether an earlier life did this: a synchronous run repeats itself."""
    try:
      there = self._call(publication.read_notes, folder / str(notes.step))
    except UnreadableError:
      return False
    return there.config_hash == notes.config_hash

  def _prune(self, member: int) -> None:
    """Removes what is neither among the newest nor young."""
    folder = self._member_folder(member)
    now = time.monotonic()
    # What this life did not publish is older than all that it did, unless it
    # is synchronous and does the same again.
    ordered = sorted(
      publication.steps(folder),
      key=lambda step: (
        self._synchronous or (member, step) in self._published_at,
        step,
      ),
    )
    for step in ordered[: -self._keep]:
      # What was there before this life is as old as it at the least.
      born = self._published_at.get((member, step), self._began)
      if now - born >= self._keep_s:
        publication.remove(folder / str(step))
        self._published_at.pop((member, step), None)

  def _incarnations(self, member: int) -> list[int]:
    """Of all that a member has published and not removed."""
    folder = self._member_folder(member)
    found = []
    for step in publication.steps(folder):
      with contextlib.suppress(UnreadableError):
        notes = self._call(publication.read_notes, folder / str(step))
        found.append(notes.incarnation)
    return found

  def _flush(self, timeout_s: float) -> bool:
    """Waits until all that was offered is published, or given up."""
    with self._changed:
      return self._changed.wait_for(
        lambda: not self._offers and not self._publishing, timeout_s
      )

  # Reading.

  def _read_forever(self) -> None:
    while True:
      with self._changed:
        reloads = dict(self._reload)
      for peer in self._teachers_of(reloads, self._followed):
        folder_key = (peer, -1, 0)
        try:
          if self._may_try(folder_key):
            self._read_newest(peer)
            self._patience.pop(folder_key, None)
        # A folder may be anything at any time: the next look may tell.
        except Exception as error:
          text = f'cannot look for member {peer}: {_brief(error)}'
          self._failed(peer, text, folder_key)
      self._follow(reloads)
      if self._closing.wait(max(self._poll_s, _LOOK_S)):
        return

  def _follow(self, reloads: Mapping[int, int]) -> None:
    """Lets those teach who have been looked for, and frees the others."""
    with self._changed:
      self._looked_for = dict(reloads)
      if self._agreement is None:
        self._followed = dict(reloads)
      wanted = self._teachers_of(self._reload, reloads, self._followed)
      for peer in self._copies.keys() - set(wanted):
        self._copies[peer] = {}

  def _teachers_of(self, *reloads: Mapping[int, int]) -> list[int]:
    """Of any of this process's members, at any of these reloads."""
    return sorted(
      {
        peer
        for some in reloads
        for member, reload in some.items()
        for peer in self._topology.teachers(member, reload)
      }
    )

  def _meet(self, member: int, step: int) -> None:
    """Takes up what all processes of this member have."""
    self._teachers_at(member, step)
    with self._changed:
      looked_for = self._looked_for[member]
    outcome = self._agreement.meet(looked_for)
    self._met.add(member)
    with self._changed:
      self._followed[member] = outcome.reload
      for peer, (at, copy) in outcome.agreed.items():
        self._copies[peer] = {at: copy}
    for peer in outcome.failed:
      text = f'not all processes of member {member} can load member {peer}'
      self._failed(peer, text, (peer, -1, 0))

  def _read_newest(self, peer: int) -> None:
    """Takes up the best publication that is better than what is there."""
    if self._agreement is not None:
      if not self._first:
        return self._read_proposed(peer)
      if not self._agreement.is_free(peer):
        return None
    with self._changed:
      have = max(
        ((copy.incarnation, step) for step, copy in self._copies[peer].items()),
        default=None,
      )
    listed = publication.steps(self._member_folder(peer))
    self._forget_but(peer, listed)
    when = {
      (notes.incarnation, notes.step): written
      for step, written in listed.items()
      if (notes := self._notes_of(peer, step, written)) is not None
    }
    if have is not None and when and have[0] > max(when)[0]:
      lease = read_lease(self._member_folder(peer) / 'lease.json')
      if lease and lease['incarnation'] < have[0]:
        # It has begun anew, in a folder that was emptied.
        have = None
    for found in sorted(when, reverse=True):
      if have is not None and found <= have:
        return
      if self._load(peer, found[1], when[found]):
        return

  def _read_proposed(self, peer: int) -> None:
    """Takes up what the first process has chosen, or says that it cannot."""
    proposal = self._agreement.wanted(peer)
    if proposal is None:
      return
    listed = publication.steps(self._member_folder(peer))
    self._forget_but(peer, listed)
    written = listed.get(proposal.step)
    notes = (
      None if written is None else self._notes_of(peer, proposal.step, written)
    )
    if (
      notes is None
      or notes.incarnation != proposal.incarnation
      or not self._load(peer, proposal.step, written)
    ):
      self._agreement.failed(peer)

  def _notes_of(self, peer: int, step: int, written: int) -> Notes | None:
    """What a publication says of itself, if it can be read and is for us."""
    key = (peer, step, written)
    if key not in self._notes:
      if not self._may_try(key):
        return None
      path = self._member_folder(peer) / str(step)
      try:
        notes = self._call(publication.read_notes, path)
      except UnreadableError as error:
        self._failed(peer, str(error), key)
        return None
      self._notes[key] = notes
    notes = self._notes[key]
    if notes.config_hash != self._config_hash:
      if self._may_try(key):
        text = f'{self._member_folder(peer) / str(step)} is of another config'
        self._failed(peer, text, key)
      return None
    return notes

  def _load(self, peer: int, step: int, written: int) -> bool:
    """Loads a publication for the train loop to find."""
    key = (peer, step, written)
    if not self._may_try(key):
      return False
    began = time.monotonic()
    path = self._member_folder(peer) / str(step)
    try:
      variables, notes = self._load_and_place(path)
    except UnreadableError as error:
      self._failed(peer, str(error), key)
      return False
    copy = Copy(variables, True, notes.task_loss, notes.incarnation)
    with self._changed:
      if self._agreement is not None:
        self._agreement.loaded(peer, step, copy)
      elif self._synchronous:
        self._copies[peer][step] = copy
      else:
        self._copies[peer] = {step: copy}
    self._event(
      self._reader_of(peer),
      'load',
      peer=peer,
      publication=step,
      bytes=notes.num_bytes,
      took_seconds=time.monotonic() - began,
      incarnation=notes.incarnation,
    )
    return True

  def _load_and_place(self, path: epath.Path) -> tuple[PyTree, Notes]:
    """By way of the host, so that a device holds no more than the teacher."""
    variables, notes = self._call(publication.load, path, self._shapes)
    with jax.default_device(publication.host_device()):
      if not bool(all_finite(variables)):
        raise UnreadableError(f'{path} is not finite')
      held = precision.convert(
        variables, self._like, notes.precision, self._teacher_precision
      )
    return precision.place_like(held, self._like), notes

  def _teachers_at(self, member: int, step: int) -> Teachers:
    """Whom a member learns from in an update."""
    reload = reload_number(step, self._lag, self._interval)
    if self._synchronous:
      return self._topology.teachers(member, reload)
    with self._changed:
      self._reload[member] = reload
      return self._topology.teachers(member, self._followed[member])

  def _newest(self, peer: int) -> tuple[int, Copy] | None:
    with self._changed:
      copies = self._copies[peer]
      return max(
        copies.items(),
        key=lambda item: (item[1].incarnation, item[0]),
        default=None,
      )

  def _await_visible(
    self, member: int, peer: int, step: int
  ) -> tuple[int, Copy] | None:
    """The newest copy visible at `step`, once all processes have it.

    Raises:
      PeerTimeoutError: if it does not come in time.
      WaitInterruptedError: if one of the processes is to stop.
    """
    at = self._visible(step)
    if at in self._copies[peer]:
      return at, self._copies[peer][at]
    failure = None
    try:
      at = self._await_publication(member, peer, at)
    except (PeerTimeoutError, WaitInterruptedError) as error:
      failure = error
    told = hosts.gather([at, isinstance(failure, WaitInterruptedError)])
    if told[:, 1].any():
      raise WaitInterruptedError
    if failure is not None:
      raise failure
    if (told[:, 0] != at).any():
      raise PeerTimeoutError(
        f'processes of member {member} see different publications of member '
        f'{peer} in {self._folder}; see that all of them reach the same folder'
      )
    return None if at < 0 else (at, self._copies[peer][at])

  def _await_publication(self, member: int, peer: int, at: int) -> int:
    """Waits for the publication of a step, or for the last before it.

    Returns:
      Its step; below zero if there is none.
    """
    deadline = time.monotonic() + self._wait_s
    while at >= 0:
      if at in self._copies[peer]:
        break
      if self._load_if_finished(peer, at):
        continue
      if self._never_comes(peer, at):
        at -= self._interval
        continue
      self._check_leases()
      if self.should_stop():
        raise WaitInterruptedError
      if time.monotonic() > deadline:
        why = f', and {self._why[peer]}' if peer in self._why else ''
        raise PeerTimeoutError(
          f'member {peer} has not published step {at} to {self._folder} within '
          f'{self._wait_s:g} s (codistill.wait_timeout_s){why}; start it, or '
          'set codistill.synchronous to False'
        )
      time.sleep(_LOOK_S)
    return at

  def _load_if_finished(self, peer: int, step: int) -> bool:
    with contextlib.suppress(OSError):
      written = publication.steps(self._member_folder(peer)).get(step)
      return (
        written is not None
        and self._notes_of(peer, step, written) is not None
        and self._load(peer, step, written)
      )
    return False

  def _never_comes(self, peer: int, step: int) -> bool:
    """Whether a member has said that it will not publish a step."""
    lease = read_lease(self._member_folder(peer) / 'lease.json')
    refused, last = lease.get('refused'), lease.get('withdrawn')
    # Anything may stand in a file that others can write.
    return (isinstance(refused, list) and step in refused) or (
      isinstance(last, int) and last < step
    )

  def _visible(self, step: int) -> int:
    """Of which step the newest publication is that may be seen at `step`."""
    last = step - self._lag
    return last - last % self._interval

  def _saw(self, member: int, peer: int, step: int) -> None:
    """Frees what none of this process's members will ask for again."""
    self._seen[member, peer] = step
    readers = self._readers_of(peer)
    oldest = min(self._seen.get((reader, peer), -1) for reader in readers)
    with self._changed:
      if self._synchronous:
        for step in [s for s in self._copies[peer] if s < oldest]:
          del self._copies[peer][step]
        self._forget_but(
          peer, {k[1]: k[2] for k in self._notes if k[1] >= oldest}
        )

  def _forget_but(self, peer: int, listed: Mapping[int, int]) -> None:
    """Drops what is known of a peer's publications that are not there."""
    for known in (self._notes, self._patience):
      for key in [k for k in known if k[0] == peer and k[1] >= 0]:
        if listed.get(key[1]) != key[2]:
          del known[key]

  # What threads and train loop tell each other.

  def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
    """Saves or loads: here, or beside a world of several processes."""
    if self._beside is None:
      return function(*arguments)
    return self._beside.call(function, *arguments)

  def _check_leases(self) -> None:
    for lease in self._leases.values():
      lease.check()

  def _is_due(self, step: int) -> bool:
    return step % self._interval == 0

  def _may_try(self, key: tuple[int, int, int]) -> bool:
    return time.monotonic() >= self._patience.get(key, (0.0, 0.0))[0]

  def _failed(self, peer: int, text: str, key: tuple[int, int, int]) -> None:
    """Counts a failed read, warns once a peer, and has patience with it."""
    pause = self._patience.get(key, (0.0, self._poll_s))[1]
    pause = min(2 * max(pause, _LOOK_S), _MOST_PATIENCE_S)
    self._patience[key] = (time.monotonic() + pause, pause)
    with self._changed:
      self._failed_loads[peer] = self._failed_loads.get(peer, 0) + 1
      self._why[peer] = text
    self._event(
      self._reader_of(peer),
      'failed load',
      peer=peer,
      publication=key[1],
      message=f'{text}; going on with what is there',
    )

  def _event(
    self, member: int, event: str, message: str | None = None, **facts: Any
  ) -> None:
    """Notes an event for the rows; of its kind and peer only one is said."""
    with self._changed:
      # What is wrong, not where: a message begins with a path or a name.
      what = tuple((message or '').split()[1:4])
      kind = (member, event, facts.get('peer'), what)
      if message is not None and kind not in self._warned:
        self._warned.add(kind)
        _LOG.warning(message)
        facts['message'] = message
      self._events[member].append({'event': event, **facts})

  def _reader_of(self, peer: int) -> int:
    """The first of this process's members that learns from a peer."""
    return self._readers_of(peer)[0]

  def _readers_of(self, peer: int) -> list[int]:
    """Those of this process's members that may learn from a peer."""
    return [m for m in self._members if peer in self._topology.candidates(m)]

  def _stall(self, member: int, began: float) -> None:
    """Notes how long the train loop has been kept."""
    stall = time.monotonic() - began
    self._stalls[member] = self._stalls.get(member, 0.0) + stall

  def _member_folder(self, member: int) -> epath.Path:
    return self._folder / str(member)


def _here(leaf: jax.Array) -> jax.Array:
  """An array's part on this process; all of it, if every device has that."""
  return leaf.addressable_data(0) if leaf.is_fully_replicated else leaf


def _brief(error: Exception) -> str:
  return f'{type(error).__name__} {" ".join(str(error).split())[:120]}'

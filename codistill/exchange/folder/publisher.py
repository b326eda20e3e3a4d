"""Writes the copies that members offer into their folder, in the background.

A publisher holds the leases of its members, so that a member has one job, and
removes publications that are neither young nor among the newest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from codistill import precision
from codistill.exchange.copies import Copy, make_copy
from codistill.exchange.folder import publication
from codistill.exchange.folder.journal import Journal
from codistill.exchange.folder.lease import Lease, LeaseLostError, read_lease
from codistill.exchange.folder.publication import Notes
from codistill.exchange.folder.settings import CLOSE_S, Settings
from codistill.exchange.rules import MeanLoss
from codistill.storage import step_folders
from codistill.storage.step_folders import UnreadableError, brief

PyTree = Any
# Seconds between two checks of whether to stop waiting for the disk.
_LOOK_S = 0.02
# Refused steps that a lease lists for synchronous peers.
_REFUSALS = 100


@dataclasses.dataclass(eq=False)
class _Offer:
  """A copy on its way to the folder."""

  member: int
  step: int
  copy: Copy
  began: float  # Monotonic.
  stall_seconds: float = 0.0


class Publisher:
  """Publishes for some members: a queue, and a thread that empties it.

  Attributes:
    gave_up: by member and step, the reason why a synchronous member's offer is
      not in the folder.
  """

  def __init__(
    self,
    folder: epath.Path,
    settings: Settings,
    *,
    members: Iterable[int],
    likes: Sequence[PyTree],
    notes: Mapping[int, Mapping[str, str]],
    journal: Journal,
    call: Callable[..., Any],
    should_stop: Callable[[], bool],
  ):
    """Reads and writes nothing yet.

    Args:
      folder: shared by all members.
      settings: precision of publications, and how long to try and to keep them.
        A synchronous member skips no publication and blocks the train loop
        instead.
      members: the members to publish for; without any, the publisher is idle.
      likes: of each member, its variables, or `jax.ShapeDtypeStruct`s of them.
      notes: of each member, recorded in its publications, as `Notes`.
      journal: receives events.
      call: calls a function of `publication` that saves or loads.
      should_stop: asked while the train loop is blocked.
    """
    self._folder = folder
    self._settings = settings
    self._likes = likes
    self._notes = notes
    self._journal = journal
    self._call = call
    self._should_stop = should_stop
    self._leases = {
      member: Lease(
        self._folder_of(member) / 'lease.json',
        timeout_s=settings.lease_timeout_s,
        what=f'member {member} in {folder}',
        step=None,
        refused=[],
        withdrawn=None,
        # `began`: the incarnation in which this life began anew, once known;
        # `finished`: whether it has ended.
        began=None,
        finished=False,
      )
      for member in members
    }
    self.gave_up: dict[tuple[int, int], str] = {}
    # Shared with the thread, under this lock.
    self._changed = threading.Condition()
    self._offers: list[_Offer] = []
    self._publishing = False
    self._closing = threading.Event()
    self._thread: threading.Thread | None = None
    # Used by the thread only.
    self._published_at: dict[tuple[int, int], float] = {}
    self._began = time.monotonic()

  def open(self) -> None:
    """Takes the leases and starts to publish.

    Raises:
      LeaseHeldError: if another job is at work on one of these members.
      OSError: if the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
      for member, lease in self._leases.items():
        known = self.incarnations(member)
        before = read_lease(lease.path).get('refused')
        if isinstance(before, list):
          # Peers may not have reached these steps yet.
          lease.notes['refused'] = before
        lease.acquire(at_least=1 + max(known, default=0))
        stack.callback(lease.release)
        step_folders.tidy(self._folder_of(member))
      stack.pop_all()
    if self._leases:
      # A daemon, because a disk that hangs must not keep the process alive.
      self._thread = threading.Thread(
        target=self._publish_forever, name='publisher', daemon=True
      )
      self._thread.start()

  def close(self, last_steps: Mapping[int, int], *, finished: bool) -> None:
    """Publishes pending offers, for a limited time, and returns the leases.

    Args:
      last_steps: each member's last step, recorded in its lease.
      finished: whether the run is finished, recorded too.
    """
    with contextlib.suppress(LeaseLostError):
      self.check_leases()
      self.flush(CLOSE_S)
    self._closing.set()
    with self._changed:
      self._changed.notify_all()
    if self._thread is not None:
      # Ending the interpreter during native code in a thread may crash.
      self._thread.join(CLOSE_S)
    for member, lease in self._leases.items():
      lease.release(step=last_steps.get(member), finished=finished)

  def check_leases(self) -> None:
    """Raises an error if a member is not this job's any more.

    Raises:
      LeaseLostError: if another job has taken over.
    """
    for lease in self._leases.values():
      lease.check()

  def offer(
    self,
    member: int,
    step: int,
    variables: PyTree,
    task_loss: MeanLoss | None,
  ) -> None:
    """Takes a copy to publish; ignores members that it does not publish for.

    If the one before is still being written to a slow disk, this one waits; for
    an asynchronous member it replaces one that waits already.
    """
    if member not in self._leases:
      return
    began = time.monotonic()
    copy = make_copy(
      # This process's part of the arrays, so that no other takes part.
      jax.tree.map(_here, variables),
      task_loss,
      self._settings.publish_precision,
      self._settings.publish_precision,
    )
    copy.incarnation = self._leases[member].incarnation
    offer = _Offer(member, step, copy, began)
    self._enqueue(offer)
    offer.stall_seconds = time.monotonic() - began

  def flush(self, timeout_s: float) -> bool:
    """Waits until all offers are published or given up."""
    with self._changed:
      return self._changed.wait_for(
        lambda: not self._offers and not self._publishing, timeout_s
      )

  def withdraw(self, member: int, last_step: int) -> None:
    """Tells peers not to wait for publications of a member after a step."""
    if member in self._leases:
      self._leases[member].note(withdrawn=last_step)

  def begin(self) -> dict[int, int]:
    """Begins these members anew: removes publications of their earlier lives.

    Returns:
      The incarnation of each.
    """
    for member, lease in self._leases.items():
      self._tidy(member, self._all)
      lease.note(refused=[], began=lease.incarnation)
    return {member: one.incarnation for member, one in self._leases.items()}

  def go_on(self, began: Mapping[int, int]) -> None:
    """Continues these members' lives that began in these incarnations."""
    for member, lease in self._leases.items():
      # In a folder that was emptied meanwhile, incarnations start again.
      least = min(began[member], lease.incarnation or began[member])
      lease.note(began=least)

  def incarnations(self, member: int) -> list[int]:
    """Returns the incarnations of a member's publications in the folder."""
    folder = self._folder_of(member)
    found = []
    for step in step_folders.finished(folder):
      with contextlib.suppress(UnreadableError):
        said = self._call(publication.describe, folder / str(step))
        found.append(said.notes.incarnation)
    return found

  def _enqueue(self, offer: _Offer) -> None:
    with self._changed:
      mine = [one for one in self._offers if one.member == offer.member]
      if self._settings.synchronous and mine:
        # Nothing may be left out, but the queue must stay short: it grows by
        # one a timeout, or once if the job is to stop, which ends its updates.
        deadline = time.monotonic() + self._settings.wait_timeout_s
        while (
          mine[-1] in self._offers
          and time.monotonic() < deadline
          and not self._should_stop()
        ):
          self._changed.wait(_LOOK_S)
      elif mine:
        self._offers.remove(mine[-1])
        self._journal.note(
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
        # First, so that an offer always counts as waiting or being published.
        self._publishing = True
        offer = self._offers.pop(0)
        self._changed.notify_all()
      try:
        self._publish(offer)
      # The thread must go on: the next offer may succeed.
      except Exception as error:
        self._note_failure(offer, error)
      finally:
        with self._changed:
          self._publishing = False
          self._changed.notify_all()

  def _publish(self, offer: _Offer) -> None:
    """Publishes or refuses; a synchronous member tries until it succeeds."""
    member, lease = offer.member, self._leases[offer.member]
    # A job that was suspended for long must not undo its successor's work.
    lease.beat()
    lease.check()
    if not offer.copy.finite:
      refused = [*lease.notes['refused'], offer.step][-_REFUSALS:]
      lease.note(refused=refused, step=offer.step)
      self._journal.note(
        member,
        'refuse',
        publication=offer.step,
        message=f'member {member} is not finite at step {offer.step} and '
        'publishes nothing',
      )
      return
    until = time.monotonic()
    if self._settings.synchronous:
      until += self._settings.wait_timeout_s
    while True:
      try:
        self._write(offer)
        break
      # A disk or Orbax may raise any error, and training goes on without it.
      except Exception as error:
        with contextlib.suppress(OSError):
          step_folders.tidy(self._folder_of(member))  # Disks are finite.
        self._note_failure(offer, error)
        if self._closing.wait(1.0) or time.monotonic() > until:
          if self._settings.synchronous:
            self.gave_up[member, offer.step] = brief(error)
          return
    lease.note(step=offer.step)
    self._tidy(member, self._old)

  def _tidy(self, member: int, choose: Callable[[int], list[int]]) -> None:
    """Removes old steps of a member; failures are tried again next time."""
    try:
      why = step_folders.tidy(self._folder_of(member), choose(member))
    # A disk may raise any error, which is no reason to stop.
    except Exception as error:
      why = brief(error)
    if why:
      self._journal.note(
        member,
        'failed prune',
        message=f'cannot remove old publications of member {member}: {why}',
      )

  def _note_failure(self, offer: _Offer, error: Exception) -> None:
    self._journal.note(
      offer.member,
      'failed publish',
      publication=offer.step,
      message=f'member {offer.member} cannot publish: {brief(error)}',
    )

  def _write(self, offer: _Offer) -> None:
    folder = self._folder_of(offer.member)
    copy = offer.copy
    notes = Notes(
      member=offer.member,
      step=offer.step,
      incarnation=copy.incarnation,
      wall_time=time.time(),
      task_loss=None if copy.task_loss is None else float(copy.task_loss),
      precision=self._settings.publish_precision,
      num_bytes=precision.num_bytes(copy.variables),
      **self._notes[offer.member],
    )
    if not (self._settings.synchronous and self._is_published(folder, notes)):
      self._call(
        publication.write, folder, jax.device_get(copy.variables), notes
      )
    self._published_at[offer.member, offer.step] = time.monotonic()
    self._journal.note(
      offer.member,
      'publish',
      publication=offer.step,
      bytes=notes.num_bytes,
      took_seconds=time.monotonic() - offer.began,
      stall_seconds=offer.stall_seconds,
    )

  def _is_published(self, folder: epath.Path, notes: Notes) -> bool:
    """Whether an earlier life did this: a synchronous run repeats itself."""
    path = folder / str(notes.step)
    # Without shardings, so that they can be sent to another process.
    like = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
      self._likes[notes.member],
    )
    try:
      # The host may have crashed before its disk had all of the numbers.
      there = self._call(publication.describe, path)
      self._call(publication.load, path, like, there)
    except UnreadableError:
      return False
    return there.notes.config_hash == notes.config_hash

  def _all(self, member: int) -> list[int]:
    """Returns the published steps of a member."""
    return list(step_folders.finished(self._folder_of(member)))

  def _old(self, member: int) -> list[int]:
    """Returns the steps that are neither young nor among the newest."""
    now = time.monotonic()
    # Publications of earlier lives are older than this life's, except for a
    # synchronous member, which repeats the same steps.
    ordered = sorted(
      self._all(member),
      key=lambda step: (
        self._settings.synchronous or (member, step) in self._published_at,
        step,
      ),
    )
    old = []
    for step in ordered[: -self._settings.keep_publications]:
      # A publication of an earlier life is at least as old as this life.
      born = self._published_at.get((member, step), self._began)
      if now - born >= self._settings.keep_s:
        self._published_at.pop((member, step), None)
        old.append(step)
    return old

  def _folder_of(self, member: int) -> epath.Path:
    return self._folder / str(member)


def _here(leaf: jax.Array) -> jax.Array:
  """Returns this process's part of an array; all of it if it is replicated."""
  return leaf.addressable_data(0) if leaf.is_fully_replicated else leaf

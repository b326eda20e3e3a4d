"""Reads peers' publications, and has patience with unreadable ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from codistill import precision
from codistill.exchange.copies import Copy, all_finite
from codistill.exchange.folder import publication
from codistill.exchange.folder.journal import Journal
from codistill.exchange.folder.lives import Lives
from codistill.exchange.folder.publication import Description, Notes
from codistill.exchange.folder.settings import Settings
from codistill.exchange.topology import Topology
from codistill.storage import step_folders
from codistill.storage.step_folders import UnreadableError

PyTree = Any
# The longest time between two attempts, in seconds.
_MOST_PATIENCE_S = 60.0
# A publication: its peer, its step, and when it was written. A folder, which
# may be unreadable as a whole, has the step −1.
_Key = tuple[int, int, int]


def _folder_key(peer: int) -> _Key:
  return (peer, -1, 0)


class Reader:
  """Reads publications into this process's shardings.

  One thread looks and loads. A failure is counted, noted in the journal and
  tried again, each time after twice the pause.

  Attributes:
    folder: shared by all members.
    lives: decides which lives of peers may teach.
  """

  def __init__(
    self,
    folder: epath.Path,
    topology: Topology,
    settings: Settings,
    *,
    members: Iterable[int],
    likes: Sequence[PyTree],
    expected: Mapping[int, Mapping[str, str]],
    lives: Lives,
    journal: Journal,
    call: Callable[..., Any],
  ):
    """Reads nothing yet.

    Args:
      folder: shared by all members.
      topology: the graph of members.
      settings: precision of teachers, and the pause between two looks, which
        doubles with each failure.
      members: this process's members.
      likes: of each member, its variables, or `jax.ShapeDtypeStruct`s of them
        with the shardings to load it into; the first device without.
      expected: of each member, the notes that its publications must have to be
        read: `config_hash`, `network` and `vocabulary`.
      lives: decides which lives of peers may teach.
      journal: receives events.
      call: calls a function of `publication` that saves or loads.
    """
    self.folder = folder
    self._topology = topology
    self._members = tuple(members)
    anywhere = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    self._likes = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(
        leaf.shape,
        leaf.dtype,
        # Of shapes alone, and of NumPy arrays.
        sharding=getattr(leaf, 'sharding', None) or anywhere,
      ),
      tuple(likes),
    )
    # Without shardings, so that they can be sent to another process.
    self._shapes = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self._likes
    )
    self._settings = settings
    self._expected = expected
    self.lives = lives
    self._journal = journal
    self._call = call
    self._described: dict[_Key, Description] = {}
    # Failures, under this lock: when to try again, and the pause before that.
    self._lock = threading.Lock()
    self._patience: dict[_Key, tuple[float, float]] = {}
    self._failed_loads: dict[int, int] = {}
    self._why: dict[int, str] = {}
    # Why peers with publications may not teach: `earlier` lives only, or the
    # note in which they differ from what is expected.
    self._left_out: dict[int, set[str]] = {}

  def students(self, peer: int) -> list[int]:
    """Returns this process's members that may learn from a peer."""
    return [m for m in self._members if peer in self._topology.candidates(m)]

  def listed(self, peer: int) -> dict[int, int]:
    """Lists a peer's finished publications: step → when it was written.

    Raises:
      OSError: if they cannot be listed.
    """
    listed = step_folders.finished(self.folder / str(peer))
    if not listed:
      self._left_out.pop(peer, None)
    return listed

  def absence(self, peer: int) -> str:
    """Why a peer has no copy, as `Account.left_out`."""
    return min(self._left_out.get(peer) or {'absent'})

  def notes(self, peer: int, step: int, written: int) -> Notes | None:
    """Reads a publication's metadata; None if it is unreadable or unfit."""
    key = (peer, step, written)
    path = self.folder / str(peer) / str(step)
    if key not in self._described and not self._may_try(key):
      return None
    try:
      notes = self._describe(key).notes
    except UnreadableError as error:
      self._failed(str(error), key)
      return None
    for kind in ('network', 'vocabulary'):
      theirs, ours = getattr(notes, kind), self._expected[peer][kind]
      # Publications of older code do not say it.
      if theirs not in ('', ours):
        self._leave_out(
          peer,
          kind,
          f'the {kind} of member {peer} is {theirs}, but member '
          f'{self.students(peer)[0]} expects {ours or "none"}: member {peer} '
          'cannot teach; give both the same config and data',
        )
        return None
    if notes.config_hash != self._expected[peer]['config_hash']:
      if self._may_try(key):
        self._failed(f'{path} is of another config', key)
      return None
    if not self.lives.may_teach(peer, notes.incarnation):
      self._leave_out(
        peer,
        'earlier',
        f'member {peer} does not teach until it is at work again: it published '
        f'before member {self.students(peer)[0]} began',
      )
      return None
    return notes

  def load(
    self, peer: int, step: int, written: int, take: Callable[[Copy], None]
  ) -> bool:
    """Loads a publication, if possible.

    Args:
      peer: its member.
      step: its step.
      written: its time of writing, from `listed`.
      take: puts the copy where the train loop finds it.

    Returns:
      Whether it was loaded.
    """
    key = (peer, step, written)
    if not self._may_try(key):
      return False
    began = time.monotonic()
    try:
      described = self._describe(key)
      variables = self._load_and_place(peer, step, described)
    except UnreadableError as error:
      # It may have been replaced, and say something else now.
      self._described.pop(key, None)
      self._failed(str(error), key)
      return False
    notes = described.notes
    take(Copy(variables, True, notes.task_loss, notes.incarnation))
    self._left_out.get(peer, set()).discard('earlier')
    self._journal.note(
      self.students(peer)[0],
      'load',
      peer=peer,
      publication=step,
      bytes=notes.num_bytes,
      took_seconds=time.monotonic() - began,
      incarnation=notes.incarnation,
    )
    return True

  def forget(self, peer: int, keep: Callable[[int, int], bool]) -> None:
    """Drops everything known about publications, except for some to keep.

    Args:
      peer: the publications' member.
      keep: (step, when it was written) → whether to keep it.
    """
    with self._lock:
      for known in (self._described, self._patience):
        for key in list(known):
          if key[0] == peer and key[1] >= 0 and not keep(*key[1:]):
            known.pop(key, None)

  def may_look(self, peer: int) -> bool:
    """Whether it is time to look at a peer's folder."""
    return self._may_try(_folder_key(peer))

  def looked(self, peer: int) -> None:
    """Ends the extra patience with a peer's folder after a success."""
    with self._lock:
      self._patience.pop(_folder_key(peer), None)

  def failed(self, peer: int, text: str) -> None:
    """Counts a failure with a peer's folder as a whole."""
    self._failed(text, _folder_key(peer))

  def failed_loads(self, member: int) -> int:
    """Failures with all peers of a member since the process began."""
    with self._lock:
      return sum(
        self._failed_loads.get(peer, 0)
        for peer in self._topology.candidates(member)
      )

  def why(self, peer: int) -> str | None:
    """Returns a peer's last failure."""
    with self._lock:
      return self._why.get(peer)

  def _describe(self, key: _Key) -> Description:
    """Reads, once, what a publication says of itself."""
    found = self._described.get(key)
    if found is None:
      peer, step, _ = key
      path = self.folder / str(peer) / str(step)
      found = self._described[key] = self._call(publication.describe, path)
    return found

  def _load_and_place(
    self, peer: int, step: int, described: Description
  ) -> PyTree:
    """Loads by way of the host, so a device stores only the teacher."""
    path, like = self.folder / str(peer) / str(step), self._likes[peer]
    shapes = self._shapes[peer]
    variables = self._call(publication.load, path, shapes, described)
    with jax.default_device(publication.host_device()):
      if not bool(all_finite(variables)):
        raise UnreadableError(f'{path} is not finite')
      held = precision.convert(
        variables,
        like,
        described.notes.precision,
        self._settings.teacher_precision,
      )
    return precision.place_like(held, like)

  def _may_try(self, key: _Key) -> bool:
    with self._lock:
      return time.monotonic() >= self._patience.get(key, (0.0, 0.0))[0]

  def _leave_out(self, peer: int, why: str, text: str) -> None:
    """Notes, once, that a peer's publications may not teach."""
    known = self._left_out.setdefault(peer, set())
    if why in known:
      return
    known.add(why)
    with self._lock:
      self._why[peer] = text
      # One of another network is of as much use as an unreadable one.
      failed = int(why != 'earlier')
      self._failed_loads[peer] = failed + self._failed_loads.get(peer, 0)
    student = self.students(peer)[0]
    self._journal.note(student, 'leave out', peer=peer, message=text)

  def _failed(self, text: str, key: _Key) -> None:
    """Counts a failed read, notes it, and lengthens the pause."""
    peer, step, _ = key
    with self._lock:
      pause = self._patience.get(key, (0.0, self._settings.poll_s))[1]
      pause = min(2 * pause, _MOST_PATIENCE_S)
      self._patience[key] = (time.monotonic() + pause, pause)
      self._failed_loads[peer] = self._failed_loads.get(peer, 0) + 1
      self._why[peer] = text
    self._journal.note(
      self.students(peer)[0],
      'failed load',
      peer=peer,
      publication=step,
      message=f'{text}; going on with the copies at hand',
    )

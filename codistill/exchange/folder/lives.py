"""Decides which lives of its peers may teach a member.

An exchange folder outlives a run. A member that begins anew learns from peers
that are at work at that time, or that come or go on later. It does not learn
from earlier publications: those of a run that has ended, or of a peer that had
finished. A member that is restored from a checkpoint may learn from the same
lives as before.

Runs need no names. Each life of a member's job has a number, its incarnation,
which its publications record, and a lease that changes with every heartbeat.
So a peer is at work if its lease has changed since a member began, no matter
what clocks say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from etils import epath

from codistill import hosts
from codistill.exchange.folder.lease import lives_here, over_in, read_lease


class _Past(NamedTuple):
  """A peer's state when this process's members began anew.

  Attributes:
    incarnation: publications of this life or an earlier one do not teach while
      the peer's lease is unchanged or missing.
    lease: that lease. A later one says in which incarnation the peer itself
      began anew, and publications from then on teach.
  """

  incarnation: int
  lease: dict[str, Any]


class Lives:
  """The lives that may teach the members of this process.

  The train loop says when members begin anew or are restored; from then on a
  thread may ask.
  """

  def __init__(
    self,
    folder: epath.Path,
    members: Iterable[int],
    peers: Iterable[int],
    *,
    synchronous: bool,
    incarnations: Callable[[int], Iterable[int]],
  ):
    """Knows nothing yet.

    Args:
      folder: shared by all members.
      members: this process's members.
      peers: members of other processes that may teach them.
      synchronous: members wait for each other. One that begins anew before it
        has ever finished repeats the same updates, and so do its peers.
      incarnations: incarnations of a member's publications in the folder.
    """
    self._folder = folder
    self._members = tuple(members)
    self._peers = tuple(peers)
    self._synchronous = synchronous
    self._incarnations = incarnations
    self._past: dict[int, _Past] = {}
    # The incarnation in which each of this process's members began anew.
    self._began: dict[int, int] = {}

  def look(self) -> None:
    """Notes which peers are at work, before this process's members begin."""
    mine = [self.lease(member) for member in self._members]
    finished = all(lease.get('finished') for lease in mine)
    for peer in self._peers:
      lease = self.lease(peer)
      before = lease.get('incarnation', 0)
      if self._synchronous:
        # A peer in the middle of a run repeats the same updates, and one that
        # has finished since then has finished this run.
        before = over_in(lease if finished else lease | {'finished': False})
        if not before:
          continue
      # A folder may raise an error; a later look reports it.
      with contextlib.suppress(OSError):
        before = before or max(self._incarnations(peer), default=0)
      # A peer that is at work may teach, so its present lease excludes nothing.
      # A peer on another host shows so with its next heartbeat.
      alive = lease.get('held') and lives_here(lease)
      self._past[peer] = _Past(before, {} if alive else lease)

  def begin(self, incarnations: Mapping[int, int]) -> None:
    """Lets this process's members begin anew, each in its incarnation.

    All processes of a member must call it, at the same point.
    """
    self._began = dict(incarnations)
    self._take(hosts.tell(self.notes()))

  def restore(self, notes: Mapping[str, Any] | None) -> dict[int, int]:
    """Restores this process's members.

    Args:
      notes: a result of `notes`; None if the checkpoint has none.

    Returns:
      The incarnation in which each of them began anew.
    """
    nothing: dict[str, Any] = {'past': {}, 'began': {}}
    self._take(nothing if notes is None else notes)
    return {member: self._began.get(member, 0) for member in self._members}

  def notes(self) -> dict[str, Any]:
    """Returns everything, for a checkpoint."""
    return {
      'past': {str(peer): list(past) for peer, past in self._past.items()},
      'began': {str(member): life for member, life in self._began.items()},
    }

  def lease(self, peer: int) -> dict[str, Any]:
    """Reads a peer's lease; {} if it is missing or unreadable."""
    return read_lease(self._folder / str(peer) / 'lease.json')

  def present(self, peer: int) -> dict[str, Any]:
    """Reads the lease of a life that may teach; {} if that is not certain."""
    lease, past = self.lease(peer), self._past.get(peer)
    is_past = past is not None and lease == past.lease
    return {} if is_past or _began(lease) is None else lease

  def may_teach(self, peer: int, incarnation: int) -> bool:
    """Whether the publications of a peer's incarnation may teach."""
    past = self._past.get(peer)
    if past is None or incarnation > past.incarnation:
      return True
    lease = self.lease(peer)
    if not lease or lease == past.lease:
      return False
    began = _began(lease)
    if began is None:
      # The peer has not said yet whether it was restored or begins anew.
      return incarnation >= lease['incarnation']
    # This is final; the lease need not be read again.
    self._past[peer] = _Past(began - 1, {})
    return incarnation >= began

  def _take(self, notes: Mapping[str, Any]) -> None:
    self._past = {
      int(peer): _Past(*past) for peer, past in notes['past'].items()
    }
    self._began = {int(m): life for m, life in notes['began'].items()}


def _began(lease: Mapping[str, Any]) -> int | None:
  """Returns the incarnation in which the holder of a lease began anew.

  Returns:
    None if it has not said so yet; 0 for older code, which never says so.
  """
  began = lease.get('began', 0)
  return began if began is None or isinstance(began, int) else 0

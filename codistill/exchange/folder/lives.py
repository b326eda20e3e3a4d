"""Which lives of its peers may teach a member: of its own run, and at work.

An exchange folder outlives a run. A member that begins anew learns from peers
that are at work then, or come or go on later, and not from what others left
there before: a run that has ended, or a peer that had finished. A member that
goes on from a checkpoint goes on with all that it might learn from before.

Nobody need say which run it is: each life of a member's job has a number, its
incarnation, which its publications bear, and a lease that changes with every
sign of life. So a peer is at work if its lease has changed since a member
began, whatever clocks say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from etils import epath

from codistill import hosts
from codistill.exchange.folder.lease import lives_here, over_in, read_lease


class _Past(NamedTuple):
  """A peer as it was when members began anew.

  Attributes:
    incarnation: what has this one or an earlier one does not teach,
    lease: while the peer's lease still says this, or nothing. After that it
      says in which incarnation the peer itself began anew.
  """

  incarnation: int
  lease: dict[str, Any]


class Lives:
  """What the members of this process may learn from, as far as lives go.

  The train loop says when they begin or go on; from then on a thread may ask.
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
      members: those of this process.
      peers: those of others that may teach them.
      synchronous: members wait for each other. One that begins anew before it
        has ever finished does again what it did, and so do its peers.
      incarnations: of what a member has published, as far as it is there.
    """
    self._folder = folder
    self._members = tuple(members)
    self._peers = tuple(peers)
    self._synchronous = synchronous
    self._incarnations = incarnations
    self._past: dict[int, _Past] = {}
    # In which incarnation each of this process's members began anew.
    self._began: dict[int, int] = {}

  def look(self) -> None:
    """Notes who is at work, before this process's members are."""
    mine = [self.lease(member) for member in self._members]
    finished = all(lease.get('finished') for lease in mine)
    for peer in self._peers:
      lease = self.lease(peer)
      before = lease.get('incarnation', 0)
      if self._synchronous:
        # One that is in the middle of a run does again what it did, and a peer
        # that has finished since has finished this run.
        before = over_in(lease if finished else lease | {'finished': False})
        if not before:
          continue
      # A folder may be anything; whoever looks for it later says so.
      with contextlib.suppress(OSError):
        before = before or max(self._incarnations(peer), default=0)
      # Whatever the lease of one that is at work says, it is another by now.
      # Of one on another host its next sign of life tells.
      alive = lease.get('held') and lives_here(lease)
      self._past[peer] = _Past(before, {} if alive else lease)

  def begin(self, incarnations: Mapping[int, int]) -> None:
    """This process's members begin anew, each in its incarnation.

    All processes of a member must call it, at the same point.
    """
    self._began = dict(incarnations)
    self._take(hosts.tell(self.notes()))

  def restore(self, notes: Mapping[str, Any] | None) -> dict[int, int]:
    """This process's members go on.

    Args:
      notes: what `notes` returned; None of a checkpoint without it.

    Returns:
      In which incarnation each of them began anew.
    """
    nothing: dict[str, Any] = {'past': {}, 'began': {}}
    self._take(nothing if notes is None else notes)
    return {member: self._began.get(member, 0) for member in self._members}

  def notes(self) -> dict[str, Any]:
    """All of it, for a checkpoint."""
    return {
      'past': {str(peer): list(past) for peer, past in self._past.items()},
      'began': {str(member): life for member, life in self._began.items()},
    }

  def lease(self, peer: int) -> dict[str, Any]:
    """What a lease says; {} if there is none that can be read."""
    return read_lease(self._folder / str(peer) / 'lease.json')

  def present(self, peer: int) -> dict[str, Any]:
    """The same, but {} while its life may not teach, or has not said so."""
    lease, past = self.lease(peer), self._past.get(peer)
    is_past = past is not None and lease == past.lease
    return {} if is_past or _began(lease) is None else lease

  def may_teach(self, peer: int, incarnation: int) -> bool:
    """Whether what a peer published in one of its lives may teach."""
    past = self._past.get(peer)
    if past is None or incarnation > past.incarnation:
      return True
    lease = self.lease(peer)
    if not lease or lease == past.lease:
      return False
    began = _began(lease)
    if began is None:
      # It is about to say whether it goes on or begins anew.
      return incarnation >= lease['incarnation']
    # So much is known for good; the lease need not be read again.
    self._past[peer] = _Past(began - 1, {})
    return incarnation >= began

  def _take(self, notes: Mapping[str, Any]) -> None:
    self._past = {
      int(peer): _Past(*past) for peer, past in notes['past'].items()
    }
    self._began = {int(m): life for m, life in notes['began'].items()}


def _began(lease: Mapping[str, Any]) -> int | None:
  """In which incarnation the holder of a lease began anew.

  Returns:
    None if it has not said so yet; 0 if it never will: it is of older code.
  """
  began = lease.get('began', 0)
  return began if began is None or isinstance(began, int) else 0

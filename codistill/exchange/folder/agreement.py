"""Which copies of its peers all processes of a member take up, and when.

The processes of one member must be taught by the same copies in the same
update, and their disks and threads are not equally fast. So the first process
chooses: what it has loaded it proposes, the others load just that, and at the
first meeting at which all of them have it, it teaches. Until then what was
agreed on before goes on teaching. Meetings are at steps that all know and cost
an all-gather of some numbers.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

from codistill import hosts
from codistill.exchange.copies import Copy

_NOTHING = (-1, -1)


class Proposal(NamedTuple):
  """A publication: of which life of its member, and after which step."""

  incarnation: int
  step: int


class Outcome(NamedTuple):
  """Of a meeting.

  Attributes:
    agreed: by peer the step and the copy that teach from now on.
    failed: peers of which a process could not load what was proposed.
    reload: at which of its draws of neighbours the first process is.
  """

  agreed: dict[int, tuple[int, Copy]]
  failed: tuple[int, ...]
  reload: int


class Agreement:
  """Between the processes of one member, on copies of its peers.

  A thread that reads calls `wanted`, `loaded` and `failed`; the train loop
  calls `meet`.
  """

  def __init__(self, num_members: int):
    """Nothing is proposed yet."""
    self._lock = threading.Lock()
    self._num_members = num_members
    # Loaded here and not agreed on yet, by peer.
    self._ready: dict[int, Copy] = {}
    self._at: dict[int, Proposal] = {}
    # What the first process proposes, as the others know it.
    self._proposed: dict[int, Proposal] = {}
    self._failed: set[int] = set()

  def is_free(self, peer: int) -> bool:
    """Whether the first process may choose another copy of a peer."""
    with self._lock:
      return peer not in self._ready

  def wanted(self, peer: int) -> Proposal | None:
    """What one of the others is to load, if it has not yet."""
    with self._lock:
      proposed = self._proposed.get(peer)
      return None if self._at.get(peer) == proposed else proposed

  def loaded(self, peer: int, step: int, copy: Copy) -> None:
    """Tells of a copy that this process has now."""
    with self._lock:
      self._ready[peer] = copy
      self._at[peer] = Proposal(copy.incarnation, step)
      self._failed.discard(peer)

  def failed(self, peer: int) -> None:
    """Tells that this process cannot load what was proposed."""
    with self._lock:
      self._failed.add(peer)

  def meet(self, reload: int) -> Outcome:
    """Finds out what all processes have; all must ask, at the same point.

    Args:
      reload: at which of its draws of neighbours this process is.
    """
    with self._lock:
      mine = [
        (*self._at.get(peer, _NOTHING), peer in self._failed)
        for peer in range(self._num_members)
      ]
    told = hosts.gather([*mine, (reload, 0, 0)])
    first = told[0]
    agreed, failed = {}, []
    with self._lock:
      for peer in range(self._num_members):
        proposal = Proposal(*first[peer, :2].tolist())
        if proposal == _NOTHING:
          continue
        if (told[:, peer, :2] == first[peer, :2]).all():
          agreed[peer] = (proposal.step, self._ready.pop(peer))
          del self._at[peer]
          self._proposed.pop(peer, None)
        elif told[:, peer, 2].any():
          # It may be gone by now: the first process looks for another.
          self._drop(peer)
          failed.append(peer)
        else:
          self._proposed[peer] = proposal
          self._failed.discard(peer)
    return Outcome(agreed, tuple(failed), int(first[-1, 0]))

  def _drop(self, peer: int) -> None:
    for known in (self._ready, self._at, self._proposed):
      known.pop(peer, None)
    self._failed.discard(peer)

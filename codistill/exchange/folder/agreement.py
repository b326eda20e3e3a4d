"""Agreement of a member's processes on the copies of peers to take up.

All processes of a member must be taught by the same copies in the same update,
although their disks and threads differ in speed. So the first process proposes
a copy that it has loaded, and the others load the same. The copy teaches from
the first meeting at which all of them have it; until then, the copy agreed on
before goes on teaching. Meetings are at steps that all processes know, and cost
an all-gather of a few numbers.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

from codistill import hosts
from codistill.exchange.copies import Copy

_NOTHING = (-1, -1)


class Proposal(NamedTuple):
  """A publication: its member's incarnation and step."""

  incarnation: int
  step: int


class Outcome(NamedTuple):
  """The result of a meeting.

  Attributes:
    agreed: by peer, the step and the copy that teach from now on.
    failed: peers with a proposed copy that some process could not load.
    reload: the number of the first process's draw of neighbours.
  """

  agreed: dict[int, tuple[int, Copy]]
  failed: tuple[int, ...]
  reload: int


class Agreement:
  """Agreement between the processes of one member on copies of its peers.

  A reading thread calls `wanted`, `loaded` and `failed`; the train loop calls
  `meet`.
  """

  def __init__(self, num_members: int):
    """Starts without a proposal."""
    self._lock = threading.Lock()
    self._num_members = num_members
    # Copies that are loaded here but not agreed on yet, by peer.
    self._ready: dict[int, Copy] = {}
    self._at: dict[int, Proposal] = {}
    # The first process's proposals, for the other processes.
    self._proposed: dict[int, Proposal] = {}
    self._failed: set[int] = set()

  def is_free(self, peer: int) -> bool:
    """Whether the first process may choose another copy of a peer."""
    with self._lock:
      return peer not in self._proposed

  def held(self, peer: int) -> Proposal | None:
    """Returns which copy is loaded here and not agreed on yet."""
    with self._lock:
      return self._at.get(peer)

  def wanted(self, peer: int) -> Proposal | None:
    """Returns the proposal to load, or None if it is loaded already."""
    with self._lock:
      proposed = self._proposed.get(peer)
      return None if self._at.get(peer) == proposed else proposed

  def loaded(self, peer: int, step: int, copy: Copy) -> None:
    """Records a copy that this process has loaded."""
    with self._lock:
      self._ready[peer] = copy
      self._at[peer] = Proposal(copy.incarnation, step)
      self._failed.discard(peer)

  def failed(self, peer: int) -> None:
    """Records that this process cannot load the proposal."""
    with self._lock:
      self._failed.add(peer)

  def meet(self, reload: int) -> Outcome:
    """Finds out which copies all processes have.

    All processes must call it at the same point.

    Args:
      reload: the number of this process's draw of neighbours.
    """
    with self._lock:
      # A newer copy may be loaded while the others are asked.
      ready = dict(self._ready)
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
          agreed[peer] = (proposal.step, ready[peer])
          if self._at[peer] == proposal:
            del self._at[peer], self._ready[peer]
          self._proposed.pop(peer, None)
        elif told[:, peer, 2].any():
          # The copy may have been removed: the first process finds another.
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

"""Takes up the freshest finished copies of peers, in the background.

The processes of a member agree on the copies to take up
(`codistill.exchange.folder.agreement`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

from codistill import hosts
from codistill.exchange.copies import Copy, reload_number
from codistill.exchange.folder.agreement import Agreement
from codistill.exchange.folder.reader import Reader
from codistill.exchange.folder.settings import CLOSE_S, Settings
from codistill.exchange.topology import Teachers, Topology
from codistill.storage.step_folders import brief

# Meetings of a member's processes in a reload interval. A copy is proposed at
# one meeting and teaches from the next or a later one on.
_MEETINGS = 4


class Follower:
  """The copies that asynchronous members see; a thread looks for fresh ones."""

  def __init__(
    self,
    topology: Topology,
    settings: Settings,
    reader: Reader,
    members: Iterable[int],
  ):
    """Starts without copies.

    Args:
      topology: the graph of members; a random one is redrawn at a member's own
        reload intervals.
      settings: how often members publish, and how often to look.
      reader: reads publications, for this follower only.
      members: this process's members.
    """
    self._topology = topology
    self._settings = settings
    self._reader = reader
    self._agreement = (
      Agreement(topology.members) if hosts.are_several() else None
    )
    self._chooses = hosts.is_first()
    self._met: set[int] = set()
    self._meet_every = max(1, settings.reload_interval_steps // _MEETINGS)
    self._closing = threading.Event()
    self._thread: threading.Thread | None = None
    # Shared with the thread, under this lock.
    self._lock = threading.Lock()
    # The newest copy of each peer, with its step.
    self._copies: dict[int, tuple[int, Copy]] = {}
    # The reload that each member is at, and the one that its present teachers
    # come from. A redrawn graph takes effect once all new teachers have been
    # looked for, and for all processes of a member at once.
    self._reload = dict.fromkeys(members, 0)
    self._looked_for = dict(self._reload)
    self._followed = dict(self._reload)

  def open(self) -> None:
    """Starts the thread."""
    # A daemon, because a disk that hangs must not keep the process alive.
    self._thread = threading.Thread(
      target=self._look_forever, name='follower', daemon=True
    )
    self._thread.start()

  def close(self) -> None:
    """Stops looking; waits a limited time for a load in progress."""
    self._closing.set()
    if self._thread is not None:
      # Ending the interpreter during native code in a thread may crash.
      self._thread.join(CLOSE_S)

  def teachers(self, member: int, step: int) -> Teachers:
    """Returns the teachers of a member in an update."""
    self._note_reload(member, step)
    if self._agreement is not None and (
      member not in self._met or step % self._meet_every == 0
    ):
      self._meet(member)
    with self._lock:
      return self._topology.teachers(member, self._followed[member])

  def newest(
    self, member: int, peer: int, step: int
  ) -> tuple[int, Copy] | None:
    """Returns this process's freshest copy of a peer, and its step."""
    del member, step
    with self._lock:
      return self._copies.get(peer)

  def withdraw(self, member: int) -> None:
    """Does nothing, because no copy is kept for one member alone."""

  def copies(self) -> dict[int, dict[int, Copy]]:
    """Returns all copies, by member and step."""
    found = {peer: {} for peer in range(self._topology.members)}
    with self._lock:
      for peer, (step, copy) in self._copies.items():
        found[peer][step] = copy
    return found

  def restore(self, copies: Mapping[int, Mapping[int, Copy]]) -> None:
    """Restores a result of `copies`, except where a newer copy is present."""
    with self._lock:
      for peer, steps in copies.items():
        found = [*steps.items()]
        # Among equals, one that the thread has read since wins.
        if peer in self._copies:
          found.insert(0, self._copies[peer])
        if found:
          self._copies[peer] = max(found, key=_freshness)

  def _note_reload(self, member: int, step: int) -> None:
    """Lets the thread look for a member's next teachers."""
    with self._lock:
      self._reload[member] = reload_number(
        step, self._settings.lag, self._settings.reload_interval_steps
      )

  def _meet(self, member: int) -> None:
    """Takes up the copies that all processes of this member have."""
    with self._lock:
      looked_for = self._looked_for[member]
    outcome = self._agreement.meet(looked_for)
    self._met.add(member)
    with self._lock:
      self._followed[member] = outcome.reload
      self._copies.update(outcome.agreed)
    for peer in outcome.failed:
      self._reader.failed(
        peer,
        f'not all processes of member {member} can load member {peer}',
      )

  # The rest runs in the thread.

  def _look_forever(self) -> None:
    while True:
      with self._lock:
        reloads = dict(self._reload)
      for peer in self._teachers_of(reloads, self._followed):
        try:
          if self._reader.may_look(peer):
            self._look_for(peer)
            self._reader.looked(peer)
        # A folder may raise any error, and the next look may succeed.
        except Exception as error:
          text = f'cannot look for member {peer}: {brief(error)}'
          self._reader.failed(peer, text)
      self._follow(reloads)
      if self._closing.wait(self._settings.poll_s):
        return

  def _follow(self, reloads: Mapping[int, int]) -> None:
    """Lets peers teach that have been looked for, and frees the others."""
    with self._lock:
      self._looked_for = dict(reloads)
      if self._agreement is None:
        self._followed = dict(reloads)
      wanted = self._teachers_of(self._reload, reloads, self._followed)
      for peer in self._copies.keys() - set(wanted):
        del self._copies[peer]

  def _teachers_of(self, *reloads: Mapping[int, int]) -> list[int]:
    """Returns the teachers of all this process's members at these reloads."""
    return sorted(
      {
        peer
        for some in reloads
        for member, reload in some.items()
        for peer in self._topology.teachers(member, reload)
      }
    )

  def _look_for(self, peer: int) -> None:
    """Takes up a peer's freshest publication, or the proposed one."""
    if self._agreement is None:
      self._load_freshest(peer)
    elif not self._chooses:
      self._load_proposed(peer)
    elif self._agreement.is_free(peer):
      self._load_freshest(peer)

  def _load_freshest(self, peer: int) -> None:
    """Loads the freshest readable publication, if it is newer than ours."""
    with self._lock:
      held = self._copies.get(peer)
    have = None if held is None else _freshness(held)
    if self._agreement is not None:
      # A copy that waits for the next meeting is fresher than the one in use.
      have = self._agreement.held(peer) or have
    listed = self._listed(peer)
    when = {
      (notes.incarnation, notes.step): written
      for step, written in listed.items()
      if (notes := self._reader.notes(peer, step, written)) is not None
    }
    if have is not None and when and have[0] > max(when)[0]:
      lease = self._reader.lives.lease(peer)
      if lease and lease['incarnation'] < have[0]:
        # The peer has begun anew, in a folder that was emptied.
        have = None
    for found in sorted(when, reverse=True):
      if have is not None and found <= have:
        return
      if self._load(peer, found[1], when[found]):
        return

  def _load_proposed(self, peer: int) -> None:
    """Loads the first process's proposal, or records that it cannot."""
    proposal = self._agreement.wanted(peer)
    if proposal is None:
      return
    written = self._listed(peer).get(proposal.step)
    notes = (
      None
      if written is None
      else self._reader.notes(peer, proposal.step, written)
    )
    if (
      notes is None
      or notes.incarnation != proposal.incarnation
      or not self._load(peer, proposal.step, written)
    ):
      self._agreement.failed(peer)

  def _listed(self, peer: int) -> dict[int, int]:
    """Lists a peer's publications; forgets everything about other ones."""
    listed = self._reader.listed(peer)
    self._reader.forget(peer, lambda step, at: listed.get(step) == at)
    return listed

  def _load(self, peer: int, step: int, written: int) -> bool:
    def take(copy: Copy) -> None:
      if self._agreement is not None:
        self._agreement.loaded(peer, step, copy)
        return
      with self._lock:
        self._copies[peer] = (step, copy)

    return self._reader.load(peer, step, written, take)


def _freshness(found: tuple[int, Copy]) -> tuple[int, int]:
  """Orders copies: a later life's publications are fresher."""
  step, copy = found
  return copy.incarnation, step

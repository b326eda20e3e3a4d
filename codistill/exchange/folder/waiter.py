"""Lets synchronous members wait for copies of exactly the right steps.

Each member then sees what it would see of members in the same process.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping

from codistill import hosts
from codistill.exchange.copies import Copy, reload_number
from codistill.exchange.folder.reader import Reader
from codistill.exchange.folder.settings import Settings
from codistill.exchange.topology import Teachers, Topology

# Seconds between two looks for an awaited copy.
_LOOK_S = 0.02
# Beyond all steps.
_NEVER = 1 << 62


class PeerTimeoutError(Exception):
  """A synchronous member has waited long enough."""


class WaitInterruptedError(Exception):
  """A synchronous member was told to stop while it waited."""


class Waiter:
  """The copies that synchronous members see; it needs no thread."""

  def __init__(
    self,
    topology: Topology,
    settings: Settings,
    reader: Reader,
    *,
    check_leases: Callable[[], None],
    should_stop: Callable[[], bool],
  ):
    """Starts without copies.

    Args:
      topology: the graph of members.
      settings: how often members publish, and how long to wait for a peer.
      reader: reads publications, for this waiter only.
      check_leases: called repeatedly, so that a replaced job stops waiting.
      should_stop: asked as often.
    """
    self._topology = topology
    self._reader = reader
    self._interval = settings.reload_interval_steps
    self._lag = settings.lag
    self._wait_s = settings.wait_timeout_s
    self._check_leases = check_leases
    self._should_stop = should_stop
    self._copies: dict[int, dict[int, Copy]] = {
      member: {} for member in range(topology.members)
    }
    # The oldest step of a peer that a member may still ask for.
    self._seen: dict[tuple[int, int], int] = {}

  def open(self) -> None:
    """Does nothing."""

  def close(self) -> None:
    """Does nothing."""

  def teachers(self, member: int, step: int) -> Teachers:
    """Returns the teachers of a member in an update."""
    teachers = self._topology.teachers(
      member, reload_number(step, self._lag, self._interval)
    )
    for peer in set(self._topology.candidates(member)) - set(teachers):
      self._saw(member, peer, self._visible(step))
    return teachers

  def newest(
    self, member: int, peer: int, step: int
  ) -> tuple[int, Copy] | None:
    """Returns the newest copy visible at `step`, once all processes have it.

    Raises:
      PeerTimeoutError: if it does not come in time.
      WaitInterruptedError: if one of the processes is to stop.
    """
    at = self._visible(step)
    if at not in self._copies[peer]:
      at = self._await_everywhere(member, peer, at)
    if at < 0:
      return None
    copy = self._copies[peer][at]
    self._saw(member, peer, at)
    return at, copy

  def withdraw(self, member: int) -> None:
    """Frees the copies that only this member would have asked for."""
    for peer in self._topology.candidates(member):
      self._saw(member, peer, _NEVER)

  def copies(self) -> dict[int, dict[int, Copy]]:
    """Returns the copies that may still be asked for, by member and step."""
    return {peer: dict(steps) for peer, steps in self._copies.items()}

  def restore(self, copies: Mapping[int, Mapping[int, Copy]]) -> None:
    """Restores a result of `copies`."""
    for peer, steps in copies.items():
      self._copies[peer].update(steps)

  def _visible(self, step: int) -> int:
    """Returns the step of the newest publication visible at `step`."""
    last = step - self._lag
    return last - last % self._interval

  def _await_everywhere(self, member: int, peer: int, at: int) -> int:
    """Like `_await`; all processes of a member wait for each other."""
    failure = None
    try:
      at = self._await(peer, at)
    except (PeerTimeoutError, WaitInterruptedError) as error:
      failure = error
    interrupted = isinstance(failure, WaitInterruptedError)
    told = hosts.gather([at, interrupted, failure is not None])
    if told[:, 1].any():
      raise WaitInterruptedError
    if failure is not None:
      raise failure
    # One that raised alone would leave the others waiting for it.
    if told[:, 2].any() or (told[:, 0] != at).any():
      raise PeerTimeoutError(
        f'processes of member {member} see different publications of member '
        f'{peer} in {self._reader.folder}; give all of them the same folder'
      )
    return at

  def _await(self, peer: int, at: int) -> int:
    """Waits for the publication of a step, or for the last one before it.

    Returns:
      The step of the publication; below zero if there is none.
    """
    deadline = time.monotonic() + self._wait_s
    while at >= 0 and at not in self._copies[peer]:
      if self._load_if_finished(peer, at):
        break
      if self._never_comes(peer, at):
        at -= self._interval
        continue
      self._check_leases()
      if self._should_stop():
        raise WaitInterruptedError
      if time.monotonic() > deadline:
        reason = self._reader.why(peer)
        why = '' if reason is None else f', and {reason}'
        raise PeerTimeoutError(
          f'member {peer} has not published step {at} to {self._reader.folder} '
          f'within {self._wait_s:g} s{why}; start it, or allow more time '
          '(codistill.wait_timeout_s)'
        )
      time.sleep(_LOOK_S)
    return at

  def _load_if_finished(self, peer: int, step: int) -> bool:
    with contextlib.suppress(OSError):
      written = self._reader.listed(peer).get(step)
      return (
        written is not None
        and self._reader.notes(peer, step, written) is not None
        and self._reader.load(
          peer,
          step,
          written,
          lambda copy: self._copies[peer].update({step: copy}),
        )
      )
    return False

  def _never_comes(self, peer: int, step: int) -> bool:
    """Whether a member has said that it will not publish a step."""
    lease = self._reader.lives.present(peer)
    refused, last = lease.get('refused'), lease.get('withdrawn')
    # Other programs may write arbitrary values into the file.
    return (isinstance(refused, list) and step in refused) or (
      isinstance(last, int) and last < step
    )

  def _saw(self, member: int, peer: int, step: int) -> None:
    """Frees the copies that no member of this process will ask for again."""
    self._seen[member, peer] = step
    oldest = min(
      self._seen.get((student, peer), -1)
      for student in self._reader.students(peer)
    )
    for old in [at for at in self._copies[peer] if at < oldest]:
      del self._copies[peer][old]
    self._reader.forget(peer, lambda at, written: at >= oldest)

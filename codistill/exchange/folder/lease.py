"""One job a member: a lease that its holder renews and all others can read.

A small JSON file names the process and the host that do the work, and the
job's incarnation (which of its lives this is). A dead holder on this machine
frees its lease at once. A holder elsewhere, or one that hangs, frees it when
its heartbeat is older than the timeout. Ages are differences between two times
of the file system, so clocks of hosts need not agree. If that clock was set
back, a heartbeat lies in the future and has no age: a job that wants the lease
then watches for one timeout whether the heartbeat moves.

On a local file system taking a lease is exclusive. On an object store, which
has no locks, two jobs that start within an instant may both take it; the one
that wrote first stops at its next heartbeat.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import psutil
from etils import epath

_LOG = logging.getLogger(__name__)
# Keys and types of a valid lease.
_KINDS = {
  'held': bool,
  'host': str,
  'pid': int,
  'pid_namespace': str,
  'process_started': (int, float),
  'nonce': str,
  'incarnation': int,
  'timeout_s': (int, float),
}
# Heartbeats in a timeout: three may be lost before others take over.
_BEATS = 4
# Seconds to wait for another job that is taking a lease, and for returning one:
# a disk that hangs must not keep the process alive.
_PATIENCE_S = 10.0
# The longest time between two looks at whether a heartbeat moves.
_LOOK_S = 1.0


# Content of a lease, and the time at which it was written.
_Sign = tuple[dict[str, Any], int | float | None]


class LeaseHeldError(Exception):
  """Another job is at work."""


class LeaseLostError(Exception):
  """Another job has taken over."""


class Lease:
  """A lease that this process takes, renews in the background, and returns.

  After it is taken, only the renewing thread writes it.

  Attributes:
    path: path of the file.
    incarnation: number of this job's life, once the lease is taken.
    notes: further content for readers.
  """

  def __init__(
    self, path: epath.PathLike, *, timeout_s: float, what: str, **notes: Any
  ):
    """Takes nothing yet.

    Args:
      path: path of the file; its folder is made if necessary.
      timeout_s: greatest age of a valid heartbeat in seconds, > 0.
      what: the leased thing, for errors: 'member 1 in DIR'.
      **notes: further content for readers; JSON.

    Raises:
      ValueError: if the timeout is not positive.
    """
    check_timeout(timeout_s)
    self.path = epath.Path(path)
    self.incarnation = 0
    self.notes = dict(notes)
    self._timeout = timeout_s
    self._what = what
    self._content = {
      'host': socket.gethostname(),
      'pid': os.getpid(),
      'pid_namespace': _pid_namespace(),
      'process_started': _started(psutil.Process()),
      'nonce': uuid.uuid4().hex,
      'timeout_s': timeout_s,
    }
    self._lost: str | None = None
    self._changed = threading.Condition()
    self._beats = self._wanted = 0
    self._held = False
    self._thread: threading.Thread | None = None

  def acquire(self, at_least: int = 1) -> int:
    """Takes the lease and begins to renew it.

    If a heartbeat has no age, it logs a warning and waits for at most one
    timeout to see whether the heartbeat moves.

    Args:
      at_least: the least incarnation to take.

    Returns:
      The incarnation, at least one more than the previous holder's.

    Raises:
      LeaseHeldError: if another job is at work; a sentence that names it.
      OSError: if the lease cannot be written.
    """
    self.path.parent.mkdir(parents=True, exist_ok=True)
    watched = None
    while not self._take(at_least, watched):
      # Not under the lock, which the holder needs for its heartbeat.
      watched = self._watch()
    self._thread = threading.Thread(
      target=self._renew, name=f'lease {self.path.parent.name}', daemon=True
    )
    self._thread.start()
    return self.incarnation

  def note(self, **notes: Any) -> None:
    """Changes the notes that readers see, soon."""
    with self._changed:
      self.notes = {**self.notes, **notes}
    self.beat(0.0)

  def beat(self, wait_s: float = _PATIENCE_S) -> None:
    """Checks and renews the lease now; waits a limited time for that."""
    with self._changed:
      self._wanted += 1
      wanted = self._wanted
      self._changed.notify_all()
      # The thread has ended if the lease was lost or returned.
      self._changed.wait_for(
        lambda: self._beats >= wanted or self._lost or not self._held, wait_s
      )

  def check(self) -> None:
    """Raises an error if another job held the lease at the last heartbeat.

    Raises:
      LeaseLostError: a sentence that names the new holder.
    """
    if self._lost:
      raise LeaseLostError(
        f'another process has taken over {self._what} ({self._lost}), because '
        'this one gave no sign of life; this one stops'
      )

  def release(self, **notes: Any) -> None:
    """Stops renewing, so that the next job need not wait."""
    with self._changed:
      self.notes = {**self.notes, **notes}
      self._held = False
      self._changed.notify_all()
    if self._thread is not None:
      self._thread.join(_PATIENCE_S)

  def _take(self, at_least: int, watched: _Sign | None) -> bool:
    """Takes the lease, unless it is unclear whether it is held.

    Args:
      at_least: the least incarnation to take.
      watched: the heartbeat that was there one timeout ago or when it moved.
    """
    with _exclusively(self.path):
      found = read_lease(self.path)
      held = is_held(self.path, found, self._timeout)
      if held is None:
        if watched is None:
          return False
        held = _sign(self.path) != watched
      if held:
        raise LeaseHeldError(
          f'another process is at work on {self._what}: {describe(found)}; '
          f'stop it, or wait: a dead process is forgotten after '
          f'{self._timeout:g} s (lease_timeout_s), on its own machine at once'
        )
      self.incarnation = max(at_least, found.get('incarnation', 0) + 1)
      self.notes['over'] = over_in(found)
      self._held = True
      self._write()
    return True

  def _watch(self) -> _Sign:
    """Waits one timeout for a heartbeat to move; returns the old one."""
    before = _sign(self.path)
    seconds = max(self._timeout, before[0].get('timeout_s', 0.0))
    _LOG.warning(
      'the heartbeat of another process at work on %s (%s) is in the future, '
      'or has no time; waiting for at most %g s to see whether it moves',
      *(self._what, describe(before[0]), seconds),
    )
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
      now = _sign(self.path)
      # A heartbeat that is unreadable for a moment has not moved.
      if not before[0]:
        before = now
      elif now[0] and now != before:
        break
      time.sleep(min(_LOOK_S, seconds / 20))
    return before

  def _renew(self) -> None:
    while not self._lost:
      with self._changed:
        self._changed.wait_for(
          lambda: not self._held or self._wanted > self._beats,
          self._timeout / _BEATS,
        )
        wanted, held = self._wanted, self._held
      # A disk may raise any error, and the next heartbeat may succeed.
      with contextlib.suppress(Exception):
        self._look_and_write()
      with self._changed:
        self._beats = wanted
        self._changed.notify_all()
      if not held:
        return

  def _look_and_write(self) -> None:
    """Renews the lease, unless another job has taken over."""
    # The folder may have been removed by somebody who wants it made again.
    self.path.parent.mkdir(parents=True, exist_ok=True)
    with _exclusively(self.path):
      found = read_lease(self.path)
      # Another job may have come and gone, and left a higher number.
      if (
        found.get('nonce', self._content['nonce']) != self._content['nonce']
        and found['incarnation'] >= self.incarnation
      ):
        self._lost = describe(found)
      else:
        self._write()

  def _write(self) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='milliseconds')
    with self._changed:
      content = {
        'held': self._held,
        'incarnation': self.incarnation,
        'heartbeat': now,
        **self._content,
        **self.notes,
      }
    new = self.path.with_name(f'.{self.path.name}.{self._content["nonce"]}')
    new.write_text(json.dumps(content, indent=2) + '\n')
    new.replace(self.path)


def check_timeout(timeout_s: float) -> None:
  """Raises a ValueError for a timeout that is not positive."""
  if timeout_s <= 0:
    raise ValueError(f'lease_timeout_s must be positive, not {timeout_s}')


def read_lease(path: epath.PathLike) -> dict[str, Any]:
  """Reads a lease; {} if it is missing or unreadable."""
  try:
    found = json.loads(epath.Path(path).read_text())
  except (OSError, ValueError, RecursionError):
    return {}
  whole = isinstance(found, dict) and all(
    isinstance(found.get(key), kind) for key, kind in _KINDS.items()
  )
  return found if whole else {}


def over_in(found: Mapping[str, Any]) -> int:
  """Returns the last life that finished (by its lease's notes), or 0."""
  last = found.get('incarnation' if found.get('finished') else 'over', 0)
  return last if isinstance(last, int) else 0


def lives_here(found: Mapping[str, Any]) -> bool | None:
  """Whether the lease's process runs; None if it is on another machine."""
  here = (socket.gethostname(), _pid_namespace())
  if (found['host'], found['pid_namespace']) != here:
    return None
  return _runs(found)


def is_held(
  path: epath.PathLike,
  found: Mapping[str, Any],
  timeout_s: float = 0.0,
  *,
  probe: bool = True,
) -> bool | None:
  """Whether the holder of a lease is alive, as far as one look tells.

  Args:
    path: path of the lease.
    found: a result of `read_lease`.
    timeout_s: greatest age of a valid heartbeat; the holder's own timeout
      counts if it is longer.
    probe: get the time from the file system, by writing a file for an instant;
      else use this host's clock, and write nothing.

  Returns:
    None if the heartbeat's time is unknown, or at least one timeout in the
    future; then only a moving heartbeat can tell.
  """
  if not found.get('held'):
    return False
  if lives_here(found) is False:
    return False
  try:
    age = _age_s(epath.Path(path), probe)
  except FileNotFoundError:
    return False  # Removed in the meantime.
  except OSError:
    return None
  timeout_s = max(timeout_s, found['timeout_s'])
  return None if age <= -timeout_s else age < timeout_s


def describe(found: Mapping[str, Any]) -> str:
  """'pid 17 on host a, heartbeat …'."""
  return (
    f'pid {found.get("pid")} on {found.get("host")}, '
    f'heartbeat {found.get("heartbeat")}'
  )


def _runs(found: Mapping[str, Any]) -> bool:
  try:
    process = psutil.Process(found['pid'])
    # Another process may have got the same number since.
    same = abs(_started(process) - found['process_started']) < 1
    return same and process.status() != psutil.STATUS_ZOMBIE
  except (psutil.Error, ValueError):
    return False


def _started(process: psutil.Process) -> float:
  """Start of a process in seconds after boot, which no set clock changes."""
  return process.create_time() - psutil.boot_time()


def _pid_namespace() -> str:
  """The container (PID namespace) in which process numbers are valid."""
  try:
    return os.readlink('/proc/self/ns/pid')
  except OSError:
    return ''


def _age_s(path: epath.Path, probe: bool) -> float:
  """Seconds since a file was written, by the clock of its file system."""
  now = datetime.datetime.now().timestamp()
  if probe:
    # Without permission to write, this host's clock is used.
    with contextlib.suppress(OSError):
      clock = path.with_name(f'.clock.{uuid.uuid4().hex}')
      clock.write_text('')
      now = clock.stat().mtime
      clock.unlink()
  return float(now - path.stat().mtime)


def _sign(path: epath.Path) -> _Sign:
  """Returns content that changes with each heartbeat."""
  try:
    return read_lease(path), path.stat().mtime
  except OSError:
    return read_lease(path), None


@contextlib.contextmanager
def _exclusively(path: epath.Path) -> Iterator[None]:
  """Takes a lock for the block on a local file system; elsewhere does not."""
  if '://' in path.as_posix():
    yield
    return
  deadline = time.monotonic() + _PATIENCE_S
  with open(path.with_name(f'.{path.name}.lock'), 'w') as lock:
    while time.monotonic() < deadline:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
      except OSError:
        time.sleep(0.01)
    yield

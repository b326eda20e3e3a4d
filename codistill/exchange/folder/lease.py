"""One job at a time: a lease that its holder renews and anyone can read.

A small JSON file says which process on which host does the work, and in which
of its lives (incarnation). On this machine a holder that is dead frees its
lease at once; a holder elsewhere, or one that hangs, once its heartbeat is
older than the timeout. Ages are differences between two times that the file
system gave, so clocks of hosts need not agree. Where that clock has been set
back a heartbeat is of the future, and no age tells: whoever wants the lease
watches for as long as the timeout whether the heartbeat moves.

On a local file system taking a lease is exclusive. On an object store it is
the best that can be done without locks: of two jobs that start within an
instant both may take it, and the one that wrote first stops at its next
heartbeat.
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
# What a lease must have to be one.
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
# Heartbeats within a timeout: three may be lost before others take over.
_BEATS = 4
# Seconds to wait for whoever is just taking a lease, and to give one back: a
# disk that hangs must not keep the process.
_PATIENCE_S = 10.0
# The most between two looks at whether a heartbeat moves.
_LOOK_S = 1.0


# What a lease says, and when it was written.
_Sign = tuple[dict[str, Any], int | float | None]


class LeaseHeldError(Exception):
  """Another job lives."""


class LeaseLostError(Exception):
  """Another job has taken over."""


class Lease:
  """A lease that this process takes, renews in the background, and returns.

  Only the thread that renews it writes it, once it is taken.

  Attributes:
    path: of its file.
    incarnation: which life of the job this is, once it is taken.
    notes: what else readers see.
  """

  def __init__(
    self, path: epath.PathLike, *, timeout_s: float, what: str, **notes: Any
  ):
    """Takes nothing yet.

    Args:
      path: of the file; its folder is made if need be.
      timeout_s: how old a heartbeat may be, in seconds, > 0.
      what: is leased, for errors: 'member 1 in DIR'.
      **notes: anything else that readers are to see; JSON.

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

    If the time of a heartbeat tells nothing it says so and waits, at most as
    long as a timeout, until that has moved or has not.

    Args:
      at_least: the incarnation is this or more.

    Returns:
      The incarnation: one more than the holder's before.

    Raises:
      LeaseHeldError: if another job lives: one sentence that says which.
      OSError: if nothing can be written there.
    """
    self.path.parent.mkdir(parents=True, exist_ok=True)
    watched = None
    while not self._take(at_least, watched):
      # Not under the lock, which a holder needs to give a sign of life.
      watched = self._watch()
    self._thread = threading.Thread(
      target=self._renew, name=f'lease {self.path.parent.name}', daemon=True
    )
    self._thread.start()
    return self.incarnation

  def note(self, **notes: Any) -> None:
    """Changes what readers see, soon."""
    with self._changed:
      self.notes = {**self.notes, **notes}
    self.beat(0.0)

  def beat(self, wait_s: float = _PATIENCE_S) -> None:
    """Looks at the lease and renews it, now; waits for that, within bounds."""
    with self._changed:
      self._wanted += 1
      wanted = self._wanted
      self._changed.notify_all()
      # Whoever has lost it, or returned it, looks no more.
      self._changed.wait_for(
        lambda: self._beats >= wanted or self._lost or not self._held, wait_s
      )

  def check(self) -> None:
    """Finds out whether the lease was still this process's at its last beat.

    Raises:
      LeaseLostError: if not: one sentence that says whose it is.
    """
    if self._lost:
      raise LeaseLostError(
        f'another process has taken over {self._what} ({self._lost}), because '
        'this one gave no sign of life; this one stops'
      )

  def release(self, **notes: Any) -> None:
    """Stops renewing; the next job need not wait."""
    with self._changed:
      self.notes = {**self.notes, **notes}
      self._held = False
      self._changed.notify_all()
    if self._thread is not None:
      self._thread.join(_PATIENCE_S)

  def _take(self, at_least: int, watched: _Sign | None) -> bool:
    """Takes the lease, unless its time does not tell whether it is held.

    Args:
      at_least: the incarnation is this or more.
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
          f'stop it, or wait: a dead one is forgotten after '
          f'{self._timeout:g} s (lease_timeout_s), here at once'
        )
      self.incarnation = max(at_least, found.get('incarnation', 0) + 1)
      self.notes['over'] = over_in(found)
      self._held = True
      self._write()
    return True

  def _watch(self) -> _Sign:
    """Waits for a heartbeat to move, for one timeout; what it was before."""
    before = _sign(self.path)
    seconds = max(self._timeout, before[0].get('timeout_s', 0.0))
    _LOG.warning(
      'the heartbeat of another process at work on %s (%s) is of the future, '
      'or of no time; waiting for at most %g s to see whether it moves',
      *(self._what, describe(before[0]), seconds),
    )
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
      now = _sign(self.path)
      # A moment in which it cannot be read is no sign of life.
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
      # Whatever a disk may raise: the next beat may get through.
      with contextlib.suppress(Exception):
        self._look_and_write()
      with self._changed:
        self._beats = wanted
        self._changed.notify_all()
      if not held:
        return

  def _look_and_write(self) -> None:
    """Renews it, unless another has taken over."""
    # The folder may have been removed; whoever did may want it to come back.
    self.path.parent.mkdir(parents=True, exist_ok=True)
    with _exclusively(self.path):
      found = read_lease(self.path)
      # It may have come and gone: then its number is higher.
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
  """Refuses a timeout after which nobody could live with a ValueError."""
  if timeout_s <= 0:
    raise ValueError(f'lease_timeout_s must be positive, not {timeout_s}')


def read_lease(path: epath.PathLike) -> dict[str, Any]:
  """What a lease says; {} if there is none or it cannot be read."""
  try:
    found = json.loads(epath.Path(path).read_text())
  except (OSError, ValueError, RecursionError):
    return {}
  whole = isinstance(found, dict) and all(
    isinstance(found.get(key), kind) for key, kind in _KINDS.items()
  )
  return found if whole else {}


def over_in(found: Mapping[str, Any]) -> int:
  """The last life that got to its end (`finished` among its notes); or 0."""
  last = found.get('incarnation' if found.get('finished') else 'over', 0)
  return last if isinstance(last, int) else 0


def lives_here(found: Mapping[str, Any]) -> bool | None:
  """Whether the process that wrote it runs; None if that is elsewhere."""
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
  """Whether the holder of a lease lives, as far as one look tells.

  Args:
    path: of the lease.
    found: what `read_lease` returned.
    timeout_s: how old a heartbeat may be, or as old as its holder says, if
      that is more.
    probe: ask the file system for the time, by a file that is there for an
      instant; else this host's clock has to do, and nothing is written.

  Returns:
    None if its time is not known, or later than now by a timeout and more:
    whether its heartbeat moves will tell.
  """
  if not found.get('held'):
    return False
  if lives_here(found) is False:
    return False
  try:
    age = _age_s(epath.Path(path), probe)
  except FileNotFoundError:
    return False  # Removed meanwhile.
  except OSError:
    return None
  timeout_s = max(timeout_s, found['timeout_s'])
  return None if age <= -timeout_s else age < timeout_s


def describe(found: Mapping[str, Any]) -> str:
  """'pid 17 on host a, since …, heartbeat …'."""
  return (
    f'pid {found.get("pid")} on {found.get("host")}, '
    f'heartbeat {found.get("heartbeat")}'
  )


def _runs(found: Mapping[str, Any]) -> bool:
  try:
    process = psutil.Process(found['pid'])
    # A number that another process has got since is not it.
    same = abs(_started(process) - found['process_started']) < 1
    return same and process.status() != psutil.STATUS_ZOMBIE
  except (psutil.Error, ValueError):
    return False


def _started(process: psutil.Process) -> float:
  """When a process began, in seconds since the machine did: no clock's step."""
  return process.create_time() - psutil.boot_time()


def _pid_namespace() -> str:
  """In which of a host's worlds (containers) numbers of processes are meant."""
  try:
    return os.readlink('/proc/self/ns/pid')
  except OSError:
    return ''


def _age_s(path: epath.Path, probe: bool) -> float:
  """Seconds since a file was written, by the clock of its file system."""
  now = datetime.datetime.now().timestamp()
  if probe:
    # Where we may not write, this host's clock has to do.
    with contextlib.suppress(OSError):
      clock = path.with_name(f'.clock.{uuid.uuid4().hex}')
      clock.write_text('')
      now = clock.stat().mtime
      clock.unlink()
  return float(now - path.stat().mtime)


def _sign(path: epath.Path) -> _Sign:
  """What is another one after each sign of life of a holder."""
  try:
    return read_lease(path), path.stat().mtime
  except OSError:
    return read_lease(path), None


@contextlib.contextmanager
def _exclusively(path: epath.Path) -> Iterator[None]:
  """Alone, as far as a local file system can tell; elsewhere as may be."""
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

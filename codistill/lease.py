"""One job at a time: a lease that its holder renews and anyone can read.

A small JSON file says which process on which host does the work, and in which
of its lives (incarnation). On this machine a holder that is dead frees its
lease at once; a holder elsewhere, or one that hangs, once its heartbeat is
older than the timeout. Ages are differences between two times that the file
system gave, so clocks of hosts need not agree.

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
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import psutil
from etils import epath

# What a lease must have to be one.
_KINDS = {
  'held': bool,
  'host': str,
  'pid': int,
  'process_started': (int, float),
  'nonce': str,
  'incarnation': int,
  'timeout_s': (int, float),
}
# Heartbeats within a timeout: three may be lost before others take over.
_BEATS = 4


class LeaseHeldError(Exception):
  """Another job lives."""


class LeaseLostError(Exception):
  """Another job has taken over."""


class Lease:
  """A lease that this process takes, renews in the background, and returns.

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
    if timeout_s <= 0:
      raise ValueError(f'lease_timeout_s must be positive, not {timeout_s}')
    self.path = epath.Path(path)
    self.incarnation = 0
    self._timeout = timeout_s
    self._what = what
    self._content = {
      'host': socket.gethostname(),
      'pid': os.getpid(),
      'process_started': psutil.Process().create_time(),
      'nonce': uuid.uuid4().hex,
      'timeout_s': timeout_s,
    }
    self.notes = dict(notes)
    self._lost: str | None = None
    self._write_lock = threading.Lock()
    self._released = threading.Event()

  def acquire(self, at_least: int = 1) -> int:
    """Takes the lease and begins to renew it.

    Args:
      at_least: the incarnation is this or more.

    Returns:
      The incarnation: one more than the holder's before.

    Raises:
      LeaseHeldError: if another job lives: one sentence that says which.
      OSError: if nothing can be written there.
    """
    self.path.parent.mkdir(parents=True, exist_ok=True)
    with _exclusively(self.path):
      found, held = read_lease(self.path, self._timeout)
      if held:
        raise LeaseHeldError(
          f'another process is at work on {self._what}: {describe(found)}; '
          f'stop it, or wait: a dead one is forgotten after '
          f'{self._timeout:g} s (lease_timeout_s), here at once'
        )
      before = found.get('incarnation', 0)
      self.incarnation = max(at_least, before + 1)
      self._write(held=True)
    threading.Thread(
      target=self._renew, name=f'lease {self.path.parent.name}', daemon=True
    ).start()
    return self.incarnation

  def note(self, **notes: Any) -> None:
    """Changes what readers see, now; what cannot be written waits."""
    self.notes = {**self.notes, **notes}
    self._beat()

  def check(self) -> None:
    """Finds out whether the lease is still this process's.

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
    self._released.set()
    self.notes = {**self.notes, **notes}
    self._beat(held=False)

  def _renew(self) -> None:
    while not self._released.wait(self._timeout / _BEATS):
      self._beat()

  def _beat(self, held: bool = True) -> None:
    """Writes, unless another has taken over or nothing can be written now."""
    with self._write_lock, contextlib.suppress(OSError):
      late = held and self._released.is_set()
      if self._lost or not self.incarnation or late:
        return
      found = _read(self.path)
      if found.get('held') and found.get('nonce') != self._content['nonce']:
        self._lost = describe(found)
        return
      # The folder may have been removed; whoever did may want it to come back.
      self.path.parent.mkdir(parents=True, exist_ok=True)
      self._write(held)

  def _write(self, held: bool) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    content = {
      'held': held,
      'incarnation': self.incarnation,
      'heartbeat': now,
      **self._content,
      **self.notes,
    }
    new = self.path.with_name(f'.{self.path.name}.{self._content["nonce"]}')
    new.write_text(json.dumps(content, indent=2) + '\n')
    new.replace(self.path)


def read_lease(
  path: epath.PathLike, timeout_s: float | None = None, *, probe: bool = True
) -> tuple[dict[str, Any], bool]:
  """What a lease says, and whether its holder lives.

  Args:
    path: of the file.
    timeout_s: how old a heartbeat may be; None: as old as its holder says.
    probe: ask the file system for the time, by a file that is there for an
      instant; else this host's clock has to do, and nothing is written.

  Returns:
    Its content, {} if there is none or it cannot be read; and whether it is
    held.
  """
  path = epath.Path(path)
  found = _read(path)
  if not found.get('held'):
    return found, False
  if found['host'] == socket.gethostname() and not _lives(found):
    return found, False
  try:
    age = _age_s(path, probe)
  except OSError:
    return {}, False  # Removed meanwhile.
  return found, age < (timeout_s or found['timeout_s'])


def describe(found: dict[str, Any]) -> str:
  """'pid 17 on host a, since …, heartbeat …'."""
  return (
    f'pid {found.get("pid")} on {found.get("host")}, '
    f'heartbeat {found.get("heartbeat")}'
  )


def _read(path: epath.Path) -> dict[str, Any]:
  try:
    found = json.loads(path.read_text())
  except (OSError, ValueError):
    return {}
  whole = isinstance(found, dict) and all(
    isinstance(found.get(key), kind) for key, kind in _KINDS.items()
  )
  return found if whole else {}


def _lives(found: dict[str, Any]) -> bool:
  """Whether a process of this host is the one that wrote this, and runs."""
  try:
    process = psutil.Process(found['pid'])
    # A number that another process has got since is not it.
    same = abs(process.create_time() - found['process_started']) < 1
    return same and process.status() != psutil.STATUS_ZOMBIE
  except (psutil.Error, ValueError):
    return False


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


@contextlib.contextmanager
def _exclusively(path: epath.Path) -> Iterator[None]:
  """Alone, as far as a local file system can tell; elsewhere as may be."""
  if '://' in path.as_posix():
    yield
    return
  with open(path.with_name(f'.{path.name}.lock'), 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield

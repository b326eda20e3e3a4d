"""Ends a run's process: on a signal, or with one sentence and a status."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from rich.console import Console

from codistill import hosts
from codistill.exchange.folder.lease import LeaseLostError
from codistill.exchange.folder.waiter import PeerTimeoutError
from experiments.errors import UserError

# A command that makes no sense.
REFUSED = 2
# Other processes of this member say why it ended.
LOST_OTHERS = 3
# Those to stop; Submitit has Slurm send the last before it takes a job away.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Ending(NamedTuple):
  """The exit status after an error, and the sentence to print."""

  status: int
  sentence: str


def ending_of(error: Exception) -> Ending | None:
  """How a run ends after an error; None if it needs a traceback."""
  if isinstance(error, UserError):
    # The next time it may live, so that a launcher is to start it again.
    died = isinstance(error.__cause__, ChildProcessError)
    return Ending(1 if died else REFUSED, str(error))
  if isinstance(error, hosts.OtherProcessError):
    refused = UserError.__name__ in error.kinds
    return Ending(REFUSED if refused else LOST_OTHERS, str(error))
  if isinstance(error, LeaseLostError):
    return Ending(1, str(error))
  if isinstance(error, PeerTimeoutError):
    return Ending(
      1, f'{error}; the same command goes on from the last checkpoint'
    )
  reason = hosts.lost(error)
  if reason:
    return Ending(
      LOST_OTHERS,
      f'another process of this member has ended, and its log says why; '
      f'process {jax.process_index()} ends, too ({reason}); the same '
      'commands go on from the last checkpoint',
    )
  if is_disk_full(error):
    return Ending(
      1,
      'the disk is full; free some space and run the same command again: it '
      'goes on from its last checkpoint',
    )
  if isinstance(error, OSError) and error.filename is not None:
    return Ending(
      1,
      f'{error.filename}: {error.strerror}; fix that and run the same '
      'command again: it goes on from its last checkpoint',
    )
  return None


def is_disk_full(error: BaseException | None) -> bool:
  """Whether a full disk is behind an error, however wrapped."""
  while error is not None:
    if getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT):
      return True
    if os.strerror(errno.ENOSPC) in str(error):
      return True
    error = error.__cause__ or error.__context__
  return False


def complain(sentence: str) -> None:
  """Prints what went wrong, in the form that launchers of runs look for."""
  print(f'experiments.run: {sentence}', file=sys.stderr)


class RunConsole(Console):
  """A run's console; the run stops as on a signal when nobody reads it."""

  def __init__(self, stop: list[int]):
    """`stop` gets SIGPIPE when standard output is gone, as `… | head` does."""
    super().__init__()
    self._stop = stop

  def on_broken_pipe(self) -> None:
    """Stops the run; rich calls this."""
    self.quiet = True
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    self._stop.append(signal.SIGPIPE)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[list[int]]:
  """Yields a list that gets the first signal to stop; a second one kills."""
  received: list[int] = []

  def receive(number, frame):
    del frame
    received.append(number)
    for other in _SIGNALS:
      signal.signal(other, signal.SIG_DFL)
    # A console or file object may be in the middle of a write now.
    os.write(2, 'Stopping after this step, with a checkpoint …\n'.encode())

  with handling(receive):
    yield received


@contextlib.contextmanager
def handling(handler: Any) -> Iterator[None]:
  """Has signals to stop handled otherwise in the block."""
  before = {number: signal.signal(number, handler) for number in _SIGNALS}
  try:
    yield
  finally:
    for number, earlier in before.items():
      signal.signal(number, earlier)

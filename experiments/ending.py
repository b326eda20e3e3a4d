"""How a run's process ends: when told to, or with one sentence and a status."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator
from typing import NamedTuple

import jax
from rich.console import Console

from codistill import hosts
from codistill.exchange.folder.lease import LeaseLostError
from codistill.exchange.folder.waiter import PeerTimeoutError
from experiments.errors import UserError

# A command that makes no sense.
REFUSED = 2
# Others of this member say why it ended.
LOST_OTHERS = 3


class Ending(NamedTuple):
  """The exit status after an error, and what to say of it."""

  status: int
  sentence: str


def ending_of(error: Exception) -> Ending | None:
  """How a run ends that met an error; None if it takes a traceback."""
  if isinstance(error, UserError):
    return Ending(REFUSED, str(error))
  if isinstance(error, hosts.OtherProcessError):
    return Ending(REFUSED, f'process 0 of this member cannot go on: {error}')
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
      f'{error.filename}: {error.strerror}; see to that and run the same '
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
  """Says what went wrong; what starts runs looks for such a line."""
  print(f'experiments.run: {sentence}', file=sys.stderr)


class RunConsole(Console):
  """A run's; when nobody reads any more, the run ends as if told to."""

  def __init__(self, stop: list[int]):
    """`stop` gets SIGPIPE when standard output is gone, as `… | head` does."""
    super().__init__()
    self._stop = stop

  def on_broken_pipe(self) -> None:
    """Called by what prints."""
    self.quiet = True
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    self._stop.append(signal.SIGPIPE)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[list[int]]:
  """Yields a list that gets the first signal to stop; a second one kills.

  SIGUSR2 is what submitit has Slurm send before it takes a job away.
  """
  received: list[int] = []

  def receive(number, frame):
    del frame
    received.append(number)
    for other in before:
      signal.signal(other, signal.SIG_DFL)
    # Not through a console or file object, which may be in the middle of a
    # write at this moment.
    os.write(2, 'Stopping after this step, with a checkpoint …\n'.encode())

  before = {
    number: signal.signal(number, receive)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
  }
  try:
    yield received
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)

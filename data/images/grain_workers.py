"""Starts and ends the processes that read and augment images."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import connection, resource_tracker
from typing import Any

from absl import flags


def prepare() -> None:
  """Lets Grain start processes."""
  if not flags.FLAGS.is_parsed():  # Absl need not have parsed a command line.
    flags.FLAGS.mark_as_parsed()
  # The process that tracks their shared memory ignores the other signals that
  # schedulers send to all of a job; it inherits that this one is blocked.
  signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
  resource_tracker.ensure_running()
  signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})


@contextlib.contextmanager
def opened(stream: Any) -> Iterator[Any]:
  """Iterates over a stream, whose processes end with the block.

  Raises:
    ChildProcessError: if one of them has died.
  """
  with contextlib.closing(iter(stream)) as found:
    try:
      yield found
    except RuntimeError as error:
      if 'terminated unexpectedly' not in str(error):
        raise
      raise ChildProcessError(
        'a process that reads images has died, perhaps for lack of memory; '
        'free some, and the same command goes on'
      ) from error


def begin(worker: int, num_workers: int) -> None:
  """Ends this process when its parent ends, and not before.

  Args:
    worker: index of the process.
    num_workers: number of processes.
  """
  del worker, num_workers
  # They reach all processes of a job, but only the parent handles them, perhaps
  # late. Grain needs none of them.
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, signal.SIG_IGN)
  parent = multiprocessing.parent_process()

  def follow():
    connection.wait([parent.sentinel])
    os._exit(1)  # The parent was killed and could not tell us.

  threading.Thread(target=follow, daemon=True).start()

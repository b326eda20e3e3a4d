"""Starts and ends the processes that read and augment images."""

import multiprocessing
import os
import signal
import threading
from multiprocessing import connection

from absl import flags


def prepare() -> None:
  """Lets Grain start processes although no command line was parsed by absl."""
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


def begin(worker: int, num_workers: int) -> None:
  """Ends this process when its parent ends, and not before.

  Args:
    worker: index of the process.
    num_workers: number of processes.
  """
  del worker, num_workers
  # Ctrl-C reaches all processes, but only the parent handles it, perhaps late.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()

  def follow():
    connection.wait([parent.sentinel])
    os._exit(1)  # The parent was killed and could not tell us.

  threading.Thread(target=follow, daemon=True).start()

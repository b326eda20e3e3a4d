"""Processes that read and augment: how each of them begins and ends."""

import multiprocessing
import os
import signal
import threading
from multiprocessing import connection

from absl import flags


def prepare() -> None:
  """Lets Grain start processes where no command line is absl's."""
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


def begin(worker: int, num_workers: int) -> None:
  """Makes a process live as long as the one that started it, and no longer.

  Args:
    worker: its number.
    num_workers: how many there are.
  """
  del worker, num_workers
  # Ctrl-C reaches them all, and is for their parent, which may go on for long.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()

  def follow():
    connection.wait([parent.sentinel])
    os._exit(1)  # It was killed, and can tell nobody.

  threading.Thread(target=follow, daemon=True).start()

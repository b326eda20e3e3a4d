"""Work that another process does and times, when it is told to.

That process says in a line of JSON that it is ready. Then it reads the name of
a piece of work and a number of times, a line each, and answers with seconds. It
ends with its input. It need not import JAX.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any


class Other:
  """A process that calls `serve`.

  Attributes:
    ready: what it said when it was ready.
  """

  def __init__(self, process: subprocess.Popen[str]):
    """Waits until it is ready."""
    self._process = process
    self.ready = self._read()

  def seconds(self, name: str, times: int) -> float:
    """Has it do its work `name` so many times; the seconds that it took.

    Raises:
      ChildProcessError: if it ended instead.
    """
    # A write fails if it has ended, which `_read` says better.
    with contextlib.suppress(BrokenPipeError):
      print(json.dumps([name, times]), file=self._process.stdin, flush=True)
    return self._read()

  def _read(self) -> Any:
    line = self._process.stdout.readline()
    if not line:
      raise ChildProcessError(
        f'{" ".join(self._process.args[1:3])} ended with status '
        f'{self._process.wait()}; see its own message above'
      )
    return json.loads(line)


@contextlib.contextmanager
def start(line: Sequence[str], folder: os.PathLike) -> Iterator[Other]:
  """Starts a process; it ends with the context.

  Args:
    line: its command.
    folder: where it runs.

  Yields:
    The process, when it is ready.

  Raises:
    ChildProcessError: if it ended instead.
  """
  process = subprocess.Popen(
    line,
    cwd=folder,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    yield Other(process)
  finally:
    process.kill()
    process.communicate()


def serve(ready: Any, works: Mapping[str, Callable[[int], float]]) -> None:
  """Does what the process that started this one asks for, until it ends.

  Args:
    ready: what to say first.
    works: functions that do a piece of work so many times, and return seconds.
  """
  # Ctrl-C reaches both processes; the other one ends this one.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  print(json.dumps(ready), flush=True)
  for line in sys.stdin:
    name, times = json.loads(line)
    print(works[name](times), flush=True)

"""Processes that work on chunks, and results in the chunks' order."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

from data.preparing.resumable import PreparationError


@runtime_checkable
class Pool(Protocol):
  """Where functions are sent to be called."""

  size: int

  def submit(
    self, function: Callable[..., Any], *arguments: Any, **keywords: Any
  ) -> concurrent.futures.Future[Any]:
    """As an executor's."""
    ...


class Processes:
  """Processes that die with this one, whatever it dies of."""

  def __init__(self, size: int):
    """Starts so many, by and by."""
    self.size = size
    context = multiprocessing.get_context('spawn')
    # Nobody writes: a worker reads the end of it when this process is gone.
    watched, self._held = context.Pipe(duplex=False)
    self._executor = concurrent.futures.ProcessPoolExecutor(
      size, context, initializer=_start_worker, initargs=(watched,)
    )
    self._watched = watched

  def submit(self, function, *arguments, **keywords):
    try:
      return self._executor.submit(function, *arguments, **keywords)
    except concurrent.futures.BrokenExecutor as error:
      raise _died() from error

  def close(self, wait: bool) -> None:
    """Ends the processes, if not waiting then in the middle of their work."""
    if not wait:
      self._held.close()
    self._executor.shutdown(wait=True, cancel_futures=True)
    self._held.close()
    self._watched.close()


@contextlib.contextmanager
def processes(size: int) -> Iterator[Pool]:
  """So many processes, to the end of the block.

  Raises:
    PreparationError: if one of them dies.
  """
  pool = Processes(size)
  try:
    yield pool
  except concurrent.futures.BrokenExecutor as error:
    pool.close(wait=False)
    raise _died() from error
  except BaseException:
    pool.close(wait=False)
    raise
  pool.close(wait=True)


class _Threads:
  def __init__(self, size: int, executor: concurrent.futures.Executor):
    self.size = size
    self.submit = executor.submit


@contextlib.contextmanager
def threads(size: int) -> Iterator[Pool]:
  """So many threads, for work that is not Python; to the end of the block."""
  with concurrent.futures.ThreadPoolExecutor(size) as executor:
    yield _Threads(size, executor)


def map_in_order(
  pool: Pool,
  function: Callable[..., Any],
  items: Iterable[Any],
  *arguments: Any,
  strip: Callable[[Any], Any] = lambda item: item,
) -> Iterator[tuple[Any, Any]]:
  """Each item and what the pool made of it, in order.

  Args:
    pool: what works.
    function: of an item and of `arguments`.
    items: taken only as fast as they are worked on, so that they need not fit
      into memory.
    *arguments: the same for all.
    strip: what to keep of an item while it is worked on.
  """
  # Some wait, so that none of the workers does.
  window = 2 * pool.size + 1
  pending: collections.deque[Any] = collections.deque()
  for item in items:
    pending.append((strip(item), pool.submit(function, item, *arguments)))
    if len(pending) >= window:
      done, future = pending.popleft()
      yield done, future.result()
  while pending:
    done, future = pending.popleft()
    yield done, future.result()


def _died() -> PreparationError:
  return PreparationError(
    'A worker died, perhaps for want of memory: run the same command with '
    'fewer --workers, and it goes on from here.'
  )


def _start_worker(watched) -> None:
  # Ctrl-C reaches the whole group; the one that started it decides.
  signal.signal(signal.SIGINT, signal.SIG_IGN)

  def watch():
    with contextlib.suppress(OSError):
      watched.poll(None)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()

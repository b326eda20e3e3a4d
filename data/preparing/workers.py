"""Processes that work on chunks, with results in the chunks' order."""

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
  """Calls functions in parallel."""

  size: int

  def submit(
    self, function: Callable[..., Any], *arguments: Any, **keywords: Any
  ) -> concurrent.futures.Future[Any]:
    """Like an executor's `submit`."""
    ...


class Processes:
  """Processes that die with this one, even if it is killed."""

  def __init__(self, size: int):
    """Starts up to `size` processes, as work arrives."""
    self.size = size
    context = multiprocessing.get_context('spawn')
    # Never written to: when this process ends, the workers read its end.
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
    """Ends the processes; without `wait`, in the middle of their work."""
    if not wait:
      self._held.close()
    self._executor.shutdown(wait=True, cancel_futures=True)
    self._held.close()
    self._watched.close()


@contextlib.contextmanager
def processes(size: int) -> Iterator[Pool]:
  """Starts a pool of processes, which ends with the block.

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
  """Starts a pool of threads, for work outside Python."""
  with concurrent.futures.ThreadPoolExecutor(size) as executor:
    yield _Threads(size, executor)


def map_in_order(
  pool: Pool,
  function: Callable[..., Any],
  items: Iterable[Any],
  *arguments: Any,
  strip: Callable[[Any], Any] = lambda item: item,
) -> Iterator[tuple[Any, Any]]:
  """Yields each item and the pool's result for it, in order.

  Args:
    pool: the pool.
    function: called with an item and `arguments`.
    items: taken as fast as they are worked on, so they need not fit into
      memory.
    *arguments: the same for all.
    strip: reduces an item to the part that is yielded.
  """
  # More than there are workers, so that none is idle.
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
    'A worker died, perhaps for lack of memory: run the same command with '
    'fewer --workers, and it continues from here.'
  )


def _start_worker(watched) -> None:
  # Ctrl-C reaches the whole group; only the parent handles it.
  signal.signal(signal.SIGINT, signal.SIG_IGN)

  def watch():
    with contextlib.suppress(OSError):
      watched.poll(None)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()

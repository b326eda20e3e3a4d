"""A member of many hosts: one process speaks for it, and all do the same.

A member that is too large for one host runs as several processes, a world of
`jax.distributed` of its own. All of them must enter the same computations in
the same order. So decisions that depend on time, files or signals are made by
the first process, or by all together, at steps that all know.
"""

from __future__ import annotations

import concurrent.futures.process
import json
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar('T')
# Seconds between two checks of whether the parent process is alive.
_LOOK_S = 1.0
# Messages of gloo, NCCL and JAX's coordination service when a process is gone.
_LOST = re.compile(
  r'gloo|nccl|coordination|distributed service|socket closed|'
  r'connection (?:reset|closed|refused)|remote process exited',
  re.IGNORECASE,
)


class OtherProcessError(Exception):
  """Another process of this member cannot go on, and says why.

  Attributes:
    kinds: names of the classes of its error.
  """

  def __init__(self, message: str, kinds: Collection[str] = ()):
    """Takes what the other process says."""
    super().__init__(message)
    self.kinds = kinds


def start(
  coordinator_address: str | None,
  num_processes: int | None,
  process_id: int | None,
  *,
  start_timeout_s: float,
  heartbeat_timeout_s: float,
) -> None:
  """Joins this member's other processes; call it before any use of devices.

  Args:
    coordinator_address: 'host:port' of the first process; None to find it, and
      the two numbers, from Slurm, Open MPI, Kubernetes or Cloud TPU.
    num_processes: number of this member's processes.
    process_id: number of this one.
    start_timeout_s: how long to wait for the others.
    heartbeat_timeout_s: all processes end when one has been silent for so long.

  Raises:
    RuntimeError: if the others do not come in time.
    ValueError: if there is no information to find them.
  """
  # The service would take our SIGTERM; processes agree at a step when to stop.
  jax.config.update('jax_enable_preemption_service', False)
  jax.distributed.initialize(
    coordinator_address,
    num_processes,
    process_id,
    # An address is enough: a cluster around us may belong to something else.
    cluster_detection_method=(
      None if coordinator_address is None else 'deactivate'
    ),
    initialization_timeout=int(start_timeout_s),
    heartbeat_timeout_seconds=int(heartbeat_timeout_s),
  )


def leave() -> None:
  """Waits until all processes come here; then each may end."""
  if are_several():
    jax.distributed.shutdown()


def lost(error: BaseException) -> str:
  """Returns an error's text if another process's end caused it; else ''.

  Args:
    error: an error of a collective, or one that it caused.
  """
  for link in _links(error) if are_several() else ():
    # A collective raises either; the rest of JAX does not for such a reason.
    if isinstance(link, (jax.errors.JaxRuntimeError, ValueError)):
      text = ' '.join(str(link).split())
      if _LOST.search(text):
        return text[:200]
  return ''


def _links(error: BaseException | None) -> Iterator[BaseException]:
  """An error, what caused it, and so on."""
  while error is not None:
    yield error
    error = error.__cause__ or error.__context__


def are_several() -> bool:
  """Whether this member has more processes than this one."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def devices() -> list[jax.Device]:
  """Returns the devices of all processes of this member.

  Raises:
    ValueError: if there is none of the kind that JAX_PLATFORMS names.
  """
  try:
    return jax.devices()
  # JAX gives the reason once, and later fails an assertion.
  except (RuntimeError, AssertionError) as error:
    reason = str(error).partition('\n')[0]
    raise ValueError(
      f'JAX finds none of the devices that it was told to use'
      f'{f" ({reason})" if reason else ""}; install JAX for them, or unset '
      'JAX_PLATFORMS'
    ) from error


def is_first() -> bool:
  """Whether this process speaks for its member."""
  return jax.process_index() == 0


def gather(numbers: Any) -> np.ndarray:
  """Gathers numbers of all processes; all must call it at the same point.

  Args:
    numbers: int32, of one shape everywhere.

  Returns:
    int32 [processes, …].
  """
  numbers = np.asarray(numbers, np.int32)
  if not are_several():
    return numbers[None]
  return np.asarray(multihost_utils.process_allgather(numbers))


def any_says(flag: bool) -> bool:
  """Whether any process says so; all must call it at the same point."""
  return bool(gather(flag).any())


def whole(leaf: Any) -> np.ndarray:
  """Returns a whole array; every process with a part of it must call it.

  Args:
    leaf: array of the host, or of devices of one process or several.
  """
  if isinstance(leaf, jax.Array):
    if leaf.is_fully_replicated:
      # A separate array, so that no copy stays with the leaf.
      leaf = leaf.addressable_data(0)
    elif not leaf.is_fully_addressable:
      leaf = multihost_utils.process_allgather(leaf, tiled=True)
  return np.asarray(leaf)


def tell(value: Any, process: int = 0) -> Any:
  """Returns one process's value; all must call it at the same point.

  Args:
    value: JSON; only that process's counts.
    process: the number of the process, the same everywhere.
  """
  if not are_several():
    return value
  tells = jax.process_index() == process
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  length = multihost_utils.broadcast_one_to_all(np.int32(len(text)), tells)
  if not tells:
    text = np.zeros(int(length), np.uint8)
  text = multihost_utils.broadcast_one_to_all(text, tells)
  return json.loads(np.asarray(text).tobytes())


def all_or_none(action: Callable[[], T]) -> T:
  """Lets every process act; all must call it at the same point.

  Args:
    action: computes nothing together with other processes.

  Raises:
    OtherProcessError: if it has failed in others, and not here.
    BaseException: any error of the action here.
  """
  if not are_several():
    return action()
  result = error = None
  try:
    result = action()
  except BaseException as raised:
    error = raised
  failed = np.flatnonzero(gather(error is not None))
  if failed.size:
    first = int(failed[0])
    kinds = [kind.__name__ for kind in type(error).__mro__]
    why, kinds = tell([str(error) or kinds[0], kinds], first)
    error = error or OtherProcessError(
      f'process {first} of this member cannot go on: {why}', kinds
    )
    error._all_end = True
    raise error
  return result


def all_end(error: BaseException) -> bool:
  """Whether `all_or_none` has raised an error in all processes.

  Args:
    error: of any kind, or one that it caused.
  """
  return any(hasattr(link, '_all_end') for link in _links(error))


def first_then_others(action: Callable[[], T]) -> T:
  """`all_or_none`, in which the others act once the first has succeeded."""
  result = all_or_none(lambda: action() if is_first() else None)
  return all_or_none(lambda: result if is_first() else action())


class OwnWorld:
  """A process beside this one that belongs to no world of several.

  In a world of several processes, Orbax 0.12 lets every save wait for all of
  them, and numbers their operations; a save or a load by one alone would upset
  both. In this process one can save and load alone. It starts on first use, and
  ends with its parent, even if that is killed.
  """

  def __init__(self):
    """Starts nothing yet."""
    self._pool = _make_pool()

  def call(self, function: Callable[..., T], *arguments: Any) -> T:
    """Calls a function there; returns or raises its outcome.

    Args:
      function: a module's function.
      *arguments: numpy arrays rather than a device's.
    """
    try:
      return self._pool.submit(function, *arguments).result()
    except concurrent.futures.process.BrokenProcessPool:
      self._pool = _make_pool()  # It was killed; the next call may succeed.
      raise

  def close(self) -> None:
    """Ends the process."""
    self._pool.shutdown(wait=False, cancel_futures=True)


def _make_pool() -> concurrent.futures.ProcessPoolExecutor:
  return concurrent.futures.ProcessPoolExecutor(
    max_workers=1,
    mp_context=multiprocessing.get_context('spawn'),
    initializer=_begin_alone,
    initargs=(os.getpid(),),
  )


def _begin_alone(parent: int) -> None:
  """Keeps off this host's accelerators, and ends with the parent."""
  jax.config.update('jax_platforms', 'cpu')
  # Signals to all processes of a job are for those that know how to react.
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, signal.SIG_IGN)

  def watch():
    while os.getppid() == parent:
      time.sleep(_LOOK_S)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()

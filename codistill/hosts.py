"""A member of many hosts: one process speaks for it, and all do the same.

A member that one host cannot hold runs as several processes, a world of
`jax.distributed` of its own. All of them must enter the same computations in
the same order. So whatever depends on time, on files or on signals is decided
by the first process, or by all together, at steps that all know.
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
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar('T')
# Seconds between two looks at whether the process that it works for lives.
_LOOK_S = 1.0
# What gloo, NCCL and JAX's coordination service say when a process is gone.
_LOST = re.compile(
  r'gloo|nccl|coordination|distributed service|socket closed|'
  r'connection (?:reset|closed|refused)|remote process exited',
  re.IGNORECASE,
)


class OtherProcessError(Exception):
  """The first process of this member could not go on, and says why."""


def start(
  coordinator_address: str | None,
  num_processes: int | None,
  process_id: int | None,
  *,
  start_timeout_s: float,
  heartbeat_timeout_s: float,
) -> None:
  """Joins this member's other processes; before anything else asks for devices.

  Args:
    coordinator_address: 'host:port' of the first process; None to find it, and
      the two numbers, from Slurm, Open MPI, Kubernetes or Cloud TPU.
    num_processes: of this member.
    process_id: which one this is.
    start_timeout_s: how long to wait for the others.
    heartbeat_timeout_s: after how long without a sign of life of one of them
      all end.

  Raises:
    RuntimeError: if the others do not come in time.
    ValueError: if there is nothing to find them by.
  """
  # It would take our SIGTERM; when to stop is agreed on at a step.
  jax.config.update('jax_enable_preemption_service', False)
  jax.distributed.initialize(
    coordinator_address,
    num_processes,
    process_id,
    # Whoever is told should not ask: a cluster may be something else's.
    cluster_detection_method=(
      None if coordinator_address is None else 'deactivate'
    ),
    initialization_timeout=int(start_timeout_s),
    heartbeat_timeout_seconds=int(heartbeat_timeout_s),
  )


def leave() -> None:
  """Waits for the others to come here, too; then each may end."""
  if are_several():
    jax.distributed.shutdown()


def lost(error: BaseException) -> str:
  """What an error says, if it came of another process that is gone; else ''.

  Args:
    error: of a collective, or of something that it was the cause of.
  """
  link: BaseException | None = error
  while link is not None and are_several():
    # A collective raises either, and the rest of JAX neither for such a reason.
    if isinstance(link, (jax.errors.JaxRuntimeError, ValueError)):
      text = ' '.join(str(link).split())
      if _LOST.search(text):
        return text[:200]
    link = link.__cause__ or link.__context__
  return ''


def are_several() -> bool:
  """Whether this member has more than this process."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def devices() -> list[jax.Device]:
  """Those of all processes of this member.

  Raises:
    ValueError: if there is none of the kind that JAX_PLATFORMS asks for.
  """
  try:
    return jax.devices()
  # JAX tells the reason once, and later fails an assertion.
  except (RuntimeError, AssertionError) as error:
    reason = str(error).partition('\n')[0]
    raise ValueError(
      f'JAX has none of the devices that it was told to use'
      f'{f" ({reason})" if reason else ""}; install JAX for them, or unset '
      'JAX_PLATFORMS'
    ) from error


def is_first() -> bool:
  """Whether this process speaks for its member."""
  return jax.process_index() == 0


def gather(numbers: Any) -> np.ndarray:
  """What each process says; all must ask, at the same point.

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
  """Whether any process says so; all must ask, at the same point."""
  return bool(gather(flag).any())


def whole(leaf: Any) -> np.ndarray:
  """All of an array; every process that has a part of it must ask.

  Args:
    leaf: of the host, or of devices of one process or several.
  """
  if isinstance(leaf, jax.Array):
    if leaf.is_fully_replicated:
      # An array of its own, so that no copy stays with the leaf.
      leaf = leaf.addressable_data(0)
    elif not leaf.is_fully_addressable:
      leaf = multihost_utils.process_allgather(leaf, tiled=True)
  return np.asarray(leaf)


def tell(value: Any) -> Any:
  """What the first process says; all must ask, at the same point.

  Args:
    value: JSON; of the first process alone.
  """
  if not are_several():
    return value
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
  if not is_first():
    text = np.zeros(length, np.uint8)
  text = multihost_utils.broadcast_one_to_all(text)
  return json.loads(np.asarray(text).tobytes())


def first_then_others(action: Callable[[], T]) -> T:
  """Lets the first process do it, and the others once it has succeeded.

  Raises:
    OtherProcessError: in the others, if it has not.
    BaseException: whatever the action raises here.
  """
  if not are_several():
    return action()
  if not is_first():
    why = tell(None)
    if why is not None:
      raise OtherProcessError(why)
    return action()
  try:
    result = action()
  except BaseException as error:
    tell(str(error) or type(error).__name__)
    raise
  tell(None)
  return result


class OwnWorld:
  """A process beside this one that belongs to no world of several.

  Orbax 0.12 has every save wait for all processes of a world, and numbers what
  they do; a save or a load by one of them alone would upset both. Here one can
  save and load alone. It starts when it is first needed, and ends with this
  process, however that ends.
  """

  def __init__(self):
    """Starts nothing yet."""
    self._pool = _make_pool()

  def call(self, function: Callable[..., T], *arguments: Any) -> T:
    """Calls a function there, and waits for what it returns or raises.

    Args:
      function: of a module.
      *arguments: numpy arrays rather than arrays of a device.
    """
    try:
      return self._pool.submit(function, *arguments).result()
    except concurrent.futures.process.BrokenProcessPool:
      self._pool = _make_pool()  # It was killed; the next call may succeed.
      raise

  def close(self) -> None:
    """Ends it."""
    self._pool.shutdown(wait=False, cancel_futures=True)


def _make_pool() -> concurrent.futures.ProcessPoolExecutor:
  return concurrent.futures.ProcessPoolExecutor(
    max_workers=1,
    mp_context=multiprocessing.get_context('spawn'),
    initializer=_begin_alone,
    initargs=(os.getpid(),),
  )


def _begin_alone(parent: int) -> None:
  """Keeps off this host's accelerators, and does not outlive its parent."""
  jax.config.update('jax_platforms', 'cpu')
  # Sent to all processes of a job, they are for those that know what to do.
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, signal.SIG_IGN)

  def watch():
    while os.getppid() == parent:
      time.sleep(_LOOK_S)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()

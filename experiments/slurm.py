"""Runs as an array of Slurm jobs, of one task or many, through submitit."""

from __future__ import annotations

import copy
import os
import pathlib
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from experiments.errors import UserError, nearest
from experiments.paths import ROOT

_POLL_SECONDS = 0.5
# How long before it takes a job away Slurm says so, unless told otherwise, and
# how much of that is left to submit it once more.
_NOTICE_SECONDS = 90
_REQUEUE_SECONDS = 15
# More than Slurm takes to kill a job that it has told to stop.
_HOLD_SECONDS = 600
_STOPS = (signal.SIGTERM, signal.SIGUSR2)
# Parameters of submitit that are lists: one command, words.
_LISTS = {
  'setup': lambda text: [text],
  'teardown': lambda text: [text],
  'srun_args': shlex.split,
}
_BOOLS = {'true': True, 'false': False}


def submit(
  commands: Sequence[Sequence[str]],
  jobs: int,
  workdir: pathlib.Path,
  parameters: Mapping[str, str],
) -> list[str]:
  """Submits runs as one array.

  A job of several tasks is one run, whose processes find each other through
  `jax.distributed`.

  Args:
    commands: of the runs, `python -m experiments.run …`.
    jobs: how many at a time.
    workdir: of the runs; the array's scripts and logs go below it.
    parameters: of sbatch, as submitit names them without its slurm_; `time`,
      in minutes, at least; and its `max_num_timeout`, how many times a run may
      use that time up and go on.

  Returns:
    The ids of the jobs.

  Raises:
    UserError: without Slurm, or for parameters that it refuses.
  """
  # It would reset everyone's logging; what there is to say is said here.
  os.environ.setdefault('SUBMITIT_LOG_LEVEL', 'NOCONFIG')
  import submitit  # Only Slurm's users wait for it.

  known = submitit.SlurmExecutor._valid_parameters()
  values = _values(parameters, known)
  tasks_per_node = _count(values, 'ntasks_per_node', 1)
  if _count(values, 'nodes', 1) * tasks_per_node > 1:
    commands = [
      (*(word for word in command if word != '--distributed'), '--distributed')
      for command in commands
    ]
    # Of a run that has lost one process nothing comes any more.
    values['srun_args'] = ['--kill-on-bad-exit=1', *values.get('srun_args', [])]
  if 'cpus_per_task' in values:
    # Which srun does not take from sbatch since Slurm 22.05.
    values.setdefault('srun_args', []).append(
      f'--cpus-per-task={values["cpus_per_task"]}'
    )
  notice = _count(values, 'signal_delay_s', _NOTICE_SECONDS)
  runs = [
    SlurmRun(
      command,
      gpus=_gpus(values) // tasks_per_node,
      checkpoint_seconds=max(0, notice - _REQUEUE_SECONDS),
    )
    for command in commands
  ]
  try:
    executor = submitit.AutoExecutor(
      workdir / 'slurm',
      cluster='slurm',
      slurm_max_num_timeout=_count(values, 'max_num_timeout', 3),
    )
    values.pop('max_num_timeout', None)
    executor.update_parameters(
      name=workdir.name,
      slurm_array_parallelism=jobs,
      # Without it, a site may forbid to submit a job once more.
      slurm_additional_parameters={'requeue': True},
      **{f'slurm_{key}': value for key, value in values.items()},
    )
    with executor.batch():
      submitted = [executor.submit(run) for run in runs]
  except (
    RuntimeError,
    ValueError,
    TypeError,
    AssertionError,
    submitit.core.utils.FailedJobError,
  ) as error:
    reason = ' '.join(str(error).split())
    raise UserError(f'Slurm did not take the jobs: {reason}') from error
  return [job.job_id for job in submitted]


def _values(
  parameters: Mapping[str, str], known: AbstractSet[str]
) -> dict[str, Any]:
  """Parameters as submitit takes them, if it knows them all."""
  # One of them is not text, and set by `submit`.
  known = known - {'additional_parameters'} | {'max_num_timeout'}
  for key in parameters:
    if key not in known:
      raise UserError(f'--slurm has no {key}{nearest(key, known)}')
  if not parameters.get('time', '').isdecimal():
    # Submitit would ask for five minutes.
    raise UserError('how long may a run take? say --slurm time=MINUTES')
  return {key: _value(key, text) for key, text in parameters.items()}


def _value(key: str, text: str) -> Any:
  """A parameter as submitit takes it."""
  if key in _LISTS:
    return _LISTS[key](text)
  return int(text) if text.isdecimal() else _BOOLS.get(text.lower(), text)


def _count(values: Mapping[str, Any], key: str, default: int) -> int:
  value = values.get(key, default)
  if not isinstance(value, int) or isinstance(value, bool):
    raise UserError(f'--slurm {key} is a number, not {value!r}')
  return value


def _gpus(values: Mapping[str, Any]) -> int:
  """Of each node, from gpus_per_node=8 or =KIND:8; 0 if that says nothing."""
  count = str(values.get('gpus_per_node', '')).rpartition(':')[2]
  return int(count) if count.isdecimal() else 0


class SlurmRun:
  """A run's command as submitit calls it, and again after a preemption.

  Submitit calls it once in each task of the job. Slurm's signals come to all
  processes of all tasks: the runs stop at a common step, with a checkpoint,
  and the first task submits the job once more.
  """

  def __init__(
    self,
    command: Sequence[str],
    *,
    gpus: int = 0,
    checkpoint_seconds: float = _NOTICE_SECONDS - _REQUEUE_SECONDS,
  ):
    """Starts nothing yet.

    Args:
      command: the same in each task.
      gpus: of each task; 0 if they are for JAX to find.
      checkpoint_seconds: how long a run that is to stop may take.
    """
    self.command = tuple(command)
    self._gpus = gpus
    self._checkpoint_seconds = checkpoint_seconds
    self._process: subprocess.Popen | None = None

  def __call__(self) -> None:
    """Runs it to its end.

    Raises:
      subprocess.CalledProcessError: if that is not a good one.
    """
    told: list[int] = []

    def note(number, frame):
      told.append(number)
      if callable(before[number]):
        before[number](number, frame)

    before = {number: signal.getsignal(number) for number in _STOPS}
    for number in _STOPS:
      signal.signal(number, note)
    try:
      self._process = subprocess.Popen(
        self.command, cwd=ROOT, env=self._environment()
      )
      status = self._process.wait()
      if status and (told or {-status, status - 128} & set(_STOPS)):
        # A task that ends now, and not with a good end, may end the job before
        # the first one has submitted it once more, or before Slurm has.
        time.sleep(_HOLD_SECONDS)
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)
    if status:
      raise subprocess.CalledProcessError(status, self.command)

  def _environment(self) -> dict[str, str]:
    """This process's, with the GPUs of its task."""
    environment = dict(os.environ)
    if self._gpus and 'SLURM_LOCALID' in environment:
      # JAX would take one GPU a task, however many tasks there are.
      first = int(environment['SLURM_LOCALID']) * self._gpus
      environment.setdefault(
        'JAX_LOCAL_DEVICE_IDS',
        ','.join(str(gpu) for gpu in range(first, first + self._gpus)),
      )
    return environment

  def checkpoint(self) -> Any:
    """The same once more, when this one has written its checkpoint.

    Slurm has sent its signal to the run as well. What follows when this
    returns ends all processes, and a run that could not finish its checkpoint
    would go on from the one before.
    """
    import submitit

    end = time.monotonic() + self._checkpoint_seconds
    while self._runs() and time.monotonic() < end:
      time.sleep(_POLL_SECONDS)
    again = copy.copy(self)
    again._process = None
    return submitit.helpers.DelayedSubmission(again)

  def _runs(self) -> bool:
    """Whether the command does, without reaping it: `checkpoint` interrupts."""
    if self._process is None:
      return False
    look = os.WEXITED | os.WNOHANG | os.WNOWAIT
    try:
      return os.waitid(os.P_PID, self._process.pid, look) is None
    except ChildProcessError:
      return False  # Reaped before the interruption.

"""Submits runs as an array of Slurm jobs with submitit."""

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
# Seconds of notice before Slurm takes a job away, by default, and how many of
# them are left to submit it again.
_NOTICE_SECONDS = 90
_REQUEUE_SECONDS = 15
# More than Slurm needs to kill a job that it has told to stop.
_HOLD_SECONDS = 600
_STOPS = (signal.SIGTERM, signal.SIGUSR2)
# Parameters of submitit that are lists, each with a list of texts.
LISTS = ('setup', 'teardown', 'srun_args')
_BOOLS = {'true': True, 'false': False}


def submit(
  commands: Sequence[Sequence[str]],
  jobs: int,
  workdir: pathlib.Path,
  parameters: Mapping[str, str | Sequence[str]],
) -> list[str]:
  """Submits runs as one array.

  A job of several tasks is one run; its processes find each other through
  `jax.distributed`.

  Args:
    commands: of the runs, `python -m experiments.run …`.
    jobs: how many at a time.
    workdir: of the runs; the array's scripts and logs go below it.
    parameters: of sbatch, with submitit's names without slurm_. `time`, in
      minutes, is required; `max_num_timeout` says how often a run may use up
      its time and go on. Those of `LISTS` have a list of texts.

  Returns:
    The ids of the jobs.

  Raises:
    UserError: without Slurm, or for parameters that it refuses.
  """
  # Otherwise submitit would change the logging of all modules.
  os.environ.setdefault('SUBMITIT_LOG_LEVEL', 'NOCONFIG')
  import submitit  # Slow, and only Slurm's users need it.

  known = submitit.SlurmExecutor._valid_parameters()
  values = _values(parameters, known)
  tasks_per_node = _count(values, 'ntasks_per_node', 1, least=1)
  if _count(values, 'nodes', 1, least=1) * tasks_per_node > 1:
    commands = [
      (*(word for word in command if word != '--distributed'), '--distributed')
      for command in commands
    ]
    # A run that has lost a process cannot go on.
    values['srun_args'] = ['--kill-on-bad-exit=1', *values.get('srun_args', [])]
  if 'cpus_per_task' in values:
    # Since Slurm 22.05 srun does not take it from sbatch.
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
      # Without it, a site may forbid submitting a job again.
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
  parameters: Mapping[str, str | Sequence[str]], known: AbstractSet[str]
) -> dict[str, Any]:
  """Converts parameters for submitit; refuses unknown ones."""
  # `submit` sets these itself.
  known = known - {'additional_parameters', 'array_parallelism'}
  known |= {'max_num_timeout'}
  for key in parameters:
    if key not in known:
      raise UserError(f'--slurm has no {key}{nearest(key, known)}')
  if not parameters.get('time', '').isdecimal():
    # Submitit would ask for five minutes.
    raise UserError('no time limit in minutes; add --slurm time=MINUTES')
  return {key: _value(key, text) for key, text in parameters.items()}


def _value(key: str, text: str | Sequence[str]) -> Any:
  """Converts a parameter for submitit."""
  if key == 'srun_args':
    return [word for one in text for word in _words(one)]
  if key in LISTS:
    return [*text]
  return int(text) if text.isdecimal() else _BOOLS.get(text.lower(), text)


def _words(text: str) -> list[str]:
  try:
    return shlex.split(text)
  except ValueError as error:
    raise UserError(
      f'--slurm srun_args={text} cannot be split into words ({error}); quote '
      'them as for a shell'
    ) from error


def _count(
  values: Mapping[str, Any], key: str, default: int, least: int = 0
) -> int:
  value = values.get(key, default)
  if not isinstance(value, int) or isinstance(value, bool) or value < least:
    raise UserError(
      f'--slurm {key} must be a number, {least} or more, not {value!r}'
    )
  return value


def _gpus(values: Mapping[str, Any]) -> int:
  """GPUs of a node, from gpus_per_node=8 or =KIND:8; 0 without a number."""
  count = str(values.get('gpus_per_node', '')).rpartition(':')[2]
  return int(count) if count.isdecimal() else 0


class SlurmRun:
  """A run's command, which submitit calls, and again after a preemption.

  Submitit calls it once in each task of the job. Slurm's signals come to all
  processes of all tasks: the runs stop at a common step, with a checkpoint,
  and the first task submits the job again.
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
      gpus: of each task; 0 lets JAX find them.
      checkpoint_seconds: the time that a run has to stop.
    """
    self.command = tuple(command)
    self._gpus = gpus
    self._checkpoint_seconds = checkpoint_seconds
    self._process: subprocess.Popen | None = None

  def __call__(self) -> None:
    """Runs the command to its end.

    Raises:
      subprocess.CalledProcessError: if the command fails.
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
        # A task that fails now may end the job before the first task, or Slurm,
        # has submitted it again.
        time.sleep(_HOLD_SECONDS)
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)
    if status:
      raise subprocess.CalledProcessError(status, self.command)

  def _environment(self) -> dict[str, str]:
    """The environment of this process, with the GPUs of its task."""
    environment = dict(os.environ)
    if self._gpus and 'SLURM_LOCALID' in environment:
      # Otherwise JAX takes one GPU per task.
      first = int(environment['SLURM_LOCALID']) * self._gpus
      environment.setdefault(
        'JAX_LOCAL_DEVICE_IDS',
        ','.join(str(gpu) for gpu in range(first, first + self._gpus)),
      )
    return environment

  def checkpoint(self) -> Any:
    """Has the run submitted again, after it has written its checkpoint.

    Slurm has sent its signal to the run as well. When this returns, submitit
    ends all processes, and a run without a finished checkpoint would go on from
    the one before.
    """
    import submitit

    end = time.monotonic() + self._checkpoint_seconds
    while self._runs() and time.monotonic() < end:
      time.sleep(_POLL_SECONDS)
    again = copy.copy(self)
    again._process = None
    return submitit.helpers.DelayedSubmission(again)

  def _runs(self) -> bool:
    """Whether the command runs, without reaping it: `__call__` does that."""
    if self._process is None:
      return False
    look = os.WEXITED | os.WNOHANG | os.WNOWAIT
    try:
      return os.waitid(os.P_PID, self._process.pid, look) is None
    except ChildProcessError:
      return False  # Reaped before the interruption.

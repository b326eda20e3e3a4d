"""Runs as an array of Slurm jobs, through submitit."""

from __future__ import annotations

import difflib
import os
import pathlib
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
_POLL_SECONDS = 0.5
# Submitit has Slurm warn 90 seconds before it takes a job away.
_CHECKPOINT_SECONDS = 75


def submit(
  commands: Sequence[Sequence[str]],
  jobs: int,
  workdir: pathlib.Path,
  parameters: Mapping[str, str],
) -> list[str]:
  """Submits runs as one array.

  Args:
    commands: of the runs.
    jobs: how many at a time.
    workdir: of the sweep; the array's scripts and logs go below it.
    parameters: of sbatch, as submitit names them without its slurm_; `time`,
      in minutes, at least.

  Returns:
    The ids of the jobs.

  Raises:
    UserError: without Slurm, or for parameters that it refuses.
  """
  # It would reset everyone's logging; what there is to say is said here.
  os.environ.setdefault('SUBMITIT_LOG_LEVEL', 'NOCONFIG')
  import submitit  # Only Slurm's users wait for it.

  known = submitit.SlurmExecutor._valid_parameters()
  for key in parameters:
    if key not in known:
      near = difflib.get_close_matches(key, known)
      hint = f'; did you mean {" or ".join(near)}?' if near else ''
      raise UserError(f'--slurm has no {key}{hint}')
  if not parameters.get('time', '').isdecimal():
    # Submitit would ask for five minutes.
    raise UserError('how long may a run take? say --slurm time=MINUTES')
  try:
    executor = submitit.AutoExecutor(workdir / 'slurm', cluster='slurm')
    executor.update_parameters(
      name=workdir.name,
      slurm_array_parallelism=jobs,
      **{
        f'slurm_{key}': int(value) if value.isdecimal() else value
        for key, value in parameters.items()
      },
    )
    with executor.batch():
      submitted = [executor.submit(SlurmRun(command)) for command in commands]
  except (
    RuntimeError,
    ValueError,
    TypeError,
    AssertionError,
    submitit.core.utils.FailedJobError,
  ) as error:
    reason = ' '.join(str(error).split())
    raise UserError(f'Slurm did not take the sweep: {reason}') from error
  return [job.job_id for job in submitted]


class SlurmRun:
  """A run's command as submitit calls it, and again after a preemption."""

  def __init__(self, command: Sequence[str]):
    self.command = tuple(command)
    self._process: subprocess.Popen | None = None

  def __call__(self) -> None:
    """Runs it to its end."""
    self._process = subprocess.Popen(self.command, cwd=ROOT)
    status = self._process.wait()
    if status:
      raise subprocess.CalledProcessError(status, self.command)

  def checkpoint(self) -> Any:
    """The same once more, when this one has written its checkpoint.

    Slurm has sent its signal to the run as well. What follows when this
    returns ends all processes, and a run that could not finish its checkpoint
    would go on from the one before.
    """
    import submitit

    end = time.monotonic() + _CHECKPOINT_SECONDS
    # Without reaping it: this interrupts the wait above.
    look = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while time.monotonic() < end:
      if os.waitid(os.P_PID, self._process.pid, look):
        break
      time.sleep(_POLL_SECONDS)
    return submitit.helpers.DelayedSubmission(SlurmRun(self.command))

"""What a run that goes on begins with: a checkpoint, and the rows up to it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from codistill import hosts
from codistill.algorithm import Member
from codistill.storage.checkpoint import Checkpoints, Restored
from codistill.storage.step_folders import UnreadableError
from experiments import predictions
from experiments.errors import UserError
from experiments.experiment import Experiment
from experiments.workdir import Workdir


def restore(
  experiment: Experiment, workdir: Workdir, checkpoints: Checkpoints
) -> Restored | None:
  """The newest good checkpoint that all rows are there of; None before one.

  Raises:
    UserError: if there should be one, and none can be used.
  """
  folder, run = workdir.checkpoints, workdir.run
  last, rows = _last_whole_step(experiment, workdir), workdir.record.rows_path
  remedy = (
    'put back a copy, go on with the code that wrote it, or --overwrite to '
    'begin anew'
  )
  try:
    restored = checkpoints.restore(
      functools.cache(experiment.abstract),
      experiment.mesh,
      experiment.teacher_precision,
      lambda step: f'{rows.name} ends at step {last:,}' if step > last else '',
    )
  except UnreadableError as error:
    raise UserError(
      f'no checkpoint in {folder} can be gone on from: {error}; {remedy}'
    ) from error
  if restored is not None:
    checkpoints.leave_behind(restored.step)
  elif 'checkpoint' in run:
    raise UserError(
      f'{folder} is empty, and {workdir.record.run_path.name} knows of a '
      f'checkpoint of step {run["checkpoint"]:,}; {remedy}'
    )
  return restored


def keep_rows(
  experiment: Experiment,
  workdir: Workdir,
  members: Sequence[Member],
  step: int,
) -> bool:
  """Drops what was written after a step, from which a run goes on.

  Returns:
    Whether the step's own evaluation is to be made, because its rows are not
    all there.
  """
  owes = hosts.tell(
    hosts.is_first() and _lacks_evaluation(experiment, workdir, members, step)
  )
  again = (step, 'eval') if owes else None
  workdir.record.keep_rows(
    lambda row: (
      row['step'] <= step
      and row['kind'] != 'final'
      and (row['step'], row['kind']) != again
    )
  )
  if hosts.is_first():
    predictions.drop_after(workdir.predictions, step - owes)
  # A divergence after the checkpoint is about to happen again, or not.
  diverged = workdir.run.get('diverged', {}).items()
  workdir.run['diverged'] = {
    member: at for member, at in diverged if at['step'] <= step
  }
  return owes


def _lacks_evaluation(
  experiment: Experiment,
  workdir: Workdir,
  members: Sequence[Member],
  step: int,
) -> bool:
  """Whether a step has an evaluation, and its rows are not all there."""
  is_due = step % experiment.eval_interval_steps == 0
  if not is_due or step in (0, experiment.num_steps):
    return False
  wanted: set[int | str] = {one.index for one in members if one.active}
  if len(wanted) > 1:
    wanted.add('ensemble')
  return not wanted <= {
    row['member']
    for row in workdir.record.read_rows()
    if (row['step'], row['kind']) == (step, 'eval')
  }


def _last_whole_step(experiment: Experiment, workdir: Workdir) -> int:
  """The last step that all rows are there of, as the first process sees it.

  Raises:
    UserError: if they cannot be read.
  """

  def find() -> int:
    last = dict.fromkeys(experiment.members, 0)
    try:
      rows = workdir.record.read_rows()
    except ValueError as error:
      raise UserError(f'{error}, or --overwrite to begin anew') from error
    for row in rows:
      if row['kind'] == 'train':
        last[row['member']] = row['step']
    # One that has diverged or died has no rows after that.
    diverged = workdir.run.get('diverged', {})
    return min(
      (
        step
        for member, step in last.items()
        if step < diverged.get(str(member), {'step': math.inf})['step']
        and not experiment.fault.kills(member, step)
      ),
      default=experiment.num_steps,
    )

  return hosts.tell(
    hosts.all_or_none(lambda: find() if hosts.is_first() else None)
  )

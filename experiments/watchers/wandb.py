"""Rows and config in Weights & Biases, through its client.

The client's own variables say where to: WANDB_PROJECT, WANDB_ENTITY,
WANDB_MODE=offline and the rest of them.
"""

from __future__ import annotations

import os

from experiments.errors import UserError
from experiments.watchers import Row, Watcher, curves, whose

try:
  import wandb
except ImportError as error:
  raise UserError(
    f'--wandb needs the client of Weights & Biases ({error}); install it with '
    '.venv/bin/pip install wandb==0.31.0, or leave --wandb out'
  ) from error

PROJECT = 'codistillation'


class WeightsAndBiases(Watcher):
  """One run there for each process here; those of one workdir are a group.

  A row is at its step, and its numbers are `kind/name/member-0`. `run.json`
  keeps the id, with which a resumed run goes on there.
  """

  name = 'Weights & Biases'

  def __enter__(self) -> WeightsAndBiases:
    path, run = self._workdir.path, self._workdir.run
    name, member = '/'.join(path.parts[-2:]), run['member']
    before = run.get('wandb', {})
    try:
      self._run = wandb.init(
        project=before.get('project')
        or os.environ.get('WANDB_PROJECT', PROJECT),
        id=before.get('id'),
        resume='allow',
        name=name if member is None else f'{name} member {member}',
        group=None if member is None else name,
        config=run['config']
        | {key: run[key] for key in ('experiment', 'variant', 'commit')},
        dir=path,
        settings={'console': 'off', 'quiet': True},
      )
    except wandb.Error as error:
      reason = str(error).partition('\n')[0]
      raise UserError(
        f'Weights & Biases did not start ({reason}); log in with '
        '.venv/bin/wandb login, or set WANDB_MODE=offline and send the run '
        'later with wandb sync, or leave --wandb out'
      ) from error
    self._first_step = self._run.starting_step
    self._workdir.write_run(
      wandb={'project': self._run.project, 'id': self._run.id}
    )
    return self

  def __exit__(self, *exception: object) -> None:
    # Until it is resumed, a run that was stopped counts as failed there.
    done = self._workdir.run['status'] == 'done'
    self._attempt(self._run.finish, exit_code=0 if done else 1)

  def write(self, row: Row) -> None:
    """Logs a row, unless it is there from before a run was resumed."""
    numbers = {f'{name}/{whose(row)}': n for name, n in curves(row).items()}
    if numbers and row['step'] >= self._first_step:
      self._attempt(self._run.log, numbers, step=row['step'])

"""What a run has stored: its experiment rebuilt, and its members read."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from codistill import hosts, optim
from codistill.algorithm import Peer
from codistill.evaluate import probabilities
from codistill.models import Model
from codistill.storage.checkpoint import read_newest
from codistill.storage.step_folders import UnreadableError
from data.text.corpus import Corpus
from experiments import averaging
from experiments import config as config_lib
from experiments.build import build
from experiments.errors import UserError, user_errors
from experiments.experiment import Experiment
from experiments.paths import local_path
from experiments.record import Row
from experiments.runs import (
  Run,
  commit_of,
  label_of,
  members_of,
  read_all_rows,
  read_runs,
  reference_of,
  some_run,
)
from experiments.tasks import Task, make_task

PyTree = Any


class Stored(NamedTuple):
  """A member as a checkpoint holds it: its updates, and its variables."""

  step: int
  variables: PyTree


def rebuild(
  runs: Mapping[int | None, Run],
  *,
  eval_split: str | None = None,
  with_data: bool = True,
) -> Experiment:
  """The experiment of a run, to look at and not to train.

  Args:
    runs: the provenance of its processes.
    eval_split: to evaluate on, instead of the config's.
    with_data: whether examples are wanted, and so have to be here.

  Returns:
    The experiment, without an exchange, on as many of the run's number of
    devices as there are here.

  Raises:
    UserError: if its config is no longer one, or its data is not here, or no
      longer what it was.
  """
  run = some_run(runs)
  config = config_lib.load(reference_of(run))
  # Into the named config: JSON has lists where it has tuples, and what this
  # code has new keys for has their values from there.
  try:
    config.update(run['config'])
  except TypeError as error:
    raise UserError(
      f'{reference_of(run)} is no longer what this run was made with '
      f'({error.args[0]:.200}); take the code and the config file that made it'
    ) from error
  # No lease, no thread, no folder; and no label counted for a teacher. Members
  # that are averaged have states of their own kind.
  averaged = averaging.is_averaged(config)
  config.codistill.exchange = 'memory' if averaged else 'none'
  config.codistill.teacher = 'peers'
  # Nobody trains, and the members are in one process now. Other faults stay,
  # because one is part of the optimizer.
  if config.fault.kind == 'slow':
    config.fault.kind = 'none'
  # Nobody who looks learns from them.
  if 'unlabelled_split' in config.data:
    config.data.unlabelled_split = None
  if eval_split is not None:
    if 'eval_split' not in config.data:
      raise UserError(
        f'there is no split {eval_split!r}: these data have train and test'
      )
    config.data.eval_split = eval_split
  with user_errors(ValueError):
    here = len(hosts.devices())
  there = config.num_devices or run.get('device', {}).get('count', here)
  config.num_devices = max(
    devices
    for devices in range(1, min(here, there) + 1)
    if math.gcd(config.batch_size, config.eval_batch_size) % devices == 0
  )
  if not with_data:
    # Nothing is evaluated, and the functions may be elsewhere.
    config.eval_metrics = ()
  without = None if with_data else make_task(config.data).without_examples()
  experiment = build(config, None, without)
  if with_data:
    _check_data(runs, experiment.dataset)
  return experiment


def _check_data(runs: Mapping[int | None, Run], data: Any) -> None:
  """Raises a `UserError` if data are not those that a run has learnt from."""
  here = getattr(data, 'fingerprint', None)
  for run in runs.values():
    before = run.get('data', {}).get('fingerprint')
    if before not in (None, here):
      raise UserError(
        f'{label_of(run)} has learnt from data whose fingerprint is '
        f'{before[:12]}, and those that it names have another one; put back '
        'the data that it learnt from'
      )


def load_members(
  workdir: pathlib.Path,
  runs: Mapping[int | None, Run],
  experiment: Experiment,
  wanted: Collection[int],
  say: Callable[[str], None],
  *,
  averaged: bool = False,
) -> tuple[dict[int, Stored], dict[int, str]]:
  """The newest good stored state of members.

  Args:
    workdir: of the run.
    runs: the provenance of its processes.
    experiment: rebuilt from it.
    wanted: numbers of members.
    say: told in a sentence what is damaged, and so is not what is returned.
    averaged: whether to take the running average of the weights instead of the
      weights.

  Returns:
    The members that there are, and for each of the others why not.

  Raises:
    UserError: for a number that no member has, if there are checkpoints and
      none can be read, or if a running average is wanted and there is none.
  """
  for member in wanted:
    if member not in members_of(runs):
      raise UserError(
        f'there is no member {member}: this run has {len(members_of(runs))}, '
        'numbered from 0'
      )
  if averaged and not experiment.average_decay:
    raise UserError(
      f'{workdir} has no running average of the weights, because its '
      'average_decay is 0; leave out --averaged'
    )
  found: dict[int, Stored] = {}
  missing = {
    member: f'member {member} has no checkpoint yet' for member in wanted
  }
  for process in runs:
    mine = set(wanted if process is None else {process} & set(wanted))
    if not mine:
      continue
    suffix = '' if process is None else f'-{process}'
    folder = workdir / f'checkpoints{suffix}'
    try:
      restored = read_newest(
        folder,
        functools.cache(experiment.abstract),
        experiment.mesh,
        experiment.teacher_precision,
      )
    except UnreadableError as error:
      raise UserError(
        f'no checkpoint in {folder} can be read: {error}; put back a copy, or '
        f'check out commit {commit_of(runs[process])}, which made them'
      ) from error
    if restored is None:
      continue
    if restored.passed_over:
      say(
        f'{"; ".join(restored.passed_over)}; taking that of step '
        f'{restored.step:,}'
      )
    for member in mine & restored.states.keys():
      if member in restored.extra['active']:
        state = restored.states[member]
        variables = state.variables
        if averaged:
          variables = optim.averaged(variables, state.opt_state)
        found[member] = Stored(restored.step, variables)
        del missing[member]
      else:
        fault = experiment.fault
        how = 'died' if fault.kills(member, fault.step) else 'diverged'
        missing[member] = f'member {member} has {how}'
  return dict(sorted(found.items())), missing


@dataclasses.dataclass(frozen=True)
class FinishedRun:
  """A finished run, opened to look at and to predict with.

  Attributes:
    workdir: of the run.
    runs: the provenance of its processes.
    experiment: rebuilt from it.
    members: as they were at the end, by number.
  """

  workdir: pathlib.Path
  runs: Mapping[int | None, Run]
  experiment: Experiment
  members: dict[int, Stored]

  @property
  def label(self) -> str:
    """'imagenet_codistill:laptop'."""
    return label_of(some_run(self.runs))

  @functools.cached_property
  def rows(self) -> list[Row]:
    """What its processes have written, one after the other."""
    rows = read_all_rows(self.workdir, self.runs)
    if rows is None:
      raise UserError(
        f'rows of {self.workdir} are gone; put back a copy, or run it again '
        'with --overwrite'
      )
    return rows

  def curve(
    self, who: int | str, metric: str
  ) -> tuple[list[int], list[float | None]]:
    """Steps, and a metric of held-out examples at each of them.

    Args:
      who: number of a member, or 'ensemble'.
      metric: of rows: 'task_loss', 'accuracy', …
    """
    found = {
      row['step']: row[metric]
      for row in self.rows
      if row['member'] == who and row['kind'] in ('eval', 'final')
    }
    return list(found), list(found.values())

  def predict(self, who: int | str, inputs: PyTree) -> np.ndarray:
    """Probabilities [*batch, classes] of each class, by one or by all.

    Args:
      who: number of a member, or 'ensemble' for the mean of all.
      inputs: of a batch, as the data set has them: of images their pixels. A
        language model begins with an empty memory.

    Raises:
      UserError: if there is no such member.
    """
    members = (
      self.members if who == 'ensemble' else {who: self.members.get(who)}
    )
    if None in members.values():
      raise UserError(
        f'there is no member {who!r}; there are '
        f"{', '.join(map(str, self.members))} and 'ensemble'"
      )
    variables = [one.variables for one in members.values()]
    models = tuple(self.experiment.models(members))
    return np.asarray(_probabilities(models, variables, inputs))


_probabilities = jax.jit(probabilities, static_argnums=0)


def open_run(
  workdir: str | os.PathLike[str], *, averaged: bool = False
) -> FinishedRun:
  """Opens a finished run, all of whose members can be read as it left them.

  Args:
    workdir: of the run.
    averaged: as `load_members`.

  Raises:
    UserError: if there is no run, it has not finished, its data are not here,
      or a member cannot be read.
  """
  workdir = local_path(os.fspath(workdir))

  def find() -> tuple[Mapping[int | None, Run], Experiment]:
    runs = read_runs(workdir)
    for run in runs.values():
      if run['status'] != 'done':
        raise UserError(
          f'{workdir} is {run["status"]}, and only a finished run can be '
          'opened; let its command go on, or begin it anew with --overwrite'
        )
    return runs, rebuild(runs)

  runs, experiment = hosts.all_or_none(find)
  members = members_of(runs)
  said: list[str] = []
  found, missing = load_members(
    workdir, runs, experiment, members, said.append, averaged=averaged
  )
  for member, one in found.items():
    if one.step < (steps := some_run(runs)['config']['num_steps']):
      missing[member] = '; '.join(
        [
          *said,
          f'member {member} is there after {one.step:,} of {steps:,} updates; '
          'put back a copy of its last checkpoint, or run it again with '
          '--overwrite',
        ]
      )
  if missing:
    raise UserError(f'{workdir}: {"; ".join(missing.values())}')
  return FinishedRun(workdir, runs, experiment, found)


def load_teachers(
  workdir: pathlib.Path, data: Mapping[str, Any]
) -> tuple[tuple[Peer, ...], dict[int, Model]]:
  """The members of a finished run, to learn from (§3.4.1), and their networks.

  Args:
    workdir: of the run.
    data: of the student's config.

  Raises:
    UserError: as `open_run`, or if they know examples of another kind.
  """
  run = open_run(workdir)

  def check() -> None:
    task = make_task(data)
    check_alike(workdir, run.experiment.task, task)
    pieces = getattr(run.experiment.dataset, 'vocabulary', None)
    if pieces is not None and pieces != task.make_dataset().vocabulary:
      raise UserError(
        f'{workdir} learnt other pieces; choose other teachers, or their text'
      )

  hosts.all_or_none(check)
  peers = tuple(
    Peer(member, one.step, one.variables) for member, one in run.members.items()
  )
  models = run.experiment.models(run.members)
  return peers, dict(zip(run.members, models, strict=True))


def check_alike(workdir: pathlib.Path, theirs: Task, ours: Task) -> None:
  """Raises a `UserError` if a run has learnt from examples of another kind."""
  for key in ('kind', *ours.must_agree):
    there, here = getattr(theirs, key, None), getattr(ours, key)
    if there != here:
      raise UserError(
        f'{workdir} has learnt from data whose {key} is {there}, and here '
        f'data.{key} is {here}; choose other teachers or other data'
      )


def corpus_of(
  workdir: pathlib.Path, runs: Mapping[int | None, Run], experiment: Experiment
) -> Corpus:
  """The text that a language model learnt from, and so its vocabulary.

  Raises:
    UserError: if it is no language model, or that text is not here.
  """
  if experiment.task.kind != 'text':
    raise UserError(
      f'{workdir} is no language model: its data are {experiment.task.kind}; '
      'name the folder of a run of a config lm_…'
    )
  corpus = experiment.task.make_dataset().corpus
  _check_data(runs, corpus)
  return corpus

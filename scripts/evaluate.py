"""Scores what a run has stored: each member, their ensemble, how they differ.

  python -m scripts.evaluate WORKDIR [--split=test|train|SPLIT]
    [--member I …] [--json=FILE]

Takes each member's newest checkpoint, while the run works or after; members
that run apart may then be at different steps. Changes nothing in WORKDIR.

The split is test (the config's data.eval_split), train (its data.train_split:
all of it, whatever part a member learns from), or for image sets of TFDS an
expression such as 'validation[:10%]'.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import sys
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from absl import logging
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from codistill.checkpoint import read_newest
from codistill.evaluate import Evaluation, Score
from experiments import config as config_lib
from experiments.build import Experiment, build
from experiments.errors import UserError
from experiments.summary import number, percent
from scripts.status import Run, label_of, members_of, read_runs, some_run

ROOT = pathlib.Path(__file__).parent.parent
PyTree = Any


class Stored(NamedTuple):
  """A member as a checkpoint holds it: its updates, and its variables."""

  step: int
  variables: PyTree


def rebuild(
  runs: Mapping[int | None, Run],
  *,
  eval_split: str | None = None,
  dataset: Any = None,
) -> Experiment:
  """The experiment of a run, to look at and not to train.

  Args:
    runs: the provenance of its processes.
    eval_split: to evaluate on, instead of the config's.
    dataset: instead of the one that the config names.

  Returns:
    The experiment, without an exchange, on as many of the run's number of
    devices as there are here.

  Raises:
    UserError: if its config is no longer one, or its data is not here.
  """
  run = some_run(runs)
  config = config_lib.load(label_of(run))
  # Into the named config: JSON has lists where it has tuples, and what this
  # code has new keys for has their values from there.
  config.update(run['config'])
  # No lease, no thread, no folder; and no label counted for a teacher.
  config.codistill.exchange = 'none'
  config.codistill.teacher = 'peers'
  if eval_split is not None:
    config.data.eval_split = eval_split
  here = len(jax.devices())
  config.num_devices = max(
    devices
    for devices in range(1, min(here, config.num_devices or here) + 1)
    if math.gcd(config.batch_size, config.eval_batch_size) % devices == 0
  )
  return build(config, None, dataset=dataset)


def load_members(
  workdir: pathlib.Path,
  runs: Mapping[int | None, Run],
  experiment: Experiment,
  wanted: Collection[int],
) -> tuple[dict[int, Stored], dict[int, str]]:
  """The newest stored state of members.

  Args:
    workdir: of the run.
    runs: the provenance of its processes.
    experiment: rebuilt from it.
    wanted: numbers of members.

  Returns:
    The members that there are, and for each of the others why not.

  Raises:
    UserError: for a number that no member has, or a checkpoint that cannot be
      read.
  """
  for member in wanted:
    if member not in members_of(runs):
      raise UserError(
        f'there is no member {member}: this run has {len(members_of(runs))}, '
        'numbered from 0'
      )
  abstract = jax.eval_shape(lambda: experiment.init(0))
  found: dict[int, Stored] = {}
  missing = {
    member: f'member {member} has no checkpoint yet' for member in wanted
  }
  for process in runs:
    mine = set(wanted if process is None else {process} & set(wanted))
    if not mine:
      continue
    suffix = '' if process is None else f'-{process}'
    folder = workdir.expanduser().absolute() / f'checkpoints{suffix}'
    try:
      restored = read_newest(
        folder,
        abstract,
        experiment.model,
        experiment.batch_size,
        experiment.mesh,
        experiment.teacher_precision,
      )
    # Orbax and TensorStore raise anything.
    except Exception as error:
      raise UserError(
        f'the newest checkpoint in {folder} cannot be read '
        f'({type(error).__name__}); if it is not damaged, check out commit '
        f'{commit_of(runs[process])}, which made it'
      ) from error
    if restored is None:
      continue
    for member in mine & restored.states.keys():
      if member in restored.extra['active']:
        variables = restored.states[member].variables
        found[member] = Stored(restored.step, variables)
        del missing[member]
      else:
        missing[member] = f'member {member} has diverged'
  return dict(sorted(found.items())), missing


def commit_of(run: Run) -> str:
  """The commit that last worked on a run."""
  return str((run.get('resumed') or [run])[-1].get('commit'))[:12]


def evaluate(
  experiment: Experiment, stored: Mapping[int, Stored], split: str
) -> Evaluation:
  """Scores members exactly on 'train' or 'test' of an experiment."""
  return experiment.evaluate(
    [one.variables for one in stored.values()],
    experiment.dataset.eval(
      split, batch_size=experiment.config.eval_batch_size
    ),
  )


def evaluation_table(
  title: str, steps: Mapping[int, int], result: Evaluation
) -> Table:
  """A line for each member, and one for the ensemble of several."""
  table = Table(
    title=Text(title),
    box=box.SIMPLE_HEAD,
    padding=(0, 1, 0, 0),
    caption=(
      'loss: cross-entropy in nats; disagree: on how many examples two members '
      'differ; churn: total variation distance between their predictions'
    ),
  )
  table.add_column('member')
  for name in ('step', 'accuracy', 'loss', 'disagree', 'churn'):
    table.add_column(name, justify='right', no_wrap=True)
  lines: list[tuple[str, str, Score, float | None, float | None]] = [
    (str(member), f'{step:,}', score, None, None)
    for (member, step), score in zip(steps.items(), result.members, strict=True)
  ]
  if result.ensemble is not None:
    ends = sorted({min(steps.values()), max(steps.values())})
    lines.append(
      (
        'ensemble',
        ' to '.join(f'{step:,}' for step in ends),
        result.ensemble,
        result.disagreement,
        result.total_variation,
      )
    )
  for who, step, score, disagreement, churn in lines:
    table.add_row(
      who,
      step,
      percent(score.accuracy),
      number(score.task_loss),
      percent(disagreement),
      number(churn),
    )
  return table


def _numbers(
  workdir: pathlib.Path,
  split: str,
  steps: Mapping[int, int],
  missing: Mapping[int, str],
  result: Evaluation,
) -> dict[str, Any]:
  """The table as JSON has it; what is not finite is null."""

  def scores(score: Score) -> dict[str, float | None]:
    return {
      name: value if math.isfinite(value) else None
      for name, value in score._asdict().items()
    }

  return {
    'workdir': str(workdir),
    'split': split,
    'num_examples': result.num_examples,
    'members': {
      str(member): {'step': step, **scores(score)}
      for (member, step), score in zip(
        steps.items(), result.members, strict=True
      )
    },
    'ensemble': result.ensemble and scores(result.ensemble),
    'disagreement': result.disagreement,
    'total_variation': result.total_variation,
    'left_out': {str(member): why for member, why in missing.items()},
  }


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
  """Does what the arguments say."""
  workdir = arguments.workdir
  if arguments.json is not None and not arguments.json.parent.is_dir():
    raise UserError(f'{arguments.json.parent} is no folder; choose another')
  runs = read_runs(workdir)
  own = arguments.split in ('test', 'train')
  experiment = rebuild(runs, eval_split=None if own else arguments.split)
  wanted = sorted(set(arguments.member or members_of(runs)))
  stored, missing = load_members(workdir, runs, experiment, wanted)
  if not stored:
    raise UserError(
      f'nothing to evaluate in {workdir}: {"; ".join(missing.values())}'
    )
  for why in missing.values():
    say(f'{why}; left out')
  result = evaluate(experiment, stored, arguments.split if own else 'test')
  steps = {member: one.step for member, one in stored.items()}
  title = (
    f'{label_of(some_run(runs))}: {result.num_examples:,} examples of '
    f'{arguments.split}'
  )
  Console().print(evaluation_table(title, steps, result))
  if arguments.json is not None:
    numbers = _numbers(workdir, arguments.split, steps, missing, result)
    text = json.dumps(numbers, indent=2, allow_nan=False)
    arguments.json.write_text(text + '\n', encoding='utf-8')


def prepare_jax() -> None:
  """As a run does: programs are kept, and Orbax is silent."""
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update('jax_compilation_cache_dir', str(ROOT / '.cache/jax'))
  logging.set_verbosity(logging.FATAL)
  # Orbax forgets one of its own when a checkpoint is damaged.
  warnings.filterwarnings('ignore', 'coroutine .* was never awaited')


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the table; errors that a user can cause end in one sentence."""
  parser = argparse.ArgumentParser(
    prog='scripts.evaluate',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('workdir', metavar='WORKDIR', type=pathlib.Path)
  parser.add_argument('--split', default='test')
  parser.add_argument('--member', metavar='I', type=int, nargs='+')
  parser.add_argument('--json', metavar='FILE', type=pathlib.Path)
  arguments = parser.parse_args(argv)
  prepare_jax()

  def say(sentence: str) -> None:
    print(f'scripts.evaluate: {sentence}', file=sys.stderr)

  try:
    run(arguments, say)
  except (UserError, OSError) as error:
    say(str(error).partition('\n')[0])  # TFDS says some things twice.
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main())

"""Scores a run's stored members and their ensemble, and how members differ.

  python -m scripts.evaluate WORKDIR [--split=test|train|SPLIT]
    [--member I …] [--averaged] [--json=FILE]

It takes each member's newest checkpoint, during the run or after it; members
that run apart may then be at different steps. It changes nothing in WORKDIR.

The split is test (the config's data.eval_split), train (its data.train_split,
with the parts that a member does not learn from), or, for image sets of TFDS,
an expression such as 'validation[:10%]'.

--averaged scores the running average of each member's weights, which a run with
average_decay keeps, instead of the weights.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from codistill.evaluate import Evaluation, Score
from experiments.errors import UserError
from experiments.experiment import Experiment
from experiments.paths import local_path
from experiments.programs import keep_programs
from experiments.runs import Run, label_of, members_of, read_runs, some_run
from experiments.stored import Stored, load_members, rebuild
from experiments.summary import number, percent

PyTree = Any


def evaluate(
  experiment: Experiment, stored: Mapping[int, Stored], split: str
) -> Evaluation:
  """Scores members exactly on 'train' or 'test' of an experiment."""
  return experiment.evaluate(
    experiment.models(stored),
    [one.variables for one in stored.values()],
    experiment.eval_batches(split),
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
      'differ; apart: total variation distance between their predictions'
    ),
  )
  table.add_column('member')
  metrics = result.members[0].metrics
  for name in ('step', 'accuracy', 'loss', *metrics, 'disagree', 'apart'):
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
  for who, step, score, disagreement, apart in lines:
    table.add_row(
      who,
      step,
      percent(score.accuracy),
      *map(number, (score.task_loss, *score.metrics.values())),
      percent(disagreement),
      number(apart),
    )
  return table


def _numbers(
  workdir: pathlib.Path,
  split: str,
  steps: Mapping[int, int],
  missing: Mapping[int, str],
  result: Evaluation,
  averaged: bool,
) -> dict[str, Any]:
  """The table for JSON, with null for numbers that are not finite."""

  def scores(score: Score) -> dict[str, float | None]:
    return {
      name: value if math.isfinite(value) else None
      for name, value in score.numbers().items()
    }

  return {
    'workdir': str(workdir),
    'split': split,
    'averaged': averaged,
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


def load(
  arguments: argparse.Namespace,
  runs: Mapping[int | None, Run],
  experiment: Experiment,
  wanted: Sequence[int],
  say: Callable[[str], None],
) -> tuple[dict[int, Stored], dict[int, str]]:
  """`load_members` by --averaged; without it, says if there is an average."""
  workdir, averaged = arguments.workdir, arguments.averaged
  stored, missing = load_members(
    workdir, runs, experiment, wanted, say, averaged=averaged
  )
  if stored and experiment.average_decay and not averaged:
    say('these are the weights; --averaged takes their running average')
  return stored, missing


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
  """Runs the command."""
  workdir = arguments.workdir
  if arguments.json is not None and not arguments.json.parent.is_dir():
    raise UserError(f'{arguments.json.parent} is not a folder; choose another')
  runs = read_runs(workdir)
  own = arguments.split in ('test', 'train')
  experiment = rebuild(runs, eval_split=None if own else arguments.split)
  wanted = sorted(set(arguments.member or members_of(runs)))
  stored, missing = load(arguments, runs, experiment, wanted, say)
  if not stored:
    raise UserError(
      f'nothing to evaluate in {workdir}: {"; ".join(missing.values())}'
    )
  for why in missing.values():
    say(f'{why}; left out')
  result = evaluate(experiment, stored, arguments.split if own else 'test')
  for name in experiment.take_corrupt('eval'):
    say(f'{name} cannot be decoded; it counts as a black image')
  steps = {member: one.step for member, one in stored.items()}
  title = (
    f'{label_of(some_run(runs))}: {result.num_examples:,} examples of '
    f'{arguments.split}{", averaged weights" if arguments.averaged else ""}'
  )
  Console().print(evaluation_table(title, steps, result))
  if arguments.json is not None:
    numbers = _numbers(
      workdir, arguments.split, steps, missing, result, arguments.averaged
    )
    text = json.dumps(numbers, indent=2, allow_nan=False)
    arguments.json.write_text(text + '\n', encoding='utf-8')


def prepare_jax() -> None:
  """Keeps compiled programs and silences Orbax, as a run does."""
  keep_programs()
  logging.set_verbosity(logging.FATAL)
  # Orbax leaves a coroutine unawaited when a checkpoint is damaged.
  warnings.filterwarnings('ignore', 'coroutine .* was never awaited')


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the table; errors that a user can cause end in one sentence."""
  parser = argparse.ArgumentParser(
    prog='scripts.evaluate',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('workdir', metavar='WORKDIR', type=local_path)
  parser.add_argument('--split', default='test')
  parser.add_argument(
    '--member', metavar='I', type=int, nargs='+', action='extend'
  )
  parser.add_argument('--averaged', action='store_true')
  parser.add_argument('--json', metavar='FILE', type=local_path)
  arguments = parser.parse_args(argv)
  prepare_jax()

  def say(sentence: str) -> None:
    print(f'scripts.evaluate: {sentence}', file=sys.stderr)

  try:
    run(arguments, say)
  except (UserError, OSError) as error:
    say(str(error).partition('\n')[0])  # TFDS repeats some messages.
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main())

"""Churn: how much predictions differ from one retrain to another.

  python -m scripts.churn WORKDIR WORKDIR [WORKDIR …] [--all-steps]

A WORKDIR is a run's folder, or one with runs anywhere below it, such as a
sweep's. Runs of one recipe, which differ in nothing but the seed, are compared
pair by pair, at the last step for which all have stored predictions, or with
--all-steps at every such step. Churn is the mean |Δp| for two classes and the
total variation distance for more; a member is compared with the same member of
another run, never with its own peers. Numbers are means over pairs, and log
loss, accuracy and AUC over runs, ± half the range. The command needs neither
jax nor the data.

A run stores predictions at its end with `store_predictions`, and on the way
with `predictions_interval_steps`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from codistill.churn import Score, score
from experiments import predictions, results, retrains
from experiments.errors import UserError
from experiments.paths import local_path
from experiments.predictions import Who
from experiments.retrains import Row
from experiments.runs import label_of, read_runs, some_run
from experiments.summary import spread
from scripts.collect import find_runs

LEGEND = """\
Held-out examples; mean ± half the range. churn, over pairs of runs: mean |Δp|
for two classes, total variation distance for more; changed: examples with
another most likely class; loss in nats."""
Recipe = tuple[str, list[pathlib.Path]]


class Line(NamedTuple):
  """A predictor of a recipe at a step.

  Attributes:
    step: of training.
    who: the member, or 'ensemble'.
    churn: one row a pair of runs, as `retrains.compare` makes it.
    scores: one a run.
  """

  step: int
  who: Who
  churn: list[Row]
  scores: list[Score]


def find_recipes(
  workdirs: Sequence[pathlib.Path], say: Callable[[str], None]
) -> list[Recipe]:
  """Finds groups of runs that are retrains of each other, and names them.

  Args:
    workdirs: runs, or folders of runs.
    say: is told which runs are left out.

  Raises:
    ValueError: if there is no run in one of them, or it is damaged.
  """
  found: dict[pathlib.Path, None] = {}
  for workdir in workdirs:
    found |= dict.fromkeys(path.resolve() for path in find_runs(workdir))
  recipes: dict[str, Recipe] = {}
  seeds: dict[tuple[str, int], pathlib.Path] = {}
  for path in found:
    if not predictions.find(path):
      say(
        f'{path} is left out: it has stored no predictions; run it with '
        '--config.store_predictions=True'
      )
      continue
    run = some_run(read_runs(path))
    point = results.point_name(results.point_of(run['overrides']))
    data = run.get('data', {}).get('fingerprint')
    recipe = json.dumps([label_of(run), results.recipe_of(run['config']), data])
    name = label_of(run) + (f' {point}' if point != 'base' else '')
    if data:
      name += f' on data {data[:12]}'
    same = seeds.setdefault((recipe, run['seed']), path)
    if same is not path:
      say(
        f'{path} is left out: it has the seed of {same}, so it is no retrain; '
        'run it with another --config.seed'
      )
      continue
    recipes.setdefault(recipe, (name, []))[1].append(path)
  return list(recipes.values())


def compare(workdirs: Sequence[pathlib.Path], *, all_steps: bool) -> list[Line]:
  """Compares retrains of one recipe, pair by pair.

  Args:
    workdirs: of the runs.
    all_steps: at every step for which all have predictions, not only the last.

  Raises:
    ValueError: if there is only one run or no such step, or as
      `retrains.compare`.
  """
  if len(workdirs) < 2:
    raise ValueError(
      f'{workdirs[0]} is the only run of its recipe, and churn needs two; run '
      'it with another --config.seed, too'
    )
  stored = [predictions.find(workdir) for workdir in workdirs]
  steps = set.intersection(*({step for step, _ in one} for one in stored))
  if not steps:
    raise ValueError(
      f'{" and ".join(map(str, workdirs))} have no step in common with stored '
      'predictions; run one of them again'
    )
  if not all_steps:
    steps = {max(steps)}
  pairs = [
    retrains.compare(one, other)
    for one, other in itertools.combinations(workdirs, 2)
  ]
  lines: dict[tuple[int, Who], list[Row]] = {}
  for row in itertools.chain(*pairs):
    if row['step'] in steps:
      lines.setdefault((row['step'], row['member']), []).append(row)
  return [
    Line(*key, rows, [score(*one[key].open()) for one in stored if key in one])
    for key, rows in lines.items()
  ]


def churn_table(name: str, lines: Sequence[Line]) -> Table:
  """A line for each member and ensemble at each step."""
  table = Table(title=Text(name), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
  table.add_column('step', justify='right', no_wrap=True)
  table.add_column('member', no_wrap=True)
  for column in ('runs', 'churn', 'changed %', 'loss', 'accuracy %', 'AUC'):
    table.add_column(column, justify='right')
  for line in lines:
    table.add_row(
      f'{line.step:,}',
      str(line.who),
      str(len(line.scores)),
      spread([row['total_variation'] for row in line.churn], 4),
      spread([100 * row['changed_decisions'] for row in line.churn], 2),
      spread([one.log_loss for one in line.scores], 4),
      spread([100 * one.accuracy for one in line.scores], 2),
      spread([one.auc for one in line.scores if one.auc is not None], 4),
    )
  return table


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> int:
  """Runs the command; returns 1 if a recipe could not be compared."""
  recipes = find_recipes(arguments.workdirs, say)
  compared = []
  for name, workdirs in recipes:
    try:
      lines = compare(workdirs, all_steps=arguments.all_steps)
    except ValueError as error:
      say(str(error))
    else:
      compared.append((name, lines))
  console = Console()
  for name, lines in compared:
    console.print(churn_table(name, lines))
  if compared:
    console.print(LEGEND)
  return 0 if compared and len(compared) == len(recipes) else 1


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the table; errors that a user can cause end in one sentence."""
  parser = argparse.ArgumentParser(
    prog='scripts.churn',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('workdirs', metavar='WORKDIR', nargs='+', type=local_path)
  parser.add_argument('--all-steps', action='store_true')

  def say(sentence: str) -> None:
    print(f'scripts.churn: {sentence}', file=sys.stderr)

  try:
    return run(parser.parse_args(argv), say)
  except (UserError, OSError, ValueError) as error:
    say(str(error))
    return 1


if __name__ == '__main__':
  sys.exit(main())

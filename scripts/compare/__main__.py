"""Runs and sweeps side by side: a table, a picture, a report.

  python -m scripts.compare SOURCE [SOURCE …] [--metric=KEY …] [--who=WHO]
    [--baseline=NAME] [--out=PICTURE.png] [--html=REPORT.html] [--markdown]

A SOURCE is a run's folder, one with runs anywhere below it, such as a sweep's
(runs/sweeps/NAME-variant), or a file of experiments/results. Runs are named by
the keys of their configs that differ, and seeds of one point are averaged, with
a band from the least to the greatest. The table has the end of training, and
the difference to a baseline, seed for seed: to the point that leaves its config
as it is, to the first one, or to the one that --baseline names. A run that has
not finished is drawn, dotted, as far as it has come, and is not averaged.

Of single runs, without --metric and --who, each member and the ensemble are
shown, with loss and accuracy.

Draws from rows alone, so it needs neither jax nor the data.
"""

from __future__ import annotations

import argparse
import io
import pathlib
import sys
import warnings
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.errors import UserError
from experiments.paths import local_path
from experiments.summary import results_table
from scripts import markdown
from scripts.compare import measures, points
from scripts.compare.measures import EACH, ENSEMBLE
from scripts.figures.metric import MEMBERS, Metric


def who(text: str) -> int | str:
  """A member's number, or one of three words."""
  if text in (MEMBERS, ENSEMBLE, EACH):
    return text
  if text.isdecimal():
    return int(text)
  raise argparse.ArgumentTypeError(
    f'{text!r} is not {MEMBERS}, {ENSEMBLE}, {EACH} or the number of a member'
  )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='scripts.compare',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    'sources', nargs='+', type=local_path, metavar='SOURCE', help='see above'
  )
  parser.add_argument(
    '--metric',
    action='append',
    metavar='KEY',
    help='of the evaluation rows: accuracy, auc, …; repeatable (default: '
    'task_loss)',
  )
  parser.add_argument(
    '--who',
    type=who,
    help='members, their mean (default); ensemble; a member’s number; or each',
  )
  parser.add_argument(
    '--baseline', metavar='NAME', help='a point, as the table calls it'
  )
  parser.add_argument(
    '--out',
    type=local_path,
    metavar='PICTURE',
    help='learning curves and ends; its suffix says the format',
  )
  parser.add_argument(
    '--html',
    type=local_path,
    metavar='REPORT',
    help='pictures, table, commands and provenance in one file',
  )
  parser.add_argument(
    '--markdown', action='store_true', help='print the table as Markdown'
  )
  return parser.parse_args(argv)


def _compare(
  arguments: argparse.Namespace, console: Console
) -> tuple[pathlib.Path, ...]:
  """Does what is asked for; returns folders of runs that could not begin."""
  compared = points.read(arguments.sources)
  # As experiments.run shows it.
  plain = compared.single and arguments.metric is arguments.who is None
  keys = arguments.metric or ['task_loss', *(['accuracy'] if plain else [])]
  who = EACH if plain else arguments.who
  arms = measures.arms_of(compared.points, MEMBERS if who is None else who)
  metrics = [measures.metric_of(arms, key) for key in dict.fromkeys(keys)]
  baseline = measures.baseline_of(compared.points, arguments.baseline)
  table = measures.make_table(compared, arms, metrics, baseline)
  if arguments.out or arguments.html:
    _draw(arguments, compared, table, arms, metrics)
  if arguments.markdown:
    print(markdown.table(table.header, table.lines), end='')
    return compared.failed
  if plain:
    ends = [(one.name, run.rows) for one in compared.points for run in one.runs]
    console.print(results_table(ends))
  else:
    for metric in metrics:  # One beside the other would be too wide.
      table = measures.make_table(compared, arms, [metric], baseline)
      console.print(_rich(compared.title, table))
  shown = [
    ('rows, provenance, checkpoints', source)
    for source in arguments.sources
    if source.is_dir()
  ]
  shown += [('learning curves', arguments.out), ('report', arguments.html)]
  for what, path in shown:
    if path:
      text = f'{what}: {path}'
      console.print(text, soft_wrap=True, highlight=False, markup=False)
  return compared.failed


def _draw(
  arguments: argparse.Namespace,
  compared: points.Comparison,
  table: measures.Table,
  arms: Sequence[measures.Arm],
  metrics: Sequence[Metric],
) -> None:
  # Not for a table alone: it takes half a second to import.
  from scripts.compare import report
  from scripts.compare.draw import grid
  from scripts.figures import draw

  panels, svg = grid(arms, metrics), io.BytesIO()
  if path := arguments.out:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw.picture(compared.title, panels, '', {path.suffix[1:].lower(): path})
  if path := arguments.html:
    draw.picture('', panels, '', {'svg': svg})
    path.parent.mkdir(parents=True, exist_ok=True)
    text = report.page(compared, table, svg.getvalue())
    path.write_text(text, encoding='utf-8')


def _rich(title: str, found: measures.Table) -> Table:
  table = Table(
    title=Text(title or 'Held-out examples'),
    caption=Text(found.caption),
    box=box.SIMPLE_HEAD,
    padding=(0, 1, 0, 0),
  )
  for name in found.header:
    words = name in (found.header[0], found.header[-1])
    table.add_column(
      name, justify='left' if words else 'right', overflow='fold'
    )
  for line in found.lines:
    table.add_row(*map(Text, line))
  return table


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; errors that a user can cause end in one sentence."""
  arguments = _parse(argv)
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    try:
      failed = _compare(arguments, Console())
    except (OSError, ValueError, UserError) as error:
      print(f'scripts.compare: {error}', file=sys.stderr)
      return 1
  for warning in caught:
    print(f'scripts.compare: {warning.message}', file=sys.stderr)
  for folder in failed:
    print(
      f'scripts.compare: {folder} failed before it began; see its log.txt',
      file=sys.stderr,
    )
  return 0


if __name__ == '__main__':
  sys.exit(main())

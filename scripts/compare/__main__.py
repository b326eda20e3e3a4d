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
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.errors import UserError
from experiments.paths import local_path
from experiments.summary import results_table
from scripts import collect, markdown
from scripts.compare import measures, points
from scripts.compare.measures import EACH
from scripts.figures.metric import LOSS, MEMBERS, Metric


def _who(text: str) -> int | str:
  return int(text) if text.isdecimal() else text


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='scripts.compare',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('sources', nargs='+', type=local_path, metavar='SOURCE', help='see above')
  text = 'of the evaluation rows: accuracy, auc, …; repeatable (task_loss)'
  add('--metric', action='append', metavar='KEY', help=text)
  text = 'members, their mean (default); ensemble; a member’s number; or each'
  add('--who', type=_who, help=text)
  text = 'a point, as the table calls it'
  add('--baseline', metavar='NAME', help=text)
  text = 'learning curves and ends; its suffix says the format'
  add('--out', type=local_path, metavar='PICTURE', help=text)
  text = 'picture, table, commands and provenance in one file'
  add('--html', type=local_path, metavar='REPORT', help=text)
  add('--markdown', action='store_true', help='print the table as Markdown')
  return parser.parse_args(argv)


def _compare(
  arguments: argparse.Namespace, console: Console
) -> Sequence[pathlib.Path]:
  """Does what is asked for; returns folders of runs that could not begin."""
  compared = points.read(arguments.sources)
  # As experiments.run shows it.
  plain = compared.single and arguments.metric is arguments.who is None
  keys = arguments.metric or ['task_loss', *(['accuracy'] if plain else [])]
  who = EACH if plain else arguments.who
  arms = measures.arms_of(compared.points, MEMBERS if who is None else who)
  metrics = [measures.metric_of(arms, key) for key in dict.fromkeys(keys)]
  baseline = measures.baseline_of(compared.points, arguments.baseline)
  table = measures.make_table(arms, metrics, baseline, compared.along)
  if arguments.out or arguments.html:
    _draw(arguments, compared, table, arms, metrics)
  if arguments.markdown:
    print(markdown.table(table.header, table.lines), end='')
    print(''.join(f'\n{text}\n' for text in compared.along), end='')
    return compared.failed
  if plain:
    ends = [(one.name, run.rows) for one in compared.points for run in one.runs]
    console.print(results_table(ends))
    for text in (*compared.along, *_without_ends(arms)):
      console.print(Text(text), soft_wrap=True)
  else:
    for metric in metrics:  # One beside the other would be too wide.
      one = measures.make_table(arms, [metric], baseline, compared.along)
      console.print(_rich(compared.title, one))
  folders = filter(pathlib.Path.is_dir, arguments.sources)
  for what, path in (
    *(('rows, provenance, checkpoints', one) for one in folders),
    ('learning curves', arguments.out),
    ('report', arguments.html),
  ):
    if path:
      console.print(Text(f'{what}: {path}'), soft_wrap=True)
  return compared.failed


def _without_ends(arms: Sequence[measures.Arm]) -> Iterator[str]:
  """What a table of ends has no line of."""
  for arm in arms:
    for run in arm.runs:
      if not LOSS.ends([run], arm.who):
        why = measures.why_no_end(run, arm.who)
        own = LOSS.curve(run, arm.who)
        last = max((step for step, _ in own), default=0)
        yield f'no end: {arm.name} ({why}; evaluated last at step {last:,})'


def _draw(
  arguments: argparse.Namespace,
  compared: points.Comparison,
  table: measures.Table,
  arms: Sequence[measures.Arm],
  metrics: Sequence[Metric],
) -> None:
  # Not for a table alone: it takes half a second to import.
  from scripts.compare.draw import grid
  from scripts.compare.report import page
  from scripts.figures.draw import picture

  panels = grid(arms, metrics)
  for path in filter(None, (arguments.out, arguments.html)):
    path.parent.mkdir(parents=True, exist_ok=True)
  if path := arguments.out:
    picture(compared.title, panels, '', {path.suffix[1:].lower(): path})
  if arguments.html:
    svg = io.BytesIO()
    picture('', panels, '', {'svg': svg})
    text = page(compared, table, svg.getvalue())
    arguments.html.write_text(text, encoding='utf-8')


def _rich(title: str, found: measures.Table) -> Table:
  title, caption = Text(title or 'Held-out examples'), Text(found.caption)
  look = {'box': box.SIMPLE_HEAD, 'padding': (0, 1, 0, 0)}
  table = Table(title=title, caption=caption, **look)
  for name in found.header:
    words = name in (found.header[0], found.header[-1])
    side = 'left' if words else 'right'
    table.add_column(name, justify=side, overflow='fold')
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
  complaints = [str(warning.message) for warning in caught]
  for folder in failed:
    complaints.append(f'{folder} {collect.why_no_records(folder)}')
  for text in complaints:
    print(f'scripts.compare: {text}', file=sys.stderr)
  return 0


if __name__ == '__main__':
  sys.exit(main())

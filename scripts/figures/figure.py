"""What all figures have in common: panels, a table, and what makes rows."""

from __future__ import annotations

import abc
import functools
import pathlib
from collections.abc import Callable, Iterable, Sequence

from experiments.results import Result
from scripts import markdown
from scripts.figures.arms import Arm
from scripts.figures.metric import LOSS, Metric, Rows
from scripts.figures.panel import Grid

_CONFIGS = pathlib.Path(__file__).parent.parent.parent / 'experiments/configs'
# The cells below it go on from there: whole commands make tables too wide.
COMMAND = 'command: `python -m experiments.sweep` …'
# Where text and clicks lie that everybody prepares for themselves.
_DATA = {
  ('lm', 'gpu'): ' --config.data.data_dir=DIR',
  ('criteo', 'sample'): ' --config.data.path=DIR',
}
# A line of a table: cells by their columns. The last one needs the variant.
Cells = dict[str, str | Callable[[str], str]]


class Figure(abc.ABC):
  """Panels and a Markdown table, made of rows.

  Attributes:
    title: of the picture.
    configs: without whose rows there is nothing of ours.
    seeds: how many the command for missing rows asks for.
    lacking: what there is not where there are no rows.
    hint: what else is to be said there.
    names: how many cells of a line say what it is of.
  """

  title: str
  configs: tuple[str, ...]
  seeds = 3
  lacking = 'rows'
  hint = ''
  names = 1

  @abc.abstractmethod
  def panels(self, rows: Rows) -> Grid:
    """The paper's, if it has such a figure, and ours; [] without our rows."""

  @abc.abstractmethod
  def lines(self, rows: Rows) -> Iterable[Cells]:
    """Those of the table, all with the same columns."""

  def table(self, rows: Rows, variant: str) -> str:
    """The numbers, as Markdown, of arms that have some; '' without arms."""
    lines = list(self.lines(rows))
    there = [line for line in lines if line['runs'] != '0']
    cells = (
      [
        cell if isinstance(cell, str) else cell(variant)
        for cell in one.values()
      ]
      for one in there or lines
    )
    text = markdown.table(list(lines[0]), cells) if lines else ''
    if not there or len(there) == len(lines):
      return text
    # Beside others a line of dashes would look like a failure.
    lacking = (
      ', '.join([*line.values()][: self.names])
      for line in lines
      if line['runs'] == '0'
    )
    return f'{text}\nNo finished runs yet: {"; ".join(lacking)}.\n'

  def how(self, variant: str) -> str:
    """What makes our rows."""
    commands = ' && '.join(
      command(config, variant, self.seeds) for config in self.configs
    )
    return (
      f'has no {self.lacking} of {f":{variant}" if variant else "this scale"}; '
      f'make them with {commands} && python -m scripts.collect runs/sweeps'
      f'{self.hint}'
    )


def command(config: str, variant: str, seeds: int) -> str:
  """What makes the rows of a config."""
  return f'python -m experiments.sweep {_flags(config, variant, seeds)}'


def _flags(config: str, variant: str, seeds: int) -> str:
  label = f'{config}:{variant}' if variant else config
  data = _DATA.get((config.partition('_')[0], variant), '')
  return f'--config={label} --seeds={seeds}{data}'


def hours_table(rows: Rows, variant: str) -> str:
  """What the rows cost: hours of all runs of a config, one after another."""
  lines = []
  total, count = 0.0, 0
  for config, runs in rows.items():
    seconds = sum(_seconds(run) for run in runs if run.rows)
    total, count = total + seconds, count + len(runs)
    commits = {str(run.run['commit'])[:12] for run in runs}
    cells = [f'`{config}`', str(len(runs)), f'{seconds / 3_600:.2f}']
    made_by = _command_cell(config, runs, 3, variant)
    lines.append([*cells, ', '.join(sorted(commits)), made_by])
  lines.append(['all', str(count), f'{total / 3_600:.2f}', '', ''])
  return markdown.table(['config', 'runs', 'hours', 'commit', COMMAND], lines)


def _seconds(run: Result) -> float:
  """Of a run and of its first phase, if rows say how long that took."""
  own = run.rows[-1]['seconds']
  if run.run['config']['codistill'].get('frozen_dir'):
    return own  # Its teachers are another run, which others may share.
  return own + run.run.get('teachers', {}).get('seconds', 0)


def made_by(config: str, runs: Sequence[Result], seeds: int = 3) -> Cells:
  """The last two cells: how many runs, and the command that makes them.

  Runs that are unfinished have no end to count in the other cells, so the first
  one says '3 (1 dirty)' with what was allowed when they were collected.

  Args:
    config: whose runs they are.
    runs: those that there are.
    seeds: how many to ask for if there are none.
  """
  marks = [mark for run in runs for mark in run.run['marked']]
  notes = [f'{marks.count(mark)} {mark}' for mark in sorted(set(marks))]
  count = f'{len(runs)} ({", ".join(notes)})' if notes else str(len(runs))
  cell = functools.partial(_command_cell, config, runs, seeds)
  return {'runs': count, COMMAND: cell}


def _command_cell(
  config: str, runs: Sequence[Result], seeds: int, variant: str
) -> str:
  if not runs and not (_CONFIGS / f'{config}.py').exists():
    return f'`{config}`, not built yet'
  if runs:  # Of another config's, perhaps.
    config = runs[0].run['experiment']
  seeds = max((run.run['seed'] + 1 for run in runs), default=seeds)
  return f'`{_flags(config, variant, seeds)}`'


def ends(
  runs: Sequence[Result], who: int | str, *metrics: Metric, of: str = ''
) -> Cells:
  """One cell: the ends by one metric, or by several."""
  names = ' / '.join(metric.short for metric in metrics)
  cells = [metric.text(metric.ends(runs, who)) for metric in metrics]
  return {f'{of}: {names}' if of else names: beside(*cells)}


def gains(
  runs: Sequence[Result],
  who: int | str,
  baseline: Arm,
  rows: Rows,
  *metrics: Metric,
) -> Cells:
  """'+0.0266 ± 0.0067': how much better than a baseline, seed for seed."""
  theirs = baseline.runs(rows)
  names = ' / '.join(metric.short for metric in metrics)
  cells = [
    one.text(one.gains(runs, who, theirs, baseline.who), sign='+')
    for one in metrics
  ]
  if runs == theirs and who == baseline.who:
    cells = ['–']  # It is the baseline.
  return {f'better than the baseline, seed for seed: {names}': beside(*cells)}


def gain_over(
  baseline: Sequence[Result], runs: Sequence[Result], who: int | str
) -> str:
  """How much lower a loss ends, seed for seed; '–' for the baseline itself.

  The mean over the members is compared with that over as many others, or one.
  """
  if runs == baseline:
    return '–'
  ours, theirs = (LOSS.by_seed(some, who) for some in (runs, baseline))
  gain = [theirs[seed] - end for seed, end in ours.items() if seed in theirs]
  return LOSS.text(gain, sign='+')


def beside(*cells: str) -> str:
  """'87.28 / 0.3776'; '–' if there is neither."""
  return '–' if set(cells) == {'–'} else ' / '.join(cells)


def count(value: float | None, lacking: str = '–') -> str:
  """'1,234', or what stands where there is none."""
  return lacking if value is None else f'{value:,.0f}'

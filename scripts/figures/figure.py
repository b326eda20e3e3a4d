"""What all figures have in common: two panels, a table, and what is missing."""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes

from experiments.results import Result
from scripts import markdown
from scripts.figures.arms import Arm, Metric, Rows, seeds_text

_CONFIGS = pathlib.Path(__file__).parent.parent.parent / 'experiments/configs'
GRAY = '#555555'
# The cells below it go on from there: whole commands make tables too wide.
COMMAND = 'command: `python -m experiments.sweep` …'


class Figure:
  """A picture, the paper's panel left and ours right, and a Markdown table.

  Attributes:
    title: of the picture.
    configs: without whose rows there is nothing of ours to draw.
    seeds: how many the command for missing rows asks for.
    titles: of the two panels.
  """

  title: str
  configs: tuple[str, ...]
  seeds = 3
  titles: tuple[str, str] = ('the paper', 'ours, :{variant}')

  def draw_left(self, axes: Axes, rows: Rows) -> None:
    """The left panel: the paper's, unless a figure is ours alone."""
    del rows
    self.draw_paper(axes)

  def draw_paper(self, axes: Axes) -> None:
    """What the paper shows."""
    raise NotImplementedError

  def draw_ours(self, axes: Axes, rows: Rows) -> None:
    """The right panel; there are rows of at least one of `configs`."""
    raise NotImplementedError

  def table(self, rows: Rows, variant: str) -> str:
    """The numbers, as Markdown."""
    raise NotImplementedError

  def has_rows(self, rows: Rows) -> bool:
    """Whether there is something of ours."""
    return any(rows.get(config) for config in self.configs)

  def how(self, variant: str) -> str:
    """What makes our rows, to be shown in their place."""
    missing = [config for config in self.configs if not _exists(config)]
    if missing:
      return f'No rows yet: the config {missing[0]}\nis not built yet.'
    commands = '\n'.join(
      command(config, variant, self.seeds).replace(' --config', '\n  --config')
      for config in self.configs
    )
    return f'No rows yet. These commands make them:\n\n{commands}'


def command(config: str, variant: str, seeds: int) -> str:
  """What makes the rows of a config."""
  return f'python -m experiments.sweep {_flags(config, variant, seeds)}'


def _flags(config: str, variant: str, seeds: int) -> str:
  return f'--config={config}:{variant} --seeds={seeds}'


def hours_table(rows: Rows, variant: str) -> str:
  """What the rows cost: hours of all runs of a config, one after another."""
  lines = []
  total, count = 0.0, 0
  for config, runs in rows.items():
    seconds = sum(run.rows[-1]['seconds'] for run in runs if run.rows)
    total, count = total + seconds, count + len(runs)
    lines.append(
      [
        f'`{config}`',
        str(len(runs)),
        f'{seconds / 3_600:.2f}',
        ', '.join(sorted({str(run.run['commit'])[:12] for run in runs})),
        command_cell(config, variant, runs),
      ]
    )
  lines.append(['all', str(count), f'{total / 3_600:.2f}', '', ''])
  return markdown.table(['config', 'runs', 'hours', 'commit', COMMAND], lines)


def command_cell(
  config: str, variant: str, runs: Sequence[Result], seeds: int = 3
) -> str:
  """The command of an arm in a table, or that there is none yet.

  Args:
    config: whose runs they are.
    variant: of it.
    runs: those that there are.
    seeds: how many to ask for if there are none.
  """
  if not runs and not _exists(config):
    return f'`{config}`, not built yet'
  if runs:  # Of another config's, perhaps.
    config = runs[0].run['experiment']
  seeds = max((run.run['seed'] + 1 for run in runs), default=seeds)
  return f'`{_flags(config, variant, seeds)}`'


def gain_cell(
  metric: Metric,
  runs: Sequence[Result],
  who: int | str,
  baseline: Arm,
  rows: Rows,
) -> str:
  """'+0.0266 ± 0.0067': how much better than a baseline, seed for seed."""
  theirs = baseline.runs(rows)
  return metric.text(metric.gains(runs, who, theirs, baseline.who), sign='+')


def gain_header(metric: Metric) -> str:
  """What stands above it."""
  return f'better than the baseline, seed for seed: {metric.short}'


def count_cell(runs: Sequence[Result]) -> str:
  """'3', or '3 (1 dirty)' with what was allowed when they were collected.

  Those that are unfinished have no end to count in the other cells.
  """
  marks = [mark for run in runs for mark in run.run['marked']]
  notes = [f'{marks.count(mark)} {mark}' for mark in sorted(set(marks))]
  return f'{len(runs)} ({", ".join(notes)})' if notes else str(len(runs))


def draw_reference(axes: Axes, arm: Arm, metric: Metric, rows: Rows) -> None:
  """The end of another arm as a line across, to be named by a legend."""
  values = metric.ends(arm.runs(rows), arm.who)
  if not values:
    return
  axes.axhspan(
    min(values), max(values), color=arm.color, alpha=0.1, linewidth=0
  )
  axes.axhline(
    statistics.fmean(values),
    color=arm.color,
    linewidth=1,
    linestyle=arm.line,
    label=f'{arm.label} ({seeds_text(len(values))})',
  )


def mark_step(axes: Axes, step: float, text: str, height: float) -> None:
  """A dotted line up at a step, and what it is, at a share of the height."""
  axes.axvline(step, color=GRAY, linewidth=0.8, linestyle=':')
  axes.annotate(
    text,
    (step, height),
    xycoords=('data', 'axes fraction'),
    xytext=(3, 0),
    textcoords='offset points',
    fontsize=7.5,
    color=GRAY,
  )


def _exists(config: str) -> bool:
  return (_CONFIGS / f'{config}.py').exists()

"""Stale gradients against stale predictions: the end of training over delay."""

from __future__ import annotations

import statistics

from matplotlib.axes import Axes

from experiments.results import Result
from scripts import markdown
from scripts.figures.arms import (
  LM_ALONE,
  LM_CODISTILL,
  LM_NO_PEERS,
  LOSS,
  MEMBERS,
  Rows,
  one_a_seed,
  seeds_text,
)
from scripts.figures.figure import (
  COMMAND,
  Figure,
  command_cell,
  count_cell,
  draw_reference,
  gain_cell,
  gain_header,
)

_CONFIG = 'staleness_contrast'
# What a point of the sweep may set, and a run with any other key is not one.
_KEYS = {
  'codistill.members',
  'codistill.exchange',
  'codistill.burn_in_steps',
  'codistill.delay_steps',
  'diversity.partition',
  'num_async_workers',
  'schedule.constant.rate',
}
_TEACHERS = 'stale teachers'
_LOOKS = {
  _TEACHERS: ('#D55E00', 'o', '-'),
  'stale gradients': ('#0072B2', 's', '-'),
  'stale gradients, a quarter of the rate': ('#56B4E9', 's', '--'),
}
# Runs by kind and by how many updates old what they use is.
Points = dict[str, dict[int, list[Result]]]


class Contrast(Figure):
  """Curves of the most delayed, and every delay at the end."""

  configs = (_CONFIG,)
  seeds = 1
  titles = ('ours, :{variant}, the most delayed', 'ours, :{variant}')

  def __init__(self, title: str):
    """Takes the picture's title; the paper has no such figure."""
    self.title = title

  def has_rows(self, rows: Rows) -> bool:
    """Whether a run with a delay got to its end."""
    return bool(_points(rows))

  def draw_left(self, axes: Axes, rows: Rows) -> None:
    """Learning curves at the longest delay that there is of each kind."""
    for kind, points in _points(rows).items():
      color, _, line = _LOOKS[kind]
      delay, runs = max(points.items())
      mean = zip(*LOSS.mean_curve(runs, MEMBERS), strict=True)
      axes.plot(*mean, line, color=color, label=f'{kind}, {delay} updates')
    for arm in (LM_ALONE, LM_CODISTILL):
      if mean := LOSS.mean_curve(arm.runs(rows), MEMBERS):
        style = {'color': arm.color, 'linewidth': 0.8, 'label': arm.label}
        line = '-.' if arm is LM_CODISTILL else '-'
        axes.plot(*zip(*mean, strict=True), line, **style)
    axes.set(xlabel='step (updates)', ylabel=LOSS.label)
    if axes.lines:
      # What does not learn at all would flatten the rest.
      low = min(min(line.get_ydata()) for line in axes.lines)
      axes.set_ylim(low - 0.1, low + 2.5)
      axes.legend()

  def draw_ours(self, axes: Axes, rows: Rows) -> None:
    """The end over the delay, a line a kind; across, what has none."""
    for kind, points in _points(rows).items():
      color, marker, line = _LOOKS[kind]
      delays = sorted(points)
      ends = [LOSS.ends(points[delay], MEMBERS) for delay in delays]
      axes.plot(
        delays,
        [statistics.fmean(values) for values in ends],
        line,
        marker=marker,
        color=color,
        label=f'{kind} ({seeds_text(min(map(len, ends)))})',
      )
      axes.fill_between(
        delays,
        [min(values) for values in ends],
        [max(values) for values in ends],
        color=color,
        alpha=0.18,
        linewidth=0,
      )
    for arm in (LM_ALONE, LM_NO_PEERS):
      draw_reference(axes, arm, LOSS, rows)
    delays = sorted({d for points in _points(rows).values() for d in points})
    axes.set(
      xscale='log',
      xlabel='delay (updates)',
      ylabel=f'{LOSS.label}, at the end',
    )
    axes.set_xticks(delays, [f'{delay:,}' for delay in delays])
    axes.minorticks_off()
    axes.legend()

  def table(self, rows: Rows, variant: str) -> str:
    """A line a kind and delay."""
    baseline = LM_ALONE.runs(rows)
    lines = [
      [
        kind,
        f'{delay:,}',
        LOSS.text(LOSS.ends(runs, MEMBERS)),
        gain_cell(LOSS, runs, MEMBERS, LM_ALONE, rows),
        _pace(runs),
        count_cell(runs),
        command_cell(_CONFIG, variant, runs),
      ]
      for kind, points in _points(rows).items()
      for delay, runs in sorted(points.items())
    ]
    if lines and baseline:
      cells = [LOSS.text(LOSS.ends(baseline, MEMBERS)), '–', _pace(baseline)]
      count = count_cell(baseline)
      made_by = command_cell('lm_sync', variant, baseline)
      lines.insert(0, [LM_ALONE.label, '0', *cells, count, made_by])
    header = [
      'what is stale',
      'delay (updates)',
      LOSS.short,
      gain_header(LOSS),
      'learning rate',
      'runs',
      COMMAND,
    ]
    return markdown.table(header, lines) if lines else ''


def _pace(runs: list[Result]) -> str:
  rates = {run.run['config']['schedule']['constant']['rate'] for run in runs}
  return ', '.join(f'{rate:g}' for rate in sorted(rates))


def _points(rows: Rows) -> Points:
  """Runs that got to their end, by kind and delay."""
  points: Points = {kind: {} for kind in _LOOKS}
  for run in rows.get(_CONFIG, ()):
    if not set(run.point) <= _KEYS or not LOSS.ends([run], MEMBERS):
      continue
    config = run.run['config']
    if config['codistill']['exchange'] == 'none':
      delay = config['num_async_workers'] - 1
      slow = 'schedule.constant.rate' in run.point
      kind = list(_LOOKS)[2 if slow else 1]
    else:
      kind, delay = _TEACHERS, config['codistill']['delay_steps'] + 1
    points[kind].setdefault(delay, []).append(run)
  return {
    kind: {delay: one_a_seed(runs) for delay, runs in found.items()}
    for kind, found in points.items()
    if found
  }

"""How stale may a peer be: ours on images, beside the paper's Figure 4."""

from __future__ import annotations

import statistics

from matplotlib.axes import Axes

from experiments import results
from experiments.results import Result
from scripts import markdown
from scripts.figures.arms import (
  CODISTILL,
  HALF_OF_THE_DATA,
  LM_CODISTILL,
  LM_RELOAD_100,
  LM_RELOAD_250,
  SYNC,
  Rows,
  one_a_seed,
  seeds_text,
)
from scripts.figures.curves import BesideCurves
from scripts.figures.figure import (
  COMMAND,
  command_cell,
  count_cell,
  draw_reference,
  gain_cell,
  gain_header,
)

_LOOKS = {
  'reload interval': ('reloaded every k updates', 'o', '-'),
  'delay': ('reloaded every 10, seen d later', 's', '--'),
}
# What a point of the sweep may set, and a run with any other key is not one.
_KEYS = {
  'codistill.reload_interval_steps',
  'codistill.delay_steps',
  'codistill.exchange',
}
Points = dict[str, list[Result]]


class Staleness(BesideCurves):
  """The end of training over the mean age of the peers' weights."""

  configs = ('imagenet_staleness',)

  def has_rows(self, rows: Rows) -> bool:
    """Whether a run with peers got to its end."""
    points = _points(rows)
    return any(
      self._metrics[0].whole(runs, 0)
      for axis in _LOOKS
      for runs in points[axis].values()
    )

  def draw_ours(self, axes: Axes, rows: Rows) -> None:
    """Intervals and delays, each as a line; dashed, what has no peers."""
    metric = self._metrics[0]
    points = _points(rows)
    color = CODISTILL.color  # What they all are.
    for axis, (label, marker, line) in _LOOKS.items():
      found = sorted(
        (runs[0].run['mean_peer_age'], metric.ends(runs, 0), name)
        for name, runs in points[axis].items()
        if metric.ends(runs, 0)
      )
      if not found:
        continue
      x, values, names = zip(*found, strict=True)
      y = [statistics.fmean(ends) for ends in values]
      fewest = seeds_text(min(map(len, values)))
      axes.plot(
        x,
        y,
        line,
        marker=marker,
        color=color,
        markerfacecolor='white' if axis == 'delay' else color,
        label=f'{label} ({fewest})',
      )
      axes.fill_between(
        x,
        [min(ends) for ends in values],
        [max(ends) for ends in values],
        color=color,
        alpha=0.18,
        linewidth=0,
      )
      for *where, name in zip(x, y, names, strict=True):
        axes.annotate(
          name.rpartition(' ')[2],
          where,
          xytext=(0, -14 if axis == 'delay' else 7),
          ha='center',
          textcoords='offset points',
          fontsize=7.5,
          color=color,
        )
    for arm in (SYNC, HALF_OF_THE_DATA):
      draw_reference(axes, arm, metric, rows)
    axes.set(
      xlabel='mean age of the peers’ weights (updates); at the points: k, d',
      ylabel=f'{metric.label}, at the end',
    )
    axes.legend()

  def table(self, rows: Rows, variant: str) -> str:
    """A line a point."""
    paper = {
      f'reload {interval}': self._paper.paper_curve(arm)[-1][1]
      for interval, arm in (
        (50, LM_CODISTILL),
        (100, LM_RELOAD_100),
        (250, LM_RELOAD_250),
      )
    }
    lines = []
    sync = SYNC.runs(rows)
    for name, runs in [
      (f'{SYNC.label}, all of the data', sync),
      *(item for points in _points(rows).values() for item in points.items()),
    ]:
      if not runs:
        continue
      age = runs[0].run['mean_peer_age']
      lines.append(
        [
          name,
          '–' if age is None else f'{age:.1f}',
          *(metric.text(metric.ends(runs, 0)) for metric in self._metrics),
          '–'
          if runs is sync
          else gain_cell(self._metrics[0], runs, 0, SYNC, rows),
          f'{paper[name]:g}' if name in paper else '–',
          count_cell(runs),
          command_cell(runs[0].run['experiment'], variant, runs),
        ]
      )
    header = [
      'peers',
      'mean age (updates)',
      *(metric.short for metric in self._metrics),
      gain_header(self._metrics[0]),
      'paper, language model: at the end (nats)',
      'runs',
      COMMAND,
    ]
    return markdown.table(header, lines) if lines else ''


def _points(rows: Rows) -> dict[str, Points]:
  """The sweep's runs by axis and by name of the point."""
  axes: dict[str, Points] = {'reload interval': {}, 'delay': {}, 'no peers': {}}
  for result in rows.get('imagenet_staleness', ()):
    if not set(result.point) <= _KEYS:
      continue
    codistill = result.run['config']['codistill']
    name = f'reload {codistill["reload_interval_steps"]}'
    axis = 'reload interval'
    if codistill['exchange'] == 'none':
      axis, name = 'no peers', HALF_OF_THE_DATA.label
    elif codistill['delay_steps']:
      axis, name = 'delay', f'{name}, delay {codistill["delay_steps"]}'
    axes[axis].setdefault(name, []).append(result)
  return {
    axis: dict(
      (name, one_a_seed(points[name]))
      for name in sorted(points, key=results.natural)
    )
    for axis, points in axes.items()
  }

"""Averaged weights and falling rates beside peers: what costs nothing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from matplotlib.axes import Axes

from experiments.results import Result
from scripts import markdown
from scripts.figures.arms import (
  ANY,
  LM_CODISTILL,
  LM_ENSEMBLE,
  LOSS,
  MEMBERS,
  Arm,
  Metric,
  Rows,
)
from scripts.figures.figure import COMMAND, Figure, command_cell, count_cell

_CONFIG = 'lm_average'
AVERAGE_LOSS = Metric(
  'average_task_loss',
  LOSS.label,
  f'averaged: {LOSS.short}',
  LOSS.scale,
  LOSS.best,
  LOSS.digits,
)
_APART = {
  'codistill.exchange': 'none',
  'codistill.burn_in_steps': ANY,
  'diversity.partition': 'same',
}
_FALLING = {'schedule.name': 'warmup_cosine'}
_TWICE = {'schedule.warmup_cosine.peak_rate': ANY}
# How they are trained; by whom: colour as in other figures.
_TRAINED: Mapping[str, Arm] = {
  label: Arm(label, color, config=_CONFIG, point=point, who=MEMBERS)
  for label, color, point in (
    ('alone', '#000000', _APART),
    ('alone, rate falls', '#000000', _APART | _FALLING),
    ('alone, twice the rate falls', '#000000', _APART | _FALLING | _TWICE),
    ('codistilled', '#D55E00', {}),
    ('codistilled, rate falls', '#D55E00', _FALLING),
    (
      'codistilled, averages teach',
      '#D55E00',
      {'codistill.publish_average': True},
    ),
  )
}
# Runs of other configs that average, too, are not made again.
_ELSEWHERE = {'alone': LM_ENSEMBLE, 'codistilled': LM_CODISTILL}
_KINDS = ((LOSS, 'o', 'weights'), (AVERAGE_LOSS, 'D', 'averaged weights'))


class Average(Figure):
  """Ends of one network and of ensembles, by weights and by their averages."""

  configs = (_CONFIG,)
  titles = (
    'ours, :{variant}, one network (mean of the members)',
    'ours, :{variant}, ensemble of two',
  )

  def __init__(self, title: str):
    """Takes the picture's title; the paper has no such figure."""
    self.title = title

  def has_rows(self, rows: Rows) -> bool:
    """Whether networks alone and codistilled ones got to their end."""
    return all(_runs(rows, name) for name in ('alone', 'codistilled'))

  def draw_left(self, axes: Axes, rows: Rows) -> None:
    """A line a way to train, a dot a seed."""
    _draw(axes, rows, MEMBERS)
    axes.set_yticks(range(len(_TRAINED)), list(_TRAINED))
    axes.legend()

  def draw_ours(self, axes: Axes, rows: Rows) -> None:
    """Likewise; its lines are named at the left."""
    _draw(axes, rows, 'ensemble')
    axes.set_yticks(range(len(_TRAINED)), [''] * len(_TRAINED))

  def table(self, rows: Rows, variant: str) -> str:
    """A line a way to train."""
    alone = _runs(rows, 'alone')
    lines = []
    for name in _TRAINED:
      runs = _runs(rows, name)
      lines.append(
        [
          name,
          *(one.text(one.ends(runs, MEMBERS)) for one, _, _ in _KINDS),
          *(one.text(one.ends(runs, 'ensemble')) for one, _, _ in _KINDS),
          LOSS.text(LOSS.gains(runs, MEMBERS, alone, MEMBERS), sign='+'),
          count_cell(runs),
          command_cell(_CONFIG, variant, runs),
        ]
      )
    header = [
      'trained',
      f'one, weights: {LOSS.short}',
      f'one, averaged: {LOSS.short}',
      f'ensemble, weights: {LOSS.short}',
      f'ensemble, averaged: {LOSS.short}',
      'weights gain over alone, seed for seed',
      'runs',
      COMMAND,
    ]
    return markdown.table(header, lines)


def _runs(rows: Rows, name: str) -> list[Result]:
  runs = _TRAINED[name].runs(rows)
  if not runs and name in _ELSEWHERE:
    runs = _ELSEWHERE[name].runs(rows)
  return AVERAGE_LOSS.whole(runs, MEMBERS)


def _draw(axes: Axes, rows: Rows, who: str) -> None:
  for place, (name, arm) in enumerate(_TRAINED.items()):
    for metric, marker, label in _KINDS:
      ends = metric.ends(_runs(rows, name), who)
      if not ends:
        continue
      height = place + (0.15 if metric is AVERAGE_LOSS else -0.15)
      axes.plot(
        *(ends, [height] * len(ends), marker),
        color=arm.color,
        markerfacecolor='none' if metric is AVERAGE_LOSS else arm.color,
        markersize=5,
        label=label if not place else None,
      )
      axes.vlines(
        statistics.fmean(ends), height - 0.13, height + 0.13, arm.color
      )
  axes.set(xlabel=LOSS.label, ylim=(len(_TRAINED) - 0.5, -0.5))

"""One budget: one network on images, or two for half of the steps."""

from __future__ import annotations

import statistics

from matplotlib.axes import Axes

from experiments.results import Result
from scripts import markdown
from scripts.figures.arms import (
  EQUAL_DOUBLE,
  EQUAL_ENSEMBLE,
  EQUAL_LESS_DECAY,
  EQUAL_ONE,
  EQUAL_OWN,
  EQUAL_SAME,
  EQUAL_SYNC,
  LOSS,
  TOP_1,
  Arm,
  Rows,
)
from scripts.figures.cost import curve, draw_curves, forward_passes, trained_on
from scripts.figures.figure import (
  COMMAND,
  Figure,
  command_cell,
  count_cell,
  gain_cell,
  gain_header,
)

_DRAWN = (
  EQUAL_SYNC,
  EQUAL_DOUBLE,
  EQUAL_SAME,
  EQUAL_LESS_DECAY,
  EQUAL_OWN,
  EQUAL_ENSEMBLE,
)
# Of the steps: from there on all is in sight, late enough for curves to differ.
_LATE = 0.5


class HalfTheSteps(Figure):
  """The question of Sodhani et al. (2020): is codistillation worth its cost?"""

  configs = ('imagenet_equal_compute',)
  titles = ('ours, :{variant}, over images', 'ours, :{variant}, over computing')

  def __init__(self, title: str):
    """Takes the picture's title; the paper has no such figure."""
    self.title = title

  def has_rows(self, rows: Rows) -> bool:
    """Whether two that codistil have got to their end."""
    return bool(curve(EQUAL_SAME, rows, TOP_1))

  def draw_left(self, axes: Axes, rows: Rows) -> None:
    """Over images that all members together have trained on."""
    _draw(axes, rows, trained_on)
    axes.set_xlabel('images trained on, all members (M)')

  def draw_ours(self, axes: Axes, rows: Rows) -> None:
    """The same over forward passes."""
    _draw(axes, rows, forward_passes)
    axes.set_xlabel('forward passes of an image, all members and teachers (M)')

  def table(self, rows: Rows, variant: str) -> str:
    """A line a way to spend the budget."""
    lines = []
    for arm in (*_DRAWN, EQUAL_ONE):
      runs = TOP_1.whole(arm.runs(rows), arm.who)
      lines.append(
        [
          arm.label,
          '2' if arm.who == 'ensemble' else '1',
          *(_spent(runs[0], arm) if runs else ['–'] * 3),
          *(one.text(one.ends(runs, arm.who)) for one in (TOP_1, LOSS)),
          _both(runs, arm),
          '–'
          if arm is EQUAL_SYNC
          else gain_cell(TOP_1, runs, arm.who, EQUAL_SYNC, rows),
          count_cell(runs),
          command_cell(arm.config, variant, runs),
        ]
      )
    header = [
      'what the budget buys',
      'networks served',
      'steps of each',
      'images trained on (M)',
      'forward passes (M)',
      TOP_1.short,
      LOSS.short,
      f'mean of both members: {TOP_1.short}',
      gain_header(TOP_1),
      'runs',
      COMMAND,
    ]
    return markdown.table(header, lines)


def _draw(axes: Axes, rows: Rows, unit) -> None:
  draw_curves(
    axes,
    rows,
    _DRAWN,
    lambda run, step: unit(run, step) / 1e6,
    TOP_1,
    early=_LATE,
  )
  low, high = axes.get_ylim()
  axes.set_ylim(low, high + 0.2 * (high - low))  # For the legend.


def _spent(run: Result, arm: Arm) -> list[str]:
  """Steps, and millions of images and of forward passes."""
  step = run.rows[-1]['step']
  # One of two that never meet could have been alone.
  unit = 1e6 * (run.run['config']['codistill']['members'] ** (arm is EQUAL_ONE))
  return [
    f'{step:,}',
    f'{trained_on(run, step) / unit:.2f}',
    f'{forward_passes(run, step) / unit:.2f}',
  ]


def _both(runs: list[Result], arm: Arm) -> str:
  """The first member may be the luckier one: of pairs, the mean."""
  means = [
    statistics.fmean(TOP_1.ends([run], 0) + TOP_1.ends([run], 1))
    for run in runs
    if TOP_1.ends([run], 1)
  ]
  return TOP_1.text(means) if arm.who == 0 else '–'

"""A student of a frozen pair: what it learns from, and whether that helps."""

from __future__ import annotations

from matplotlib.axes import Axes

from scripts import markdown
from scripts.figures.arms import (
  LOSS,
  STUDENT_ALONE,
  SYNC,
  TOP_1,
  TRANSFER,
  Rows,
)
from scripts.figures.cost import curve, draw_curves, total_steps
from scripts.figures.figure import (
  COMMAND,
  Figure,
  command_cell,
  count_cell,
  draw_reference,
  gain_cell,
  gain_header,
)

_ARMS = (STUDENT_ALONE, *TRANSFER)
# Of the steps: from there on all is in sight.
_LATE = 0.5


class Transfer(Figure):
  """Two phases on images, by the data of the second."""

  configs = ('imagenet_two_phase',)
  titles = (
    'ours, :{variant}, all steps counted',
    'ours, :{variant}, at the end',
  )

  def __init__(self, title: str):
    """Takes the picture's title; the paper has no such figure."""
    self.title = title

  def has_rows(self, rows: Rows) -> bool:
    """Whether a student of a frozen pair has got to its end."""
    return any(curve(arm, rows, TOP_1) for arm in TRANSFER)

  def draw_left(self, axes: Axes, rows: Rows) -> None:
    """A student's steps come after its teachers'."""
    draw_curves(axes, rows, (SYNC, *_ARMS), total_steps, TOP_1, early=_LATE)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.25 * (high - low))  # For the legend.
    axes.set_xlabel('steps, the teachers’ before')

  def draw_ours(self, axes: Axes, rows: Rows) -> None:
    """A dot a seed, and the student alone as a line across."""
    draw_reference(axes, STUDENT_ALONE, TOP_1, rows)
    for place, arm in enumerate(TRANSFER):
      ends = TOP_1.ends(arm.runs(rows), arm.who)
      axes.plot([place] * len(ends), ends, 'o', color=arm.color)
    axes.set_xticks(
      range(len(TRANSFER)),
      [arm.label.replace(', ', ',\n') for arm in TRANSFER],
      fontsize=7.5,
    )
    axes.set(xlim=(-0.5, len(TRANSFER) - 0.5), ylabel=TOP_1.label)
    if TOP_1.ends(STUDENT_ALONE.runs(rows), STUDENT_ALONE.who):
      axes.legend()

  def table(self, rows: Rows, variant: str) -> str:
    """A line a transfer set."""
    lines = []
    for arm in _ARMS:
      runs = TOP_1.whole(arm.runs(rows), arm.who)
      teachers = [
        TOP_1.scale * run.run['teachers']['held_out'][TOP_1.key]
        for run in runs
        if 'teachers' in run.run
      ]
      last = runs[0].rows[-1]['step'] if runs else 0
      lines.append(
        [
          arm.label,
          TOP_1.text(teachers),
          *(one.text(one.ends(runs, arm.who)) for one in (TOP_1, LOSS)),
          *(
            '–'
            if arm is STUDENT_ALONE
            else gain_cell(one, runs, arm.who, STUDENT_ALONE, rows)
            for one in (TOP_1, LOSS)
          ),
          f'{total_steps(runs[0], last):,.0f}' if runs else '–',
          count_cell(runs),
          command_cell(arm.config, variant, runs),
        ]
      )
    header = [
      'the student learns from',
      f'its teachers, mean of two: {TOP_1.short}',
      TOP_1.short,
      LOSS.short,
      gain_header(TOP_1),
      gain_header(LOSS),
      'all steps',
      'runs',
      COMMAND,
    ]
    return markdown.table(header, lines)

"""How precise a teacher must be: what students lose, and its bytes."""

from __future__ import annotations

import statistics

from matplotlib.axes import Axes

from experiments.results import Result
from scripts.figures.arms import LOSS, TOP_1, Rows, one_a_seed
from scripts.figures.figure import (
  COMMAND,
  Figure,
  command_cell,
  count_cell,
  markdown,
)
from scripts.figures.topology import megabytes

_ORDER = ('float32', 'bfloat16', 'int8')
_COLORS = ('#000000', '#0072B2', '#D55E00')
Key = tuple[str, str]


class TeacherPrecision(Figure):
  """Loss at the end, and bytes of all publications, for each precision."""

  configs = ('teacher_precision',)
  titles = ('ours, :{variant}', 'ours, :{variant}')

  def __init__(self, title: str):
    """Takes the picture's title; the paper has no such figure."""
    self.title = title

  def draw_left(self, axes: Axes, rows: Rows) -> None:
    """A dot a member and seed, a bar for their mean."""
    for place, (key, runs) in enumerate(_points(rows).items()):
      values = LOSS.ends(runs, 0) + LOSS.ends(runs, 1)
      color = _color(key)
      axes.plot(
        [place] * len(values), values, 'o', color=color, alpha=0.5, ms=4
      )
      mean = statistics.fmean(values)
      axes.hlines(mean, place - 0.3, place + 0.3, color, linewidth=2)
    self._name(axes, rows, f'{LOSS.label}, at the end')

  def draw_ours(self, axes: Axes, rows: Rows) -> None:
    """Megabytes that a member published in a whole run."""
    for place, (key, runs) in enumerate(_points(rows).items()):
      value = float(megabytes(runs, 'publish', 2))
      axes.bar(place, value, 0.6, color=_color(key))
      axes.annotate(
        f'{value:g}',
        (place, value),
        ha='center',
        va='bottom',
        fontsize=8,
      )
    self._name(axes, rows, 'published by a member, in all (MB)')

  def _name(self, axes: Axes, rows: Rows, label: str) -> None:
    points = _points(rows)
    axes.set_xticks(
      range(len(points)),
      [
        f'{published}\n{held}\n×{len(r)}'
        for (published, held), r in points.items()
      ],
      fontsize=8,
    )
    axes.set(xlabel='published in, held in; seeds', ylabel=label)
    axes.grid(axis='x', visible=False)

  def table(self, rows: Rows, variant: str) -> str:
    """A line a pair of precisions."""
    lines = [
      [
        published,
        held,
        LOSS.text(LOSS.ends(runs, 0) + LOSS.ends(runs, 1)),
        TOP_1.text(TOP_1.ends(runs, 0) + TOP_1.ends(runs, 1)),
        LOSS.text(LOSS.ends(runs, 'ensemble')),
        megabytes(runs, 'publish', 2),
        count_cell(runs),
        command_cell('teacher_precision', variant, runs),
      ]
      for (published, held), runs in _points(rows).items()
    ]
    header = [
      'published in',
      'held in',
      f'a member: {LOSS.short}',
      f'a member: {TOP_1.short}',
      f'ensemble: {LOSS.short}',
      'published, a member (MB)',
      'runs',
      COMMAND,
    ]
    return markdown(header, lines) if lines else ''


def _color(key: Key) -> str:
  return _COLORS[_ORDER.index(key[0])]


def _points(rows: Rows) -> dict[Key, list[Result]]:
  """Finished runs by what is published and what is held."""
  points: dict[Key, list[Result]] = {}
  for run in rows.get('teacher_precision', ()):
    if set(run.point) <= {
      'codistill.publish_precision',
      'codistill.teacher_precision',
    } and LOSS.ends([run], 0):
      codistill = run.run['config']['codistill']
      key = (codistill['publish_precision'], codistill['teacher_precision'])
      points.setdefault(key, []).append(run)

  def place(key: Key) -> tuple[int, int]:
    return _ORDER.index(key[0]), _ORDER.index(key[1])

  return {key: one_a_seed(points[key]) for key in sorted(points, key=place)}

"""How precise a teacher must be: what students lose, and what it costs."""

from __future__ import annotations

import json
import pathlib
import statistics

from matplotlib.axes import Axes

from experiments.results import Result
from scripts import markdown
from scripts.figures.arms import LOSS, TOP_1, Rows, one_a_seed
from scripts.figures.figure import (
  COMMAND,
  GRAY,
  Figure,
  command_cell,
  count_cell,
)
from scripts.figures.topology import megabytes

_ORDER = ('float32', 'bfloat16', 'int8')
_COLORS = ('#000000', '#0072B2', '#D55E00')
_BENCHMARK = (
  pathlib.Path(__file__).parent.parent.parent
  / 'experiments/results/benchmark.json'
)
# What is shown: the names that the benchmark gives it.
_COSTS = {
  'bytes published\nand held': 'published and held, {} (MB)',
  'memory of\nan update': 'memory, teacher in {} (MB)',
  'time of\nan update': 'time, teacher in {} (ms)',
}
Key = tuple[str, str]


class TeacherPrecision(Figure):
  """Loss at the end, and what a teacher costs, for each precision."""

  configs = ('teacher_precision',)
  titles = ('ours, :{variant}', 'ResNet-18, scripts.benchmark teacher')

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
    points = _points(rows)
    axes.set_xticks(
      range(len(points)),
      [
        f'{published}\n{held}\n×{len(r)}'
        for (published, held), r in points.items()
      ],
      fontsize=8,
    )
    axes.set(
      xlabel='published in, held in; seeds', ylabel=f'{LOSS.label}, at the end'
    )
    axes.grid(axis='x', visible=False)

  def draw_ours(self, axes: Axes, rows: Rows) -> None:
    """Bytes, memory and time of an update, as measured by the benchmark."""
    del rows
    for place, names in enumerate(_COSTS.values()):
      full = _measured(names.format('float32'))
      for shift, (name, color) in enumerate(zip(_ORDER, _COLORS, strict=True)):
        # Round by round: what else the machine did met all of a round alike.
        shares = [
          100 * mine / theirs
          for mine, theirs in zip(
            _measured(names.format(name)), full, strict=True
          )
        ]
        median = statistics.median(shares)
        at = place + 0.27 * (shift - 1)
        axes.bar(at, median, 0.25, color=color, label=None if place else name)
        low, high = statistics.quantiles(shares, n=4)[::2]
        axes.vlines(at, low, high, color=GRAY, linewidth=1)
        axes.annotate(
          f'{median:.0f}',
          (at, max(median, high)),
          ha='center',
          va='bottom',
          fontsize=8,
        )
    axes.set_xticks(range(len(_COSTS)), _COSTS, fontsize=8)
    axes.set(xlabel='', ylabel='of a teacher in float32 (%)')
    axes.set_ylim(0, 145)
    axes.grid(axis='x', visible=False)
    axes.legend(loc='upper center', ncols=3)

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
    return markdown.table(header, lines) if lines else ''


def _measured(name: str) -> list[float]:
  """Values of the benchmark; twice where there is one, for quartiles."""
  measured = json.loads(_BENCHMARK.read_text(encoding='utf-8'))
  found = measured['teacher']['values'][name]
  return found * 2 if len(found) == 1 else found


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

"""Students of one teacher at several ages: when does it stop to help?"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes

from experiments.results import Result
from scripts import markdown
from scripts.figures.arms import ANY, LOSS, TOP_1, Arm, Metric, Rows, one_a_seed
from scripts.figures.figure import (
  COMMAND,
  Figure,
  command_cell,
  count_cell,
  draw_reference,
  gain_cell,
  gain_header,
)

_CONFIG = 'teacher_fit'
_AGE = 'two_phase.num_steps'
_ALONE = Arm(
  'student without a teacher',
  '#000000',
  config=_CONFIG,
  point={'codistill.exchange': 'none', 'codistill.burn_in_steps': ANY},
)
# What of a teacher, if not its student; colour; label.
_WHO = (
  ('train', '#E69F00', 'teacher, on its training set'),
  ('held_out', '#0072B2', 'teacher'),
  ('', '#D55E00', 'student'),
)


class TeacherFit(Figure):
  """How well the teacher knows its training set, and what its student gains."""

  configs = (_CONFIG,)
  titles = ('ours, :{variant}, top-1', 'ours, :{variant}, cross-entropy')

  def __init__(self, title: str):
    """Takes the picture's title; the paper has two numbers in words."""
    self.title = title

  def has_rows(self, rows: Rows) -> bool:
    """Whether a student of some teacher got to its end."""
    return bool(_by_age(rows))

  def draw_left(self, axes: Axes, rows: Rows) -> None:
    """Accuracies, the teacher's on what it has learnt from among them."""
    _draw_all(axes, rows, TOP_1, _WHO)

  def draw_ours(self, axes: Axes, rows: Rows) -> None:
    """Cross-entropies on held-out images."""
    _draw_all(axes, rows, LOSS, _WHO[1:])

  def table(self, rows: Rows, variant: str) -> str:
    """A line an age, the youngest first; and the student alone."""
    alone = TOP_1.whole(_ALONE.runs(rows), 0)
    lines = []
    for age, runs in [*_by_age(rows).items(), (None, alone)]:
      lines.append(
        [
          '–' if age is None else f'{age:,}',
          *(
            one.text(_of(runs, what, one))
            for what in ('train', 'held_out')
            for one in (TOP_1, LOSS)
          ),
          *(one.text(one.ends(runs, 0)) for one in (TOP_1, LOSS)),
          *(
            '–' if age is None else gain_cell(one, runs, 0, _ALONE, rows)
            for one in (TOP_1, LOSS)
          ),
          count_cell(runs),
          command_cell(_CONFIG, variant, runs),
        ]
      )
    header = [
      'teacher’s age (steps)',
      f'teacher, its training set: {TOP_1.short}',
      f'teacher, its training set: {LOSS.short}',
      f'teacher: {TOP_1.short}',
      f'teacher: {LOSS.short}',
      f'student: {TOP_1.short}',
      f'student: {LOSS.short}',
      gain_header(TOP_1),
      gain_header(LOSS),
      'runs',
      COMMAND,
    ]
    return markdown.table(header, lines)


def _by_age(rows: Rows) -> dict[int, list[Result]]:
  """Students that got to their end, by their teachers' steps, ascending."""
  found: dict[int, list[Result]] = {}
  for run in TOP_1.whole(rows.get(_CONFIG, ()), 0):
    if run.point.keys() <= {_AGE} and 'teachers' in run.run:
      found.setdefault(run.run['config']['two_phase']['num_steps'], []).append(
        run
      )
  return {age: one_a_seed(found[age]) for age in sorted(found)}


def _of(runs: Sequence[Result], what: str, metric: Metric) -> list[float]:
  """What runs say of their teachers."""
  return [
    metric.scale * run.run['teachers'][what][metric.key]
    for run in runs
    if 'teachers' in run.run
  ]


def _draw_all(
  axes: Axes, rows: Rows, metric: Metric, who: Sequence[tuple[str, str, str]]
) -> None:
  """A dot a seed and a line through the means; the student alone across."""
  ages = _by_age(rows)
  draw_reference(axes, _ALONE, metric, rows)
  for what, color, label in who:
    found = {
      age: _of(runs, what, metric) if what else metric.ends(runs, 0)
      for age, runs in ages.items()
    }
    for age, some in found.items():
      axes.plot([age] * len(some), some, 'o', color=color, markersize=4)
    means = [statistics.fmean(some) for some in found.values()]
    axes.plot(ages.keys(), means, color=color, label=label)
  axes.set_xscale('log')
  axes.set_xticks(list(ages), [f'{age:,}' for age in ages])
  axes.minorticks_off()
  axes.set(xlabel='teacher’s age (steps)', ylabel=metric.label)
  if ages:
    axes.legend()

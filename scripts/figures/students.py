"""On images: one budget spent in several ways, and students of frozen pairs."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from experiments.results import Result
from scripts.figures import arms, panel
from scripts.figures.arms import ANY, STUDENT_ALONE, TRANSFER, Arm
from scripts.figures.cost import (
  curve,
  forward_passes,
  over,
  total_steps,
  trained_on,
)
from scripts.figures.figure import (
  Cells,
  Figure,
  beside,
  count,
  ends,
  gains,
  made_by,
)
from scripts.figures.metric import LOSS, TOP_1, Metric, Rows, grouped
from scripts.figures.panel import Grid, Panel, along

# Of the steps: from there on all is in sight, late enough for curves to differ.
_LATE = 0.5


class HalfTheSteps(Figure):
  """The question of Sodhani et al. (2020): is codistillation worth its cost?"""

  title = 'One budget: one network, or two for half of the steps'
  configs = ('imagenet_equal_compute',)
  drawn = (
    arms.EQUAL_SYNC,
    arms.EQUAL_DOUBLE,
    arms.EQUAL_SAME,
    arms.EQUAL_LESS_DECAY,
    arms.EQUAL_OWN,
    arms.EQUAL_ENSEMBLE,
  )

  def panels(self, rows: Rows) -> Grid:
    if not curve(arms.EQUAL_SAME, rows, TOP_1):
      return []
    units = {
      'images, all members (M)': trained_on,
      'forward passes of an image, all networks (M)': forward_passes,
    }
    return [
      [
        over(rows, self.drawn, unit, xlabel, TOP_1, _LATE)
        for xlabel, unit in units.items()
      ]
    ]

  def lines(self, rows: Rows) -> Iterator[Cells]:
    for arm in (*self.drawn, arms.EQUAL_ONE):
      runs = arm.ended(TOP_1, rows)
      steps, spent = _spent(runs[0], arm) if runs else ('–', '–')
      yield {
        'what the budget buys': arm.label,
        'steps of each': steps,
        'images trained on / forward passes (M)': spent,
        **ends(runs, arm.who, TOP_1, LOSS),
        f'mean of both members: {TOP_1.short}': _both(runs, arm),
        **gains(runs, arm.who, arms.EQUAL_SYNC, rows, TOP_1),
        **made_by(arm.config, runs),
      }


def _spent(run: Result, arm: Arm) -> tuple[str, str]:
  """Steps; millions of images and of forward passes."""
  step, unit = run.rows[-1]['step'], 1e6
  if arm is arms.EQUAL_ONE:  # One of two that never meet could be alone.
    unit *= run.run['config']['codistill']['members']
  images, passes = (of(run, step) / unit for of in (trained_on, forward_passes))
  return f'{step:,}', f'{images:.2f} / {passes:.2f}'


def _both(runs: Sequence[Result], arm: Arm) -> str:
  """The first member may be the luckier one: of pairs, the mean."""
  means = [
    statistics.fmean(TOP_1.ends([run], 0) + TOP_1.ends([run], 1))
    for run in runs
    if TOP_1.ends([run], 1)
  ]
  return TOP_1.text(means) if arm.who == 0 else '–'


class Transfer(Figure):
  """Two phases, by the data of the second."""

  title = 'A student of a frozen pair, by what it learns from'
  configs = ('imagenet_two_phase',)
  drawn = (STUDENT_ALONE, *TRANSFER)

  def panels(self, rows: Rows) -> Grid:
    if not any(curve(arm, rows, TOP_1) for arm in TRANSFER):
      return []
    xlabel = 'steps, those of the teachers included'
    some = (arms.SYNC, *self.drawn)
    steps = over(rows, some, total_steps, xlabel, TOP_1, _LATE)
    dots = [arm.dots(TOP_1, rows) for arm in self.drawn]
    return [[steps, Panel('ours, {}, at the end', dots, TOP_1.label)]]

  def lines(self, rows: Rows) -> Iterator[Cells]:
    for arm in self.drawn:
      runs = arm.ended(TOP_1, rows)
      last = total_steps(runs[0], runs[0].rows[-1]['step']) if runs else None
      taught_by = TOP_1.text(_taught_by(runs, 'held_out', TOP_1))
      yield {
        'the student learns from': arm.label,
        f'its teachers, mean of two: {TOP_1.short}': taught_by,
        **ends(runs, arm.who, TOP_1, LOSS),
        **gains(runs, arm.who, STUDENT_ALONE, rows, TOP_1, LOSS),
        'all steps': count(last),
        **made_by(arm.config, runs),
      }


class TeacherFit(Figure):
  """How well the teacher knows its training set, and what its student gains."""

  title = 'When does a teacher stop to help?'
  configs = ('teacher_fit',)
  alone = Arm(
    'student without a teacher',
    panel.BLACK,
    '--',
    config='teacher_fit',
    point={'codistill.exchange': 'none', 'codistill.burn_in_steps': ANY},
  )
  who = (
    ('teacher, on its training set', 'train', panel.ORANGE),
    ('teacher', 'held_out', panel.BLUE),
    ('student', '', panel.VERMILION),
  )

  def panels(self, rows: Rows) -> Grid:
    if not _by_age(rows):
      return []
    # Not all of the left one is of held-out images.
    left = self._panel(rows, TOP_1, 'top-1', 0, TOP_1.short)
    return [[left, self._panel(rows, LOSS, 'cross-entropy', 1, LOSS.label)]]

  def _panel(
    self, rows: Rows, metric: Metric, name: str, first: int, ylabel: str
  ) -> Panel:
    by_age = _by_age(rows)
    lines = self.alone.level(metric, rows, list(by_age))
    for label, what, color in self.who[first:]:
      points = {
        age: _taught_by(runs, what, metric) if what else metric.ends(runs, 0)
        for age, runs in by_age.items()
      }
      lines += along(label, color, points)
    axis = {'xscale': 'log', 'xticks': list(by_age)}
    xlabel = 'teacher’s age (steps)'
    return Panel(f'ours, {{}}, {name}', lines, xlabel, ylabel, **axis)

  def lines(self, rows: Rows) -> Iterator[Cells]:
    alone = self.alone.ended(TOP_1, rows)
    for age, runs in [*_by_age(rows).items(), (None, alone)]:
      teachers = {
        f'{label}: {TOP_1.short} / {LOSS.short}': beside(
          *(one.text(_taught_by(runs, what, one)) for one in (TOP_1, LOSS))
        )
        for label, what, _ in self.who[:2]
      }
      yield {
        'teacher’s age (steps)': count(age, 'no teacher'),
        **teachers,
        **ends(runs, 0, TOP_1, LOSS, of='student'),
        **gains(runs, 0, self.alone, rows, TOP_1, LOSS),
        **made_by('teacher_fit', runs),
      }


def _by_age(rows: Rows) -> dict[int, list[Result]]:
  """Students that got to their end, by their teachers' steps, ascending."""
  runs = TOP_1.whole(rows.get('teacher_fit', ()), 0)
  return grouped(
    [run for run in runs if 'teachers' in run.run],
    ['two_phase.num_steps'],
    lambda run: run.run['config']['two_phase']['num_steps'],
  )


def _taught_by(
  runs: Sequence[Result], what: str, metric: Metric
) -> list[float]:
  """What runs say of their teachers, on 'train' or 'held_out'."""
  return [
    metric.scale * run.run['teachers'][what][metric.key]
    for run in runs
    if 'teachers' in run.run
  ]

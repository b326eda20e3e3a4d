"""What is compared: a metric of an arm's runs, over steps and at the end.

An arm is a point and who of its runs is looked at: the mean over its members,
one of them, or their ensemble.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from experiments import results
from experiments.errors import UserError
from experiments.results import Result
from experiments.summary import spread
from scripts.compare.points import Comparison, Point

MEMBERS, ENSEMBLE, EACH = 'members', 'ensemble', 'each'
Who = int | str
Curve = list[tuple[int, float]]
# Of an evaluation, and no result of it.
_ABOUT = ('id', 'step', 'member', 'kind', 'examples_seen')


@dataclasses.dataclass(frozen=True)
class Metric:
  """A number of the evaluation rows.

  Attributes:
    key: its name in the rows.
    label: for an axis.
    short: for the head of a table.
    scale: from the rows' unit to that of the label.
    digits: after the point, in tables.
  """

  key: str
  label: str
  short: str
  scale: float = 1.0
  digits: int = 4


_KNOWN = {
  metric.key: metric
  for metric in (
    Metric('task_loss', 'held-out cross-entropy (nats)', 'loss (nats)'),
    Metric('accuracy', 'held-out accuracy (%)', 'accuracy (%)', 100, 2),
    Metric(
      'average_task_loss',
      'held-out cross-entropy (nats), averaged weights',
      'loss, averaged weights (nats)',
    ),
    Metric(
      'average_accuracy',
      'held-out accuracy (%), averaged weights',
      'accuracy, averaged weights (%)',
      100,
      2,
    ),
    Metric('disagreement', 'disagreement (%)', 'disagree (%)', 100, 2),
    Metric('auc', 'area under the ROC curve', 'AUC'),
    Metric('seconds', 'seconds of training', 'seconds', digits=1),
  )
}


@dataclasses.dataclass(frozen=True)
class Arm:
  """A point, and who of its runs.

  Attributes:
    point: it.
    who: MEMBERS, ENSEMBLE or a member's number.
    name: of the point, and of the predictor where there are several.
  """

  point: Point
  who: Who
  name: str

  def curve(self, run: Result, metric: Metric) -> Curve:
    """(step, value) at each evaluation of all that are looked at."""
    return _curve(run, self.who, metric, ('eval', 'final'))

  def ends(self, metric: Metric) -> dict[int, float]:
    """The value at the end of each run that got there, by seed."""
    found = {
      run.run['seed']: _curve(run, self.who, metric, ('final',))
      for run in self.point.runs
    }
    return {seed: curve[-1][1] for seed, curve in found.items() if curve}

  def band(self, metric: Metric) -> list[tuple[int, float, float, float]]:
    """(step, mean, least, greatest) over the runs that got to their end."""
    ends = self.ends(metric)
    curves = [
      dict(self.curve(run, metric))
      for run in self.point.runs
      if run.run['seed'] in ends
    ]
    if not curves:
      return []
    steps = [step for step in curves[0] if all(step in one for one in curves)]
    columns = [(step, [one[step] for one in curves]) for step in steps]
    return [
      (step, statistics.fmean(values), min(values), max(values))
      for step, values in columns
    ]

  def unfinished(self, metric: Metric) -> list[Curve]:
    """The curves of the other runs, as far as they came."""
    ends = self.ends(metric)
    curves = [
      self.curve(run, metric)
      for run in self.point.runs
      if run.run['seed'] not in ends
    ]
    return [curve for curve in curves if curve]


def _curve(
  run: Result, who: Who, metric: Metric, kinds: Sequence[str]
) -> Curve:
  members = run.run['config']['codistill']['members']
  wanted = set(range(members)) if who == MEMBERS else {who}
  by_step: dict[int, dict[Who, float]] = {}
  for row in run.rows:
    # One that diverged has no value, and then there is no mean of all.
    if (
      row['member'] in wanted and row['kind'] in kinds and _has(row, metric.key)
    ):
      at = by_step.setdefault(row['step'], {})
      at[row['member']] = row[metric.key] * metric.scale
  return [
    (step, statistics.fmean(at.values()))
    for step, at in sorted(by_step.items())
    if at.keys() == wanted
  ]


def arms_of(compared: Comparison, who: Who) -> list[Arm]:
  """The arms of a comparison, point by point.

  Raises:
    UserError: if no run has such a member or an ensemble.
  """
  arms = []
  for point in compared.points:
    there = _predictors(point)
    if who == EACH:
      arms += [Arm(point, one, _named(point, one, there)) for one in there]
    elif who == MEMBERS or who in there or not there:
      arms.append(Arm(point, who, point.name))
  if not any(_predictors(arm.point) for arm in arms):
    found = sorted(
      {str(one) for point in compared.points for one in _predictors(point)}
    )
    if found:
      raise UserError(
        f'no run has evaluations of {who!r}; --who can be {MEMBERS}, {EACH}, '
        f'{", ".join(found)}'
      )
    raise UserError(
      'no run has been evaluated yet; wait for the first evaluation, at a '
      'multiple of eval_interval_steps'
    )
  return arms


def _predictors(point: Point) -> list[Who]:
  """Members by number, then the ensemble."""
  found = {row['member'] for run in point.runs for row in run.rows}
  return sorted(found, key=lambda one: (isinstance(one, str), one))


def _named(point: Point, who: Who, there: Sequence[Who]) -> str:
  if len(there) == 1:
    return point.name
  return f'{point.name}, {who if who == ENSEMBLE else f"member {who}"}'


def metric_of(arms: Sequence[Arm], key: str) -> Metric:
  """A metric that some of the arms have.

  Raises:
    UserError: if none has, with those that there are.
  """
  metric = _KNOWN.get(key) or Metric(key, key, key)
  if any(arm.curve(run, metric) for arm in arms for run in arm.point.runs):
    return metric
  rows = [row for arm in arms for run in arm.point.runs for row in run.rows]
  whos = sorted({str(row['member']) for row in rows if _has(row, key)})
  if whos:
    raise UserError(
      f'only rows of {", ".join(whos)} have {key}; add --who={whos[-1]}'
    )
  there = sorted({name for row in rows for name in row if _has(row, name)})
  raise UserError(
    f'no evaluation has the metric {key!r}; there are {", ".join(there)}'
  )


def _has(row: results.Row, key: str) -> bool:
  value = row.get(key)
  return (
    key not in _ABOUT
    and isinstance(value, (int, float))
    and not isinstance(value, bool)
  )


def baseline_of(compared: Comparison, name: str | None) -> Point:
  """What the others are compared with.

  Args:
    compared: with at least one point.
    name: of a point; None for the one that leaves its config as it is, among
      those of the first source, or else the first.

  Raises:
    UserError: if no point has that name.
  """
  points = compared.points
  if name is None:
    own = [one for one in points if one.group == points[0].group]
    return next((one for one in own if one.is_base), points[0])
  for point in points:
    if point.name == name:
      return point
  raise UserError(
    f'there is no point {name!r}; there are '
    f'{", ".join(repr(point.name) for point in points)}'
  )


class Table(NamedTuple):
  """The numbers as texts: the first column and the last are words."""

  header: tuple[str, ...]
  lines: tuple[tuple[str, ...], ...]
  caption: str


def make_table(
  compared: Comparison,
  arms: Sequence[Arm],
  metrics: Sequence[Metric],
  baseline: Point,
) -> Table:
  """A line an arm: its ends, and how far from the baseline's, seed for seed."""
  differs = len(compared.points) > 1
  steps = len({_num_steps(run) for arm in arms for run in arm.point.runs}) > 1
  header = ['run', *(['steps'] if steps else [])]
  for metric in metrics:
    header += [metric.short, *(['difference'] if differs else [])]
  header.append('seeds')
  lines = []
  for arm in arms:
    line = [arm.name]
    if steps:
      counts = sorted({_num_steps(run) for run in arm.point.runs})
      line.append(', '.join(f'{count:,}' for count in counts))
    for metric in metrics:
      line.append(spread([*arm.ends(metric).values()], metric.digits))
      if differs:
        line.append(
          '–'
          if arm.point is baseline
          else spread(
            _differences(arm, arms, baseline, metric), metric.digits, '+'
          )
        )
    lines.append((*line, seeds_cell(arm, metrics[0])))
  return Table(
    tuple(header), tuple(lines), _caption(compared, arms, baseline, differs)
  )


def _differences(
  arm: Arm, arms: Sequence[Arm], baseline: Point, metric: Metric
) -> list[float]:
  """From the baseline's same member, or its first one, with the same seed."""
  theirs = [one for one in arms if one.point is baseline]
  same = [one for one in theirs if one.who == arm.who] or theirs
  there = same[0].ends(metric) if same else {}
  ends = arm.ends(metric)
  return [ends[seed] - there[seed] for seed in ends if seed in there]


def _num_steps(run: Result) -> int:
  return run.run['config']['num_steps']


def seeds_cell(arm: Arm, metric: Metric) -> str:
  """'3', or '2 of 3: 1 diverged': runs that got to their end."""
  ends = arm.ends(metric)
  left = [
    'diverged' if run.run['diverged'] else 'unfinished'
    for run in arm.point.runs
    if run.run['seed'] not in ends
  ]
  if not left:
    return str(len(ends))
  why = [f'{left.count(one)} {one}' for one in dict.fromkeys(left)]
  return f'{len(ends)} of {len(arm.point.runs)}: {", ".join(why)}'


def _caption(
  compared: Comparison, arms: Sequence[Arm], baseline: Point, differs: bool
) -> str:
  who = arms[0].who
  parts = ['held-out examples at the end of training']
  if who == MEMBERS:
    parts.append('mean over members')
  elif all(arm.who == who for arm in arms):
    parts.append(who if who == ENSEMBLE else f'member {who}')
  if any(len(arm.point.runs) > 1 for arm in arms):
    parts.append('mean over seeds ± half the range')
  if differs:
    parts.append(f'difference to {baseline.name}, seed for seed')
  parts += [
    f'{", ".join(others)} and {key} always change together'
    for key, others in compared.together.items()
  ]
  return '; '.join(parts)

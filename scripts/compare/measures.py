"""What is compared: a metric of an arm's runs, and the table of their ends."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import NamedTuple

from experiments.errors import UserError
from experiments.results import Result, Row
from scripts.compare.points import Point
from scripts.figures.metric import (
  AUC,
  AVERAGE_LOSS,
  AVERAGE_TOP_1,
  LOSS,
  MEMBERS,
  TOP_1,
  Metric,
)

ENSEMBLE, EACH = 'ensemble', 'each'
_KNOWN = {
  metric.key: metric
  for metric in (
    *(LOSS, TOP_1, AVERAGE_LOSS, AVERAGE_TOP_1, AUC),
    Metric('disagreement', *2 * ('disagreement (%)',), 100, digits=2),
    Metric('seconds', *2 * ('seconds of training',), digits=1),
  )
}
# Of an evaluation, and no result of it.
_ABOUT = ('id', 'step', 'member', 'kind', 'examples_seen')


class Arm(NamedTuple):
  """A point, and who of its runs: MEMBERS, ENSEMBLE or a member's number."""

  point: Point
  who: int | str
  name: str

  @property
  def runs(self) -> list[Result]:
    """Of all seeds."""
    return self.point.runs


def arms_of(points: Sequence[Point], who: int | str) -> list[Arm]:
  """The arms of a comparison, point by point.

  Raises:
    UserError: if no run has such a member or an ensemble.
  """
  arms, found = [], set()
  for point in points:
    there = {row['member'] for run in point.runs for row in run.rows}
    found |= there
    each = sorted(there, key=lambda one: (isinstance(one, str), one))
    for one in (each or [MEMBERS]) if who == EACH else [who]:
      if who in (EACH, MEMBERS, *there):
        name = f', {_called(one)}' if who == EACH and len(each) > 1 else ''
        arms.append(Arm(point, one, point.name + name))
  if not found:
    raise UserError(
      'no run has been evaluated yet; wait for the first evaluation, at a '
      'multiple of eval_interval_steps'
    )
  if not arms:
    raise UserError(
      f'no run has evaluations of {who!r}; --who can be {MEMBERS}, {EACH}, '
      f'{", ".join(sorted(map(str, found)))}'
    )
  return arms


def _called(who: int | str) -> str:
  if who == MEMBERS:
    return 'mean over members'
  return who if who == ENSEMBLE else f'member {who}'


def metric_of(arms: Sequence[Arm], key: str) -> Metric:
  """A metric that some of the arms have.

  Raises:
    UserError: if none has, with those that there are.
  """
  metric = _KNOWN.get(key) or Metric(key, key, key)
  rows = [row for arm in arms for run in arm.runs for row in run.rows]
  numbers = {name for row in rows for name in row if _has(row, name)}
  if key not in numbers:
    raise UserError(
      f'no evaluation has the metric {key!r}; there are '
      f'{", ".join(sorted(numbers))}'
    )
  if not any(metric.curve(run, arm.who) for arm in arms for run in arm.runs):
    whos = sorted({str(row['member']) for row in rows if _has(row, key)})
    raise UserError(
      f'only rows of {", ".join(whos)} have {key}; add --who={whos[-1]}'
    )
  return metric


def _has(row: Row, key: str) -> bool:
  return key not in _ABOUT and Metric(key, key, key).is_in(row)


def baseline_of(points: Sequence[Point], name: str | None) -> Point:
  """The point of a name, or the first that leaves its config as it is.

  Raises:
    UserError: if no point has that name.
  """
  if name is None:
    own = [one for one in points if one.group == points[0].group]
    return next((one for one in own if one.is_base), points[0])
  by_name = {point.name: point for point in points}
  if name not in by_name:
    there = ', '.join(map(repr, by_name))
    raise UserError(f'there is no point {name!r}; there are {there}')
  return by_name[name]


class Table(NamedTuple):
  """The numbers as texts: the first column and the last are words."""

  header: list[str]
  lines: list[list[str]]
  caption: str


def make_table(
  arms: Sequence[Arm],
  metrics: Sequence[Metric],
  baseline: Point,
  along: Sequence[str] = (),
) -> Table:
  """A line an arm: its ends, and how far from the baseline's, seed for seed."""
  differs = any(arm.point is not baseline for arm in arms)
  columns = {'run': [arm.name for arm in arms]}
  for one in metrics:
    ends = [one.text(one.ends(arm.runs, arm.who)) for arm in arms]
    columns[one.short] = ends
    if differs:
      name = 'difference' if len(metrics) == 1 else f'difference, {one.key}'
      columns[name] = [_difference(arm, arms, baseline, one) for arm in arms]
  columns['seeds'] = [_seeds(arm, metrics) for arm in arms]
  parts = ['held-out examples at the end of training']
  if len(whos := {arm.who for arm in arms}) == 1:
    parts += map(_called, whos)
  if any(len(arm.runs) > 1 for arm in arms):
    parts.append('mean over seeds ± half the range')
  if differs:
    parts.append(f'difference to {baseline.name}, seed for seed')
  lines = [list(line) for line in zip(*columns.values(), strict=True)]
  return Table([*columns], lines, '; '.join([*parts, *along]))


def _difference(
  arm: Arm, arms: Sequence[Arm], baseline: Point, metric: Metric
) -> str:
  """From the baseline's same member, or its first one, with the same seed."""
  theirs = [one for one in arms if one.point is baseline]
  same = [one for one in theirs if one.who == arm.who] or theirs
  if not same or arm.point is baseline:
    return '–'
  there = metric.by_seed(same[0].runs, same[0].who)
  ours = metric.by_seed(arm.runs, arm.who)
  found = [ours[seed] - there[seed] for seed in ours if seed in there]
  return metric.text(found, sign='+')


def _seeds(arm: Arm, metrics: Sequence[Metric]) -> str:
  """'3', or '2 of 3: 1 diverged': runs that got to their end, by any metric."""
  each = {metric.key: _seeds_of(arm, metric) for metric in metrics}
  if len(set(each.values())) == 1:
    return each[metrics[0].key]
  return '; '.join(f'{key} {seeds}' for key, seeds in each.items())


def _seeds_of(arm: Arm, metric: Metric) -> str:
  left = collections.Counter(
    why_no_end(run, arm.who)
    for run in arm.runs
    if not metric.ends([run], arm.who)
  )
  whole = str(len(arm.runs) - left.total())
  why = ', '.join(f'{count} {name}' for name, count in left.items())
  return f'{whole} of {len(arm.runs)}: {why}' if left else whole


def why_no_end(run: Result, who: int | str) -> str:
  """Why a run has no final value of a member, in a word or three."""
  if run.run['diverged']:
    return 'diverged'
  if 'unfinished' in run.run['marked']:
    return 'unfinished'
  members = {who}
  if isinstance(who, str):
    members = set(range(run.run['config']['codistill']['members']))
  ended = {row['member'] for row in run.rows if row['kind'] == 'final'}
  return 'without this number' if members <= ended else 'lost a member'

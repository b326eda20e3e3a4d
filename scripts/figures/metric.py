"""What is plotted, and what is computed of it: ends, gains, crossings."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from experiments.results import Result, Row

Curve = Sequence[tuple[float, float]]
# At each place the values of all seeds.
Points = dict[float, list[float]]
Rows = Mapping[str, Sequence[Result]]
# Who is shown, if not one member or the ensemble: the mean over the members.
MEMBERS = 'members'


@dataclasses.dataclass(frozen=True)
class Metric:
  """What is plotted.

  Attributes:
    key: of the rows.
    label: with the unit.
    short: the same in a table.
    scale: from the rows' number to that unit.
    best: min or max.
    digits: after the point, in tables.
  """

  key: str
  label: str
  short: str
  scale: float
  best: Callable[[Iterable[float]], float]
  digits: int

  def whole(self, runs: Sequence[Result], who: int | str) -> list[Result]:
    """Those of the runs in which a member got to the end."""
    return [run for run in runs if self.ends([run], who)]

  def curve(self, result: Result, who: int | str) -> Curve:
    """(step, value) at each evaluation of a member, or of all in the mean."""
    values: dict[int, dict[int | str, float]] = {}
    for row in self._rows(result, who):
      by_member = values.setdefault(row['step'], {})
      by_member[row['member']] = row[self.key] * self.scale
    return [
      (step, statistics.fmean(by_member.values()))
      for step, by_member in values.items()
    ]

  def ends(self, runs: Sequence[Result], who: int | str) -> list[float]:
    """A member's value at the end of each run that got there."""
    found = (
      [row for row in self._rows(run, who) if row['kind'] == 'final']
      for run in runs
    )
    return [
      statistics.fmean(row[self.key] for row in rows) * self.scale
      for rows in found
      if rows
    ]

  def _rows(self, result: Result, who: int | str) -> list[Row]:
    return [
      row
      for row in result.rows
      if self.key in row
      and (
        row['member'] == who
        or (who == MEMBERS and isinstance(row['member'], int))
      )
    ]

  def points(self, runs: Sequence[Result], who: int | str) -> Points:
    """All seeds' values at each step, of runs in which a member got there."""
    runs = self.whole(runs, who)
    return together([self.curve(run, who) for run in runs])

  def mean_curve(self, runs: Sequence[Result], who: int | str) -> Curve:
    """(step, mean over runs) of the same."""
    return [(x, statistics.fmean(y)) for x, y in self.points(runs, who).items()]

  def bests(self, runs: Sequence[Result], who: int | str) -> list[float]:
    """A member's best value on the way, in each run that got to its end."""
    return [
      self.best(y for _, y in self.curve(run, who))
      for run in self.whole(runs, who)
    ]

  def gains(
    self,
    runs: Sequence[Result],
    who: int | str,
    baseline: Sequence[Result],
    baseline_who: int | str,
  ) -> list[float]:
    """How much better than a baseline runs end, seed for seed.

    A seed is the same initialisation in both, and with the same data and batch
    the same order, so that this varies less than what it is the difference of.
    So are two members of one number: where all are shown they are compared one
    by one, and one alone with the first.
    """
    if who == baseline_who == MEMBERS:
      by_member = [
        self._gains(runs, member, baseline, member)
        for member in sorted(_members(runs) & _members(baseline))
      ]
    else:
      by_member = [self._gains(runs, who, baseline, baseline_who)]
    seeds = sorted(set().union(*by_member))
    return [
      statistics.fmean(gains[seed] for gains in by_member if seed in gains)
      for seed in seeds
    ]

  def _gains(
    self,
    runs: Sequence[Result],
    who: int | str,
    baseline: Sequence[Result],
    baseline_who: int | str,
  ) -> dict[int, float]:
    """By seed."""
    theirs, ours = (
      {run.run['seed']: end for run in some for end in self.ends([run], member)}
      for some, member in ((baseline, baseline_who), (runs, who))
    )
    sign = 1 if self.best is max else -1
    return {
      seed: sign * (ours[seed] - theirs[seed])
      for seed in ours.keys() & theirs.keys()
    }

  def text(self, values: Sequence[float], sign: str = '') -> str:
    """Mean ± half the range, as in the paper's Table 1; one has no range."""
    if not values:
      return '–'
    mean = f'{statistics.fmean(values):{sign}.{self.digits}f}'
    mean = mean.replace('-', '−')
    half = (max(values) - min(values)) / 2
    return f'{mean} ± {half:.{self.digits}f}' if len(values) > 1 else mean


LOSS = Metric(
  'task_loss',
  'held-out cross-entropy (nats)',
  'cross-entropy (nats)',
  1,
  min,
  4,
)
TOP_1 = Metric(
  'accuracy', 'held-out top-1 accuracy (%)', 'top-1 (%)', 100, max, 2
)


def _members(runs: Sequence[Result]) -> set[int]:
  return {
    row['member']
    for run in runs
    for row in run.rows
    if isinstance(row['member'], int)
  }


def together(curves: Sequence[Curve]) -> Points:
  """The values of all curves at the places that all of them have."""
  by_place = [dict(curve) for curve in curves]
  return {
    x: [curve[x] for curve in by_place]
    for x in (by_place[0] if by_place else ())
    if all(x in curve for curve in by_place)
  }


def crossing(
  curve: Curve, level: float, best: Callable[[Iterable[float]], float]
) -> float | None:
  """Where a curve first is at a level or better, by linear interpolation."""
  before = None
  for x, y in curve:
    if best((y, level)) == y:
      if before is None:
        return x
      x0, y0 = before
      return x0 + (x - x0) * (level - y0) / (y - y0)
    before = x, y
  return None


def one_a_seed(runs: Iterable[Result]) -> list[Result]:
  """The runs of an arm.

  Raises:
    ValueError: if a seed was run in two ways, for instance at two rates.
  """
  by_seed: dict[int, Result] = {}
  for run in runs:
    other = by_seed.setdefault(run.run['seed'], run)
    if other is not run:
      raise ValueError(
        f'{run.run["experiment"]} has two runs for one arm, {other.id} and '
        f'{run.id}; remove one of them from its results'
      )
  return list(by_seed.values())


def grouped(
  runs: Iterable[Result], keys: Iterable[str], key_of: Callable[[Result], Any]
) -> dict[Any, list[Result]]:
  """Runs of a sweep by something, ascending, one a seed.

  Args:
    runs: those of the sweep.
    keys: what a point of it may set; a run with another override is not one.
    key_of: what they are grouped by.
  """
  allowed = set(keys)
  found: dict[Any, list[Result]] = {}
  for run in runs:
    if set(run.point) <= allowed:
      found.setdefault(key_of(run), []).append(run)
  return {key: one_a_seed(found[key]) for key in sorted(found)}

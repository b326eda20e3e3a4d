"""What is plotted, and what is computed of it: ends, gains, crossings."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from experiments.results import Result, Row
from experiments.runs import label_of
from experiments.summary import spread

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
  scale: float = 1
  best: Callable[[Iterable[float]], float] = min
  digits: int = 4

  def whole(self, runs: Sequence[Result], who: int | str) -> list[Result]:
    """Those of the runs in which a member got to the end."""
    return [run for run in runs if self.ends([run], who)]

  def curve(
    self, result: Result, who: int | str, kind: str | None = None
  ) -> Curve:
    """(step, value) at each evaluation of a member, or of all in the mean.

    A member that diverged has no value, and then there is no mean of all.
    """
    wanted = {who}
    if who == MEMBERS:
      wanted = set(range(result.run['config']['codistill']['members']))
    values: dict[int, dict[int | str, float]] = {}
    for row in result.rows:
      of_kind = kind in (None, row['kind'])
      if row['member'] in wanted and of_kind and self.is_in(row):
        by_member = values.setdefault(row['step'], {})
        by_member[row['member']] = row[self.key] * self.scale
    return [
      (step, statistics.fmean(by_member.values()))
      for step, by_member in values.items()
      if by_member.keys() == wanted
    ]

  def ends(self, runs: Sequence[Result], who: int | str) -> list[float]:
    """A member's value at the end of each run that got there."""
    curves = (self.curve(run, who, 'final') for run in runs)
    return [curve[-1][1] for curve in curves if curve]

  def is_in(self, row: Row) -> bool:
    """Whether an evaluation has a number of that name."""
    value = row.get(self.key)
    return isinstance(value, (int, float)) and not isinstance(value, bool)

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
    by one, and one alone with the first. A seed in which one of them did not
    get to the end has no gain.
    """
    pairs = [(who, baseline_who)]
    if who == baseline_who == MEMBERS:
      both = sorted(_members(runs) & _members(baseline))
      pairs = [(member, member) for member in both]
    sign = 1 if self.best is max else -1
    by_seed: dict[int, list[float]] = {}
    for ours, theirs in pairs:
      there = self.by_seed(baseline, theirs)
      for seed, end in self.by_seed(runs, ours).items():
        if seed in there:
          by_seed.setdefault(seed, []).append(sign * (end - there[seed]))
    return [
      statistics.fmean(gains)
      for _, gains in sorted(by_seed.items())
      if len(gains) == len(pairs)
    ]

  def by_seed(self, runs: Sequence[Result], who: int | str) -> dict[int, float]:
    """A member's value at the end of each run that got there, by its seed."""
    runs = self.whole(runs, who)
    seeds = (run.run['seed'] for run in runs)
    return dict(zip(seeds, self.ends(runs, who), strict=True))

  def text(self, values: Sequence[float], sign: str = '') -> str:
    """Mean ± half the range, as in the paper's Table 1; one has no range."""
    return spread(values, self.digits, sign)


LOSS = Metric(
  'task_loss', 'held-out cross-entropy (nats)', 'cross-entropy (nats)'
)
TOP_1 = Metric(
  'accuracy', 'held-out top-1 accuracy (%)', 'top-1 (%)', 100, max, 2
)
AUC = Metric('auc', 'AUC', 'AUC', best=max)
AVERAGE_LOSS, AVERAGE_TOP_1 = (
  dataclasses.replace(
    metric,
    key=f'average_{metric.key}',
    label=f'{metric.label}, averaged weights',
    short=f'averaged: {metric.short}',
  )
  for metric in (LOSS, TOP_1)
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
        f'{label_of(run.run)} has two runs of one arm and seed, '
        f'{_which(other)} and {_which(run)}; take one of them away'
      )
  return list(by_seed.values())


def _which(run: Result) -> str:
  return f'{run.id} (started {run.run.get("started", "at an unknown time")})'


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

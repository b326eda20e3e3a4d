"""Where arms end: a row of dots each, and a line of the table."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence

from scripts.figures.arms import Arm
from scripts.figures.figure import Cells, Figure, ends, gains, made_by
from scripts.figures.metric import LOSS, Metric, Rows
from scripts.figures.panel import Grid, Panel


class Ends(Figure):
  """A panel a group of arms; there is one if its last config has rows.

  Attributes:
    columns: what the table calls arms, and before it groups if they have names.
    of: whose ends an arm's are.
    metrics: those of the table.
    other: another member or the ensemble, whose ends stand beside,
    of_other: and what it is called.
    others: of which metrics.
  """

  columns: tuple[str, ...]
  of = ''
  metrics: tuple[Metric, ...] = (LOSS,)
  other: int | str = 'ensemble'
  of_other = 'ensemble'
  others: tuple[Metric, ...] = (LOSS,)

  @abc.abstractmethod
  def groups(self, rows: Rows) -> Mapping[str, Sequence[Arm]]:
    """By the end of their panel's title; the first of each is a baseline."""

  def panels(self, rows: Rows) -> Grid:
    groups = self.groups(rows)
    if not any(
      arm.runs(rows)
      for some in groups.values()
      for arm in some
      if arm.config == self.configs[-1]
    ):
      return []
    return [
      [
        Panel(
          'ours, {}, ' + ', '.join(filter(None, ('at the end', name))),
          [arm.dots(LOSS, rows) for arm in some],
          f'{self.of}: {LOSS.label}' if self.of else LOSS.label,
        )
        for name, some in groups.items()
      ]
    ]

  def lines(self, rows: Rows) -> Iterator[Cells]:
    for name, some in self.groups(rows).items():
      for arm in some:
        runs, names = arm.runs(rows), [name, arm.label][-len(self.columns) :]
        # A metric that an experiment does not have is no column.
        there = [one for one in self.metrics if some[0].ended(one, rows)]
        metrics = there or self.metrics[:1]
        yield {
          **dict(zip(self.columns, names, strict=True)),
          **ends(runs, arm.who, *metrics, of=self.of),
          **gains(runs, arm.who, some[0], rows, *metrics),
          **ends(runs, self.other, *self.others, of=self.of_other),
          **made_by(arm.config, runs),
        }

"""Runs as one table: each member, the ensemble, side by side with others."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.table import Table

from experiments.record import is_own_metric

Row = dict[str, Any]


def results_table(runs: Iterable[tuple[str, list[Row]]]) -> Table:
  """A table of the final rows of runs.

  Args:
    runs: names of runs with their rows; a run without final rows shows none.

  Returns:
    A line for each member and each ensemble.
  """
  table = Table(
    title='Held-out examples',
    box=box.SIMPLE_HEAD,
    padding=(0, 1, 0, 0),
    caption='loss in nats; disagree: on how many examples two members differ',
  )
  finals = [
    (name, [row for row in rows if row['kind'] == 'final'])
    for name, rows in runs
  ]
  metrics = dict.fromkeys(
    key
    for _, rows in finals
    for row in rows
    for key in row
    if is_own_metric(key)
  )
  # A name that is too long for the page wraps, so that no number is cut.
  table.add_column('run', overflow='fold')
  table.add_column('member', no_wrap=True)
  for column in ('steps', 'accuracy', 'loss', *metrics, 'disagree'):
    table.add_column(column, justify='right', no_wrap=True)
  for name, final in finals:
    for row in final:
      table.add_row(
        name,
        str(row['member']),
        f'{row["step"]:,}',
        percent(row.get('accuracy')),
        number(row.get('task_loss')),
        *(number(row.get(metric)) for metric in metrics),
        percent(row.get('disagreement')),
        end_section=row is final[-1],
      )
  return table


def percent(share: float | None) -> str:
  """0.98765 → '98.77 %'; nothing → '–'."""
  return '–' if share is None else f'{100 * share:.2f} %'


def number(value: float | None) -> str:
  """0.123456 → '0.1235'; nothing → '–'."""
  return '–' if value is None else f'{value:.4f}'


def spread(values: Sequence[float], digits: int, sign: str = '') -> str:
  """[1.0, 1.5] → '1.25 ± 0.25': mean and half the range, as in Table 1."""
  if not values:
    return '–'
  mean = f'{statistics.fmean(values):{sign}z.{digits}f}'.replace('-', '−')
  half = (max(values) - min(values)) / 2
  return f'{mean} ± {half:.{digits}f}' if len(values) > 1 else mean

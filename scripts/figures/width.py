"""What a peer and an ensemble give, over the width of the network."""

from __future__ import annotations

import statistics
from typing import NamedTuple

from matplotlib.axes import Axes

from experiments.results import Result
from scripts import markdown
from scripts.figures.arms import (
  LM_CODISTILL,
  LM_ENSEMBLE,
  LOSS,
  MEMBERS,
  Rows,
  one_a_seed,
)
from scripts.figures.figure import (
  COMMAND,
  GRAY,
  Figure,
  command_cell,
  count_cell,
)

_CONFIG = 'lm_width'
_RATE = 'schedule.constant.rate'


class _Width(NamedTuple):
  """Runs of one width at the rate that is best for networks alone."""

  rate: float
  together: list[Result]
  apart: list[Result]

  @property
  def codistilled(self) -> list[float]:
    """Gains over the same members alone, seed for seed."""
    return LOSS.gains(self.together, MEMBERS, self.apart, MEMBERS)

  @property
  def ensemble(self) -> list[float]:
    return LOSS.gains(self.apart, 'ensemble', self.apart, MEMBERS)

  @property
  def share(self) -> float:
    """Of the ensemble's gain in percent."""
    ensemble = statistics.fmean(self.ensemble)
    return 100 * statistics.fmean(self.codistilled) / ensemble


class Width(Figure):
  """Gains, and the share of the ensemble's, at each width's own rate."""

  configs = (_CONFIG,)
  titles = (
    'ours, :{variant}, gain over one alone',
    'ours, :{variant}, share of the ensemble’s gain',
  )

  def __init__(self, title: str):
    """Takes the picture's title; the paper has no such figure."""
    self.title = title

  def has_rows(self, rows: Rows) -> bool:
    """Whether two widths have pairs that codistil and ones that do not."""
    return len(_widths(rows)) > 1

  def draw_left(self, axes: Axes, rows: Rows) -> None:
    """A dot a seed and a line through the means."""
    widths = _widths(rows)
    for arm, gains in (
      (LM_ENSEMBLE, [width.ensemble for width in widths.values()]),
      (LM_CODISTILL, [width.codistilled for width in widths.values()]),
    ):
      for units, some in zip(widths, gains, strict=True):
        axes.plot([units] * len(some), some, 'o', color=arm.color, alpha=0.5)
      means = [statistics.fmean(some) for some in gains]
      axes.plot(list(widths), means, color=arm.color, label=arm.label)
    axes.axhline(0, color=GRAY, linewidth=0.8)
    _along_widths(axes, rows)
    axes.set_ylabel('better than one alone (nats)')
    axes.legend()

  def draw_ours(self, axes: Axes, rows: Rows) -> None:
    """Of the means."""
    widths = _widths(rows)
    shares = [width.share for width in widths.values()]
    axes.plot(list(widths), shares, 'o-', color=LM_CODISTILL.color)
    axes.axhline(0, color=GRAY, linewidth=0.8)
    _along_widths(axes, rows)
    axes.set_ylabel('share (%)')

  def table(self, rows: Rows, variant: str) -> str:
    """A line a width."""
    lines = [
      [
        f'2 × {units}',
        f'{width.rate:g}',
        LOSS.text(LOSS.ends(width.apart, MEMBERS)),
        LOSS.text(LOSS.ends(width.together, MEMBERS)),
        LOSS.text(LOSS.ends(width.apart, 'ensemble')),
        LOSS.text(width.codistilled, sign='+'),
        LOSS.text(width.ensemble, sign='+'),
        f'{width.share:.0f} %',
        count_cell(width.together),
        command_cell(_CONFIG, variant, width.together),
      ]
      for units, width in _widths(rows).items()
    ]
    header = [
      'units',
      'learning rate, best alone',
      f'alone: {LOSS.short}',
      f'codistilled: {LOSS.short}',
      f'ensemble of two: {LOSS.short}',
      'codistillation gains',
      'the ensemble gains',
      'share',
      'runs',
      COMMAND,
    ]
    return markdown.table(header, lines) if lines else ''


def _widths(rows: Rows) -> dict[int, _Width]:
  """By units, ascending; of each the rate at which two alone end best."""
  runs = list(rows.get(_CONFIG, ()))
  for config in ('lm_codistill', 'lm_ensemble'):
    runs += [run for run in rows.get(config, ()) if run.point.keys() <= {_RATE}]
  found: dict[int, dict[float, tuple[list[Result], list[Result]]]] = {}
  for run in runs:
    # Of a run that lost a member nothing can be compared.
    if not all(LOSS.ends([run], who) for who in (0, 1, 'ensemble')):
      continue
    config = run.run['config']
    by_rate = found.setdefault(config['model']['lstm']['hidden_size'], {})
    pair = by_rate.setdefault(config['schedule']['constant']['rate'], ([], []))
    pair[config['codistill']['exchange'] == 'none'].append(run)
  widths = {}
  for units, by_rate in sorted(found.items()):
    ends = {
      rate: statistics.fmean(LOSS.ends(apart, MEMBERS))
      for rate, (_, apart) in by_rate.items()
      if apart
    }
    if not ends:
      continue
    best = min(ends, key=lambda rate: ends[rate])
    together, apart = by_rate[best]
    width = _Width(best, one_a_seed(together), one_a_seed(apart))
    if width.codistilled:
      widths[units] = width
  return widths


def _along_widths(axes: Axes, rows: Rows) -> None:
  widths = list(_widths(rows))
  axes.set_xscale('log')
  axes.set_xticks(widths, [f'{units}' for units in widths])
  axes.minorticks_off()
  axes.set_xlabel('units of each of two layers')

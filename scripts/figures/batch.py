"""Where twice the batch stops to pay: synchronous SGD by batch and rate."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.results import Result
from scripts import markdown
from scripts.figures.arms import (
  LM_SYNC,
  LOSS,
  Rows,
  crossing,
  one_a_seed,
)
from scripts.figures.figure import (
  COMMAND,
  GRAY,
  Figure,
  command_cell,
  count_cell,
)

_KEYS = {'batch_size', 'schedule.constant.rate'}
_COLORS = {
  0.25: '#E69F00',
  0.5: '#009E73',
  1: '#000000',
  2: '#0072B2',
  4: '#CC79A7',
  8: '#D55E00',
  16: '#56B4E9',
}
# Runs by the size of the batch and the learning rate, over the config's own.
Points = dict[tuple[float, float], list[Result]]


class Batch(Figure):
  """The end over the learning rate; steps to a level over the batch."""

  configs = ('lm_sync',)
  seeds = 1
  titles = ('ours, :{variant}', 'ours, :{variant}')

  def __init__(self, title: str):
    """Takes the picture's title; the paper's is Figure 1a."""
    self.title = title

  def has_rows(self, rows: Rows) -> bool:
    """Whether three batches have runs that got to their end."""
    return len({size for size, _ in _points(rows)}) > 2

  def draw_left(self, axes: Axes, rows: Rows) -> None:
    """A line a batch."""
    points = _points(rows)
    for size in sorted({size for size, _ in points}):
      ends = sorted(
        (_rate(runs), sum(values) / len(values))
        for (one, _), runs in points.items()
        if one == size and (values := LOSS.ends(runs, 0))
      )
      if ends:
        x, y = zip(*ends, strict=True)
        label = f'{_lanes(points, size)} lanes'
        axes.plot(x, y, 'o-', color=_COLORS.get(size, GRAY), label=label)
    axes.set(
      xscale='log', xlabel='learning rate', ylabel=f'{LOSS.label}, at the end'
    )
    rates = sorted({_rate(runs) for runs in points.values()})
    axes.set_xticks(rates, [f'{rate:g}' for rate in rates])
    axes.minorticks_off()
    if axes.lines:
      axes.legend()

  def draw_ours(self, axes: Axes, rows: Rows) -> None:
    """A dot a batch and rate; dashed: half the steps for twice the batch."""
    points = _points(rows)
    level = _level(points)
    own = None
    for (size, factor), runs in points.items():
      at = _steps(runs, level)
      if at is None:
        continue
      lanes = runs[0].run['config']['batch_size']
      own = (lanes, at) if (size, factor) == (1, 1) else own
      axes.plot(lanes, at, 'o', color=_COLORS.get(size, GRAY))
      # Equal steps at two rates are one dot.
      right = factor == max(each for one, each in points if one == size)
      axes.annotate(
        f'{_rate(runs):g}',
        (lanes, at),
        xytext=(6 if right else -6, -3),
        horizontalalignment='left' if right else 'right',
        textcoords='offset points',
        fontsize=7.5,
      )
    axes.set(
      xscale='log',
      yscale='log',
      xlabel='lanes a batch; at the points: learning rate',
      ylabel='steps to the baseline’s best loss',
    )
    sizes = sorted(
      {runs[0].run['config']['batch_size'] for runs in points.values()}
    )
    if own:
      ideal = [own[0] * own[1] / each for each in sizes]
      axes.plot(sizes, ideal, '--', color=GRAY, linewidth=0.8)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter('{x:g}')
    axes.yaxis.set_minor_formatter(NullFormatter())

  def table(self, rows: Rows, variant: str) -> str:
    """A line a batch and rate."""
    points = _points(rows)
    level = _level(points)
    lines = []
    for (_, _), runs in points.items():
      at = _steps(runs, level)
      config = runs[0].run['config']
      tokens = config['batch_size'] * config['data'].get('sequence_length', 1)
      lines.append(
        [
          f'{config["batch_size"]:,}',
          f'{_rate(runs):g}',
          LOSS.text(LOSS.ends(runs, 0)),
          'not reached' if at is None else f'{at:,.0f}',
          '–' if at is None else f'{at * tokens / 1e6:.1f}',
          count_cell(runs),
          command_cell('lm_sync', variant, runs),
        ]
      )
    header = [
      'lanes a batch',
      'learning rate',
      f'at the end: {LOSS.short}',
      'steps to the baseline’s best',
      'tokens to it (M)',
      'runs',
      COMMAND,
    ]
    return markdown.table(header, lines) if lines else ''


def _rate(runs: list[Result]) -> float:
  return runs[0].run['config']['schedule']['constant']['rate']


def _lanes(points: Points, size: float) -> int:
  found = (runs for (one, _), runs in points.items() if one == size)
  return next(found)[0].run['config']['batch_size']


def _level(points: Points) -> float | None:
  own = LOSS.mean_curve(points.get((1, 1), ()), 0)
  return min((y for _, y in own), default=None)


def _steps(runs: list[Result], level: float | None) -> float | None:
  if level is None:
    return None
  return crossing(LOSS.mean_curve(runs, 0), level, min)


def _points(rows: Rows) -> Points:
  """Runs that got to their end; none without the baseline's."""
  base = LOSS.whole(LM_SYNC.runs(rows), 0)
  if not base:
    return {}
  own = base[0].run['config']
  points: Points = {}
  for run in LOSS.whole(rows.get('lm_sync', ()), 0):
    if set(run.point) <= _KEYS:
      config = run.run['config']
      key = (
        config['batch_size'] / own['batch_size'],
        _rate([run]) / own['schedule']['constant']['rate'],
      )
      points.setdefault(key, []).append(run)
  return {key: one_a_seed(points[key]) for key in sorted(points)}

"""What if one model collapses: the members that are well, and the one not."""

from __future__ import annotations

import statistics
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from experiments.results import Result
from scripts import markdown
from scripts.figures.arms import (
  LOSS,
  TOP_1,
  Curve,
  Metric,
  Rows,
  mean_curve,
  one_a_seed,
  seeds_text,
)
from scripts.figures.figure import (
  COMMAND,
  GRAY,
  Figure,
  command_cell,
  count_cell,
  mark_step,
)


class _Look(NamedTuple):
  """How an arm is drawn."""

  label: str
  color: str
  line: str


_WELL = _Look('all three well', '#000000', '-')
_RULES = {
  False: _Look('without the rule', '#D55E00', '-'),
  True: _Look('with the rule', '#009E73', '-'),
}
_FAULTS = {
  'none': 'none',
  'rate': 'learning rate × 100',
  'noise': 'noise for weights',
}
Arms = dict[tuple[str, bool], list[Result]]


class FailedPeer(Figure):
  """Held-out loss of the healthy members over steps, a panel a fault."""

  configs = ('failed_peer',)
  titles = tuple(f'ours, :{{variant}}, {_FAULTS[k]}' for k in ('rate', 'noise'))

  def __init__(self, title: str):
    """Takes the picture's title; the paper has no such figure."""
    self.title = title

  def has_rows(self, rows: Rows) -> bool:
    """Whether a run got to its end."""
    return any(_ended(runs) for runs in _arms(rows).values())

  def draw_left(self, axes: Axes, rows: Rows) -> None:
    """A learning rate that is far too high."""
    _draw(axes, rows, 'rate')

  def draw_ours(self, axes: Axes, rows: Rows) -> None:
    """Weights that are noise."""
    _draw(axes, rows, 'noise')

  def table(self, rows: Rows, variant: str) -> str:
    """A line a fault and rule: the healthy, and the one that failed."""
    lines = []
    for (kind, rule), runs in _arms(rows).items():
      ended = _ended(runs)
      counts = [sum((run.run.get('left_out') or {}).values()) for run in ended]
      lines.append(
        [
          _FAULTS[kind],
          'yes' if rule else 'no',
          *(
            metric.text([_healthy(metric, run) for run in ended])
            for metric in (LOSS, TOP_1)
          ),
          LOSS.text([_worst(run) for run in ended]),
          *(
            metric.text([y for run in ended for y in _failed_end(metric, run)])
            for metric in (LOSS, TOP_1)
          ),
          f'{statistics.fmean(counts):,.0f}' if counts else '–',
          count_cell(runs),
          command_cell('failed_peer', variant, runs),
        ]
      )
    header = [
      'fault of member 2',
      'rule',
      f'members 0 and 1 at the end: {LOSS.short}',
      f'members 0 and 1 at the end: {TOP_1.short}',
      'their worst after the fault (nats)',
      f'member 2 at the end: {LOSS.short}',
      f'member 2 at the end: {TOP_1.short}',
      'times a peer was left out',
      'runs',
      COMMAND,
    ]
    return markdown.table(header, lines) if lines else ''


def _arms(rows: Rows) -> Arms:
  """The sweep's runs by fault and rule."""
  arms: Arms = {}
  for kind in _FAULTS:
    for rule in (False, True):
      runs = [
        run
        for run in rows.get('failed_peer', ())
        if _fault(run)['kind'] == kind
        and rule == (_ratio(run) is not None)
        and set(run.point) <= {'fault.kind', 'codistill.max_task_loss_ratio'}
      ]
      if runs:
        arms[kind, rule] = one_a_seed(runs)
  return arms


def _draw(axes: Axes, rows: Rows, kind: str) -> None:
  arms = _arms(rows)
  shown = [(_WELL, arms.get(('none', False), []))]
  shown += [(_RULES[rule], arms.get((kind, rule), [])) for rule in _RULES]
  fault, seen = None, []
  for look, runs in shown:
    ended = _ended(runs)
    if not ended:
      continue
    curves = [LOSS.curve(run, member) for run in ended for member in _well(run)]
    _band(axes, curves, look, f'{look.label} ({seeds_text(len(ended))})')
    seen += [y for curve in curves for _, y in curve]
    if look is not _WELL:
      fault = _fault(ended[0])['step']
  failed = [
    LOSS.curve(run, _fault(run)['member'])
    for run in _ended(arms.get((kind, False), []))
  ]
  if failed:
    _band(axes, failed, _Look('', GRAY, '--'), 'the one that fails')
  if fault is not None:
    mark_step(axes, fault, 'fault', 0.97)
  axes.set(
    xlabel='step (updates of each member)',
    ylabel=LOSS.label,
    yscale='log',
    # Of those that are well: the other one may be anywhere.
    ylim=(min(seen) / 1.2, max(seen) * 1.5) if seen else None,
  )
  axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
  axes.yaxis.set_major_formatter('{x:g}')
  axes.yaxis.set_minor_formatter('')
  axes.legend()


def _band(axes: Axes, curves: list[Curve], look: _Look, label: str) -> None:
  """The mean of some curves and, shaded, from the least to the greatest."""
  x, mean, low, high = mean_curve(curves)
  axes.plot(x, mean, look.line, color=look.color, label=label)
  axes.fill_between(x, low, high, color=look.color, alpha=0.18, linewidth=0)


def _fault(run: Result) -> dict:
  return run.run['config']['fault']


def _ratio(run: Result) -> float | None:
  return run.run['config']['codistill']['max_task_loss_ratio']


def _well(run: Result) -> list[int]:
  members = run.run['config']['codistill']['members']
  return [m for m in range(members) if m != _fault(run)['member']]


def _ended(runs: list[Result]) -> list[Result]:
  """Those whose healthy members got to the end; the other one need not."""
  return [
    run for run in runs if all(LOSS.ends([run], who) for who in _well(run))
  ]


def _healthy(metric: Metric, run: Result) -> float:
  """The mean of the healthy members at the end of a run."""
  return statistics.fmean(metric.ends([run], who)[0] for who in _well(run))


def _failed_end(metric: Metric, run: Result) -> list[float]:
  """Where the failing member ends; [] if it diverged on the way."""
  return metric.ends([run], _fault(run)['member'])


def _worst(run: Result) -> float:
  """The greatest loss of a healthy member after the step of the fault."""
  return max(
    y
    for who in _well(run)
    for x, y in LOSS.curve(run, who)
    if x > _fault(run)['step']
  )

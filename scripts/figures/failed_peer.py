"""What if one model collapses: the members that are well, and the one not."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from experiments.results import Result
from scripts.figures import panel
from scripts.figures.curves import STEPS
from scripts.figures.figure import Cells, Figure, beside, count, made_by
from scripts.figures.metric import LOSS, TOP_1, Metric, Rows, grouped, together
from scripts.figures.panel import Grid, Line, Panel

_FAULTS = {
  'none': 'none',
  'rate': 'learning rate × 100',
  'noise': 'noise for weights',
}
# In nats: greater losses of the member that fails would flatten all others.
_MOST = 10
_Arms = dict[tuple[str, bool], list[Result]]


class FailedPeer(Figure):
  """Held-out loss of the healthy members over steps, a panel a fault."""

  title = 'What if one model collapses? One of three fails'
  configs = ('failed_peer',)

  def panels(self, rows: Rows) -> Grid:
    arms = {key: _ended(runs) for key, runs in _arms(rows).items()}
    if not any(arms.values()):
      return []
    return [[_panel(arms, kind) for kind in ('rate', 'noise')]]

  def lines(self, rows: Rows) -> Iterator[Cells]:
    names = f'{LOSS.short} / {TOP_1.short}'
    for (kind, rule), runs in _arms(rows).items():
      ended = _ended(runs)
      counts = [sum((run.run.get('left_out') or {}).values()) for run in ended]
      well, failed = (
        beside(
          *(
            metric.text([y for run in ended for y in of(metric, run)])
            for metric in (LOSS, TOP_1)
          )
        )
        for of in (_healthy, _failed)
      )
      yield {
        'fault of member 2': _FAULTS[kind],
        'rule': 'yes' if rule else 'no',
        f'members 0 and 1 at the end: {names}': well,
        'their worst after the fault (nats)': LOSS.text(
          [_worst(run) for run in ended]
        ),
        f'member 2 at the end: {names}': failed,
        'times a peer was left out': count(
          statistics.fmean(counts) if counts else None
        ),
        **made_by('failed_peer', runs),
      }


def _arms(rows: Rows) -> _Arms:
  """The sweep's runs by fault and rule."""
  order = list(_FAULTS)
  found = grouped(
    rows.get('failed_peer', ()),
    ('fault.kind', 'codistill.max_task_loss_ratio'),
    lambda run: (
      order.index(_fault(run)['kind']),
      run.run['config']['codistill']['max_task_loss_ratio'] is not None,
    ),
  )
  return {(order[kind], rule): runs for (kind, rule), runs in found.items()}


def _panel(arms: _Arms, kind: str) -> Panel:
  lines, marks = [], {}
  for label, color, key in (
    ('all three well', panel.BLACK, ('none', False)),
    ('without the rule', panel.VERMILION, (kind, False)),
    ('with the rule', panel.GREEN, (kind, True)),
  ):
    if runs := arms.get(key):
      points = together(
        [LOSS.curve(run, m) for run in runs for m in _well(run)]
      )
      lines.append(Line(label, color, points, seeds=len(runs)))
      marks |= {_fault(run)['step']: 'fault' for run in runs if key[0] == kind}
  if runs := arms.get((kind, False)):
    points = together([LOSS.curve(run, _fault(run)['member']) for run in runs])
    cut = {x: [min(y, _MOST) for y in some] for x, some in points.items()}
    look = {'style': '--', 'seeds': len(runs)}
    lines.append(Line('the one that fails', panel.DARK_GRAY, cut, **look))
  ylabel = f'cross-entropy (nats; {_MOST} if more)'
  title, look = (
    f'ours, {{}}, {_FAULTS[kind]}',
    {'yscale': 'log', 'marks': marks, 'over': 'seeds and members'},
  )
  return Panel(title, lines, STEPS, ylabel, **look)


def _fault(run: Result) -> dict:
  return run.run['config']['fault']


def _well(run: Result) -> list[int]:
  members = run.run['config']['codistill']['members']
  return [m for m in range(members) if m != _fault(run)['member']]


def _ended(runs: list[Result]) -> list[Result]:
  """Those whose healthy members got to the end; the other one need not."""
  return [
    run for run in runs if all(LOSS.ends([run], who) for who in _well(run))
  ]


def _healthy(metric: Metric, run: Result) -> list[float]:
  """The mean of the healthy members at the end of a run."""
  return [statistics.fmean(metric.ends([run], who)[0] for who in _well(run))]


def _failed(metric: Metric, run: Result) -> list[float]:
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

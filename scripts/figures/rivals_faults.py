"""Codistillation and its rivals when a member dies half-way, or is slow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from experiments.results import Result
from scripts.figures.figure import (
  COMMAND,
  Cells,
  Figure,
  ends,
  gain_over,
  made_by,
)
from scripts.figures.metric import LOSS, Rows, grouped
from scripts.figures.panel import BLACK, Dots, Grid, Panel
from scripts.figures.rivals import KEYS, WAYS

_CONFIG, _REFERENCE = 'lm_rivals_faults', 'lm_rivals'
# What becomes of member 1; in the order of the table.
_FAULTS = {'none': 'well', 'death': 'dies half-way', 'slow': 'ten times slower'}
_SLOW = list(_FAULTS).index('slow')
# Which weights a rule leaves out.
_RULES = {
  'codistill.max_age_steps': 'old',
  'codistill.max_task_loss_ratio': 'worse',
}
_KEYS = (*KEYS, *_RULES, 'fault.kind', 'fault.step')


class _Way(NamedTuple):
  """What runs have in common; in the order of the table.

  Attributes:
    method: its place in `WAYS`; −1 without an exchange.
    fault: its place in `_FAULTS`.
    rule: which weights are left out; '' without a rule.
  """

  method: int
  fault: int
  rule: str

  @property
  def label(self) -> str:
    """What members do, and what becomes of member 1."""
    if self.method < 0:
      return 'members that never meet'
    name, _ = list(WAYS.values())[self.method]
    rule = f', {self.rule} weights are left out' if self.rule else ''
    return f'{name}, {list(_FAULTS.values())[self.fault]}{rule}'

  @property
  def color(self) -> str:
    """That of the method."""
    return BLACK if self.method < 0 else list(WAYS.values())[self.method][1]


class RivalsFaults(Figure):
  """Where member 0 ends: beside one that is well, and without one."""

  title = 'What does it cost when the other member dies, or is slow?'
  configs = (_REFERENCE, _CONFIG)

  def panels(self, rows: Rows) -> Grid:
    ways = _ways(rows)
    if not any(way.fault for way in ways):
      return []
    dots = [Dots(w.label, w.color, LOSS.ends(r, 0)) for w, r in ways.items()]
    return [[Panel('ours, {}, member 0 at the end', dots, LOSS.label)]]

  def lines(self, rows: Rows) -> Iterator[Cells]:
    ways = _ways(rows)
    if not any(way.fault for way in ways):
      return
    never = next((runs for way, runs in ways.items() if way.method < 0), [])
    for way, runs in ways.items():
      yield {
        'members, and what becomes of member 1': way.label,
        **ends(runs, 0, LOSS, of='member 0'),
        'better than never, seed for seed': gain_over(never, runs, 0),
        **ends(runs, 1, LOSS, of='member 1'),
        **made_by(_CONFIG, runs),
        # It is no sweep's: each member needs a process of its own.
        **({COMMAND: 'below the table'} if way.fault == _SLOW else {}),
      }


def _ways(rows: Rows) -> dict[_Way, list[Result]]:
  """Runs whose member 0 got to the end, by what they do."""

  def key(run: Result) -> _Way:
    codistill = run.run['config']['codistill']
    fault = run.run['config']['fault']['kind']
    if codistill['exchange'] == 'none':
      return _Way(-1, 0, '')
    return _Way(
      list(WAYS).index(codistill['method']),
      list(_FAULTS).index(fault),
      next((word for rule, word in _RULES.items() if rule in run.point), ''),
    )

  often = 'codistill.reload_interval_steps'
  runs = [
    run
    for config in (_REFERENCE, _CONFIG)
    for run in LOSS.whole(rows.get(config, ()), 0)
    if run.run['config']['codistill']['members'] == 2
    and run.run['config']['codistill']['publish_precision'] == 'float32'
    and not run.run['config']['codistill'].get('synchronous')
    and often not in run.point
  ]
  return grouped(runs, _KEYS, key)

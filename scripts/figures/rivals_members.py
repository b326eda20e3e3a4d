"""Codistillation and its rivals with more members."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from experiments.results import Result
from scripts.figures import panel
from scripts.figures.figure import Cells, Figure, ends, gain_over, made_by
from scripts.figures.metric import LOSS, MEMBERS, Rows, grouped
from scripts.figures.panel import Grid, Panel, along
from scripts.figures.rivals import KEYS, computing

_CONFIG, _REFERENCE = 'lm_rivals_members', 'lm_rivals'
# In the order of the table.
_WAYS: Mapping[str, tuple[str, str]] = {
  'members that never meet': (panel.GRAY, 'o'),
  'one network, so many times the batch': (panel.BLACK, 'D'),
  'codistillation, all teach all': (panel.VERMILION, 'o'),
  'codistillation in a ring': (panel.ORANGE, 'o'),
  'local SGD': (panel.BLUE, 'o'),
  'local SGD in pairs that codistil': (panel.PURPLE, 'o'),
}
_KEYS = (*KEYS, 'codistill.topology', 'codistill.group_size')


class RivalsMembers(Figure):
  """The loss at the end by the number of members."""

  title = 'What do more members buy?'
  configs = (_REFERENCE, _CONFIG)

  def panels(self, rows: Rows) -> Grid:
    ways = _ways(rows)
    lines = []
    for label, (color, marker) in _WAYS.items():
      points = {
        float(members): LOSS.ends(runs, MEMBERS)
        for (members, way), runs in ways.items()
        if way == label
      }
      lines += along(label, color, points, marker=marker)
    if not rows.get(_CONFIG):
      return []
    look = {'xscale': 'log', 'xticks': sorted({n for n, _ in ways})}
    title = 'ours, {}, a member at the end'
    return [[Panel(title, lines, 'members', LOSS.label, **look)]]

  def lines(self, rows: Rows) -> Iterator[Cells]:
    ways = _ways(rows)
    for (members, way), runs in ways.items() if rows.get(_CONFIG) else ():
      never = ways.get((members, next(iter(_WAYS))), [])
      yield {
        'networks’ worth of batches': str(members),
        'members': way,
        'computing': f'{computing(runs[0]):.2f}',
        **ends(runs, MEMBERS, LOSS, of='a member'),
        'better than never, seed for seed': gain_over(never, runs, MEMBERS),
        **ends(runs, 'ensemble', LOSS, of='ensemble'),
        **made_by(_CONFIG, runs),
      }


def _ways(rows: Rows) -> dict[tuple[int, str], list[Result]]:
  """Finished runs by how many networks' batches they see, and what they do."""
  names = list(_WAYS)
  runs = [
    run
    for config in (_REFERENCE, _CONFIG)
    for run in LOSS.whole(rows.get(config, ()), MEMBERS)
    if run.run['config']['codistill']['method'] != 'diloco'
    and run.run['config']['codistill']['publish_precision'] == 'float32'
    and 'codistill.reload_interval_steps' not in run.point
  ]
  least = min((run.run['config']['batch_size'] for run in runs), default=1)

  def key(run: Result) -> tuple[int, int]:
    config = run.run['config']
    codistill = config['codistill']
    networks = codistill['members'] * config['batch_size'] // least
    if codistill['exchange'] == 'none':
      return networks, int(codistill['members'] == 1)
    if codistill['method'] == 'local_sgd':
      return networks, 5 if codistill['group_size'] else 4
    return networks, 3 if codistill['topology'] == 'ring' else 2

  found = grouped(runs, _KEYS, key)
  return {(n, names[way]): runs for (n, way), runs in found.items()}

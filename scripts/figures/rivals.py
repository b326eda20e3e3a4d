"""Codistillation and its rivals: the loss by bytes sent, and by computing."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from experiments.results import Result
from scripts.figures import arms, panel
from scripts.figures.cost import UPDATE, forward_passes, trained_on
from scripts.figures.curves import EARLY
from scripts.figures.figure import Cells, Figure, ends, gain_over, made_by
from scripts.figures.metric import LOSS, MEMBERS, Rows, grouped
from scripts.figures.panel import Grid, Line, Panel, along

_APART, _SYNC = 'members that never meet', 'synchronous SGD, twice the batch'
WAYS: Mapping[str, tuple[str, str]] = {
  'codistillation': ('codistillation', panel.VERMILION),
  'local_sgd': ('local SGD', panel.BLUE),
  'diloco': ('DiLoCo', panel.GREEN),
}
KEYS = (
  *(
    f'codistill.{key}'
    for key in (
      'method',
      'members',
      'exchange',
      'burn_in_steps',
      'reload_interval_steps',
      'publish_precision',
      'publish_differences',
      'outer_learning_rate',
      'outer_momentum',
    )
  ),
  'batch_size',
  'schedule.constant.rate',
)


class _Way(NamedTuple):
  """What runs have in common; in the order of the table.

  Attributes:
    method: its place in `WAYS`; −1 without an exchange.
    precision: of what is published.
    interval: in steps; 0 without an exchange.
    members: 1 for twice the batch.
  """

  method: int
  precision: str
  interval: int
  members: int

  @property
  def label(self) -> str:
    """Its name without the interval."""
    if self.method < 0:
      return _SYNC if self.members == 1 else _APART
    name, _ = list(WAYS.values())[self.method]
    return name if self.precision == 'float32' else f'{name}, {self.precision}'


class Rivals(Figure):
  """Three ways to use a peer's weights, between never and at each step."""

  title = 'What is a byte between members worth?'
  configs = ('lm_rivals',)

  def panels(self, rows: Rows) -> Grid:
    ways = _ways(rows)
    size = _bytes_of_network(ways)
    if size is None:
      return []
    lines: list[Line] = []
    for number, (_, color) in enumerate(WAYS.values()):
      for precision, marker in (('float32', 'o'), ('int8', 's')):
        some = {
          way: runs
          for way, runs in ways.items()
          if (way.method, way.precision) == (number, precision)
        }
        points = {
          _sent(way, runs, size): LOSS.ends(runs, MEMBERS)
          for way, runs in some.items()
        }
        label = next(iter(some)).label if some else ''
        lines += along(label, color, points, marker=marker)
    places = [place for line in lines for place in line.points]
    for way, runs in ways.items():
      if way.method >= 0:
        continue
      if way.members == 1:
        points = {_sent(way, runs, size): LOSS.ends(runs, MEMBERS)}
        lines += along(way.label, panel.BLACK, points, marker='D')
        continue
      for label, who, style in (
        (way.label, MEMBERS, '-'),
        (f'{arms.ENSEMBLE.label} that never meet', 'ensemble', '--'),
      ):
        values = LOSS.ends(runs, who)
        points = {place: values for place in (min(places), max(places))}
        look = {'style': style, 'seeds': len(values), 'level': True}
        lines.append(Line(label, panel.GRAY, points, **look))
    xlabel = 'a member sends in a step (kB)'
    look = {'xscale': 'log', 'xticks': (10, 100, 1_000), 'ylabel': LOSS.label}
    at_the_end = Panel('ours, {}, at the end', lines, xlabel, **look)
    return [[at_the_end, _over_computing(ways)]]

  def lines(self, rows: Rows) -> Iterator[Cells]:
    ways = _ways(rows)
    size = _bytes_of_network(ways)
    never = next((r for way, r in ways.items() if way.label == _APART), [])
    for way, runs in ways.items() if size else ():
      yield {
        'members': way.label,
        'every … steps': str(way.interval or '–'),
        'a member sends in a step (kB)': f'{_sent(way, runs, size):.2f}',
        'computing': f'{computing(runs[0]):.2f}',
        **ends(runs, MEMBERS, LOSS, of='a member'),
        'better than never, seed for seed': gain_over(never, runs, MEMBERS),
        **ends(runs, 'ensemble', LOSS, of='ensemble'),
        **made_by('lm_rivals', runs),
      }


def _over_computing(ways: Mapping[_Way, Sequence[Result]]) -> Panel:
  """Learning curves of those that exchange float32 as often as by default."""
  default = {
    way.method: runs
    for way, runs in ways.items()
    if way.precision == 'float32'
    and not any('interval' in key for key in runs[0].point)
  }
  shown = {
    way.label: (panel.BLACK if way.members == 1 else panel.GRAY, '-', runs)
    for way, runs in ways.items()
    if way.method < 0
  } | {
    name: (color, '-', default[number])
    for number, (name, color) in enumerate(WAYS.values())
    if number in default
  }
  lines = [
    Line(
      label,
      color,
      {
        forward_passes(runs[0], step) / 1e6: losses
        for step, losses in LOSS.points(runs, MEMBERS).items()
      },
      style=style,
      seeds=len(runs),
    )
    for label, (color, style, runs) in shown.items()
  ]
  xlabel = 'forward passes of a token, all networks (M)'
  return Panel('ours, {}', lines, xlabel, LOSS.label, early=EARLY)


def computing(run: Result) -> float:
  """What a run computes, over what the same without teachers would."""
  steps = run.run['config']['num_steps']
  return forward_passes(run, steps) / (UPDATE * trained_on(run, steps))


def _ways(rows: Rows) -> dict[_Way, list[Result]]:
  """Finished runs by what they do."""

  def key(run: Result) -> _Way:
    codistill = run.run['config']['codistill']
    members = codistill['members']
    if codistill['exchange'] == 'none':
      return _Way(-1, '', 0, members)
    method = list(WAYS).index(codistill.get('method', 'codistillation'))
    interval = codistill['reload_interval_steps']
    return _Way(method, codistill['publish_precision'], interval, members)

  return grouped(LOSS.whole(rows.get('lm_rivals', ()), MEMBERS), KEYS, key)


def _bytes_of_network(ways: Mapping[_Way, Sequence[Result]]) -> float | None:
  """Those of one publication in float32; None if there is no run with one."""
  for way, runs in ways.items():
    if way.precision == 'float32':
      config = runs[0].run['config']
      # Initial weights are published, too.
      publications = 1 + config['num_steps'] // way.interval
      return _published(runs[0]) / publications / way.members
  return None


def _published(run: Result) -> float:
  """Bytes that all members published in a run."""
  return run.run.get('exchanged_bytes', {}).get('publish', 0)


def _sent(way: _Way, runs: Sequence[Result], size: float) -> float:
  """Kilobytes that a member sends in a step.

  Twice the batch is that of two workers that add up their gradients, of which
  each sends 2 · (N − 1) / N = 1 times its network. Other bytes are measured.
  """
  if way.method < 0:
    return size / 1e3 if way.members == 1 else 0.0
  steps = runs[0].run['config']['num_steps']
  return statistics.fmean(map(_published, runs)) / way.members / steps / 1e3

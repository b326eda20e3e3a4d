"""Learning curves, and a dot a seed for their ends: a row of panels a metric.

Where points differ in one number, such as a reload interval, colours have its
order.
"""

from __future__ import annotations

import collections
import itertools
import json
import textwrap
from collections.abc import Collection, Sequence

from scripts.compare.measures import ENSEMBLE, Arm
from scripts.compare.points import Point, is_number
from scripts.figures import panel
from scripts.figures.curves import EARLY, STEPS
from scripts.figures.metric import Metric, together
from scripts.figures.panel import Dots, Grid, Line, Panel, sequence

_COLORS = (
  *(panel.BLACK, panel.BLUE, panel.VERMILION, panel.GREEN, panel.PURPLE),
  panel.ORANGE,
)
_STYLES = ('-', '-.', (0, (5, 1.5)))  # Dotted: not finished; '--': ensembles.
_FEWEST_IN_ORDER = 3
_NAME_CHARACTERS = 30


def looks(arms: Sequence[Arm]) -> list[tuple[str, str | tuple]]:
  """Colour and style of each arm."""
  points = {arm.point.name: arm.point for arm in arms}
  several = len(arms) > len(points)
  series = [] if several else [one.name for one in _series(points.values())]
  ordered = dict(zip(series, sequence(len(series)), strict=True))
  rest = ((c, s) for s in itertools.cycle(_STYLES) for c in _COLORS)
  found = []
  for arm in arms:
    color = ordered.get(arm.point.name)
    color, style = (color, '-') if color else next(rest)
    dashed = several and arm.who == ENSEMBLE
    found.append((color, '--' if dashed else style))
  return found


def _series(points: Collection[Point]) -> list[Point]:
  """The most points that differ in nothing but one number, in its order."""
  alike: dict[tuple, list[tuple[float, Point]]] = collections.defaultdict(list)
  for point in points:
    for key, value in point.settings.items():
      if is_number(value):
        others = {**point.settings, key: None}
        alike[point.group, key, json.dumps(others)].append((value, point))
  longest = max(alike.values(), key=len, default=[])
  if len(longest) < _FEWEST_IN_ORDER:
    return []
  return [point for _, point in sorted(longest, key=lambda one: one[0])]


def grid(arms: Sequence[Arm], metrics: Sequence[Metric]) -> Grid:
  """Curves of each metric, and beside them the ends."""
  return [[_curves(arms, one), _ends(arms, one)] for one in metrics]


def _curves(arms: Sequence[Arm], metric: Metric) -> Panel:
  lines, burn_in, title = [], set(), 'learning curves'
  for arm, (color, style) in zip(arms, looks(arms), strict=True):
    name, seeds = _name(arm), len(metric.whole(arm.runs, arm.who))
    if points := metric.points(arm.runs, arm.who):
      lines.append(Line(name, color, points, style, seeds=seeds))
    for run in arm.runs:
      codistill = run.run['config']['codistill']
      # Groups of averaged members teach each other.
      one_group = codistill.get('group_size') in (None, codistill['members'])
      method = codistill.get('method', 'codistillation')
      averaged = method != 'codistillation' and one_group
      if codistill['exchange'] != 'none' and not averaged:
        burn_in.add(codistill['burn_in_steps'])
      curve = metric.curve(run, arm.who)
      if curve and not metric.ends([run], arm.who):
        title = 'learning curves (dotted: without an end)'
        lines.append(Line(name, color, together([curve]), ':', seeds=1))
  text = 'burn-in ends' if len(burn_in) == 1 else ''
  look = {'yscale': 'auto', 'early': EARLY}
  look['marks'] = dict.fromkeys(sorted(burn_in - {0}), text)
  return Panel(title, lines, STEPS, metric.label, **look)


def _ends(arms: Sequence[Arm], metric: Metric) -> Panel:
  rows = []
  for arm, (color, style) in zip(arms, looks(arms), strict=True):
    ends = metric.ends(arm.runs, arm.who)
    rows.append(Dots(_name(arm), color, ends, line=style))
  there = any(row.values for row in rows)
  title = 'at the end, a dot a seed' if there else 'no run has an end'
  return Panel(title, rows, metric.label)


def _name(arm: Arm) -> str:
  return textwrap.fill(arm.name, _NAME_CHARACTERS)

"""Learning curves, and a dot a seed for their ends, whose names are the legend.

A row of two panels a metric. Where points differ in one number, such as a
reload interval, colours have its order.
"""

from __future__ import annotations

import collections
import io
import itertools
import json
import pathlib
import statistics
import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from experiments.errors import UserError
from scripts.compare.measures import ENSEMBLE, Arm, Metric
from scripts.compare.points import Point, is_number

# Of text and axes, and of what is drawn without a colour of its own: a report
# puts the page's colour in its place.
INK = '#010203'
# Okabe & Ito (2008): told apart by colour-blind readers, too.
_COLORS = (INK, '#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00')
_LINES = ('-', (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (2, 1)))
_ENSEMBLE_LINE = (0, (3, 1.2))
# Colours in order, without the ends that a light or a dark page would hide.
_SCALES = (('viridis', 0.2, 0.85), ('YlOrRd', 0.4, 0.85))
_FEWEST_IN_ORDER = 3
# Of the steps: what is drawn from there on is in sight from bottom to top.
_EARLY = 0.25
# Wider than this, values are on a logarithmic axis.
_DECADE = 10
_NAME_CHARACTERS = 30
_BETWEEN_NAMES = 0.7  # In lines.
_LINE_INCHES = 0.16
_STYLE = {
  # The same for the same rows: no random ids, letters as outlines.
  'svg.hashsalt': 'codistillation',
  'svg.fonttype': 'path',
  'font.size': 9,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'grid.alpha': 0.15,
  'axes.formatter.useoffset': False,
  **dict.fromkeys(
    (
      'text.color',
      'axes.edgecolor',
      'axes.labelcolor',
      'xtick.color',
      'ytick.color',
      'grid.color',
    ),
    INK,
  ),
}


class Look(NamedTuple):
  """Colour and line of an arm."""

  color: str
  line: str | tuple


def looks(arms: Sequence[Arm]) -> list[Look]:
  """Of each arm: those of one point share a colour."""
  points = list({arm.point.name: arm.point for arm in arms}.values())
  found: dict[str, Look] = {}
  for name, low, high in _SCALES:
    series = _series([point for point in points if point.name not in found])
    scale = matplotlib.colormaps[name]
    for place, point in enumerate(series):
      share = low + (high - low) * place / (len(series) - 1)
      found[point.name] = Look(matplotlib.colors.to_hex(scale(share)), '-')
  rest = [point for point in points if point.name not in found]
  for place, point in enumerate(rest):
    turn, color = divmod(place, len(_COLORS))
    found[point.name] = Look(_COLORS[color], _LINES[turn % len(_LINES)])
  several = len(arms) > len(points)
  return [
    found[arm.point.name]._replace(line=_ENSEMBLE_LINE)
    if several and arm.who == ENSEMBLE
    else found[arm.point.name]
    for arm in arms
  ]


def _series(points: Sequence[Point]) -> list[Point]:
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


def draw_curves(
  axes: Axes, arms: Sequence[Arm], metric: Metric, baseline: Point
) -> None:
  """Means over seeds with bands; dotted, runs that are not finished."""
  del baseline
  late: list[float] = []
  for arm, look in zip(arms, looks(arms), strict=True):
    band = arm.band(metric)
    if band:
      steps, mean, low, high = zip(*band, strict=True)
      weak = len(arm.ends(metric)) == 1
      axes.plot(
        steps,
        mean,
        linestyle=look.line,
        color=look.color,
        linewidth=1.1 if weak else 1.9,
        alpha=0.8 if weak else 1,
      )
      axes.fill_between(
        steps, low, high, color=look.color, alpha=0.15, linewidth=0
      )
      late += _late(steps, low) + _late(steps, high)
    for curve in arm.unfinished(metric):
      steps, values = zip(*curve, strict=True)
      axes.plot(steps, values, ':', color=look.color, linewidth=1.1)
      late += _late(steps, values)
  axes.set(xlabel='step (updates of each member)', ylabel=metric.label)
  if _are_wide(late):
    axes.set_yscale('log')
    _label_decades(axes.yaxis)
  elif late:
    # The first evaluations would press all others together.
    margin = 0.06 * (max(late) - min(late)) or 0.06 * abs(late[0]) or 0.1
    axes.set_ylim(min(late) - margin, max(late) + margin)
  _mark_burn_in(axes, arms)


def _late(steps: Sequence[int], values: Sequence[float]) -> list[float]:
  return [
    value
    for step, value in zip(steps, values, strict=True)
    if step >= _EARLY * steps[-1]
  ]


def _are_wide(values: Sequence[float]) -> bool:
  return min(values, default=0) > 0 and max(values) > _DECADE * min(values)


def _label_decades(axis: Axis) -> None:
  axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
  axis.set_major_formatter('{x:g}')
  axis.set_minor_locator(NullLocator())


def _mark_burn_in(axes: Axes, arms: Sequence[Arm]) -> None:
  configs = [run.run['config'] for arm in arms for run in arm.point.runs]
  ends = {
    config['codistill']['burn_in_steps']
    for config in configs
    if config['codistill']['exchange'] != 'none'
  }
  for step in sorted(ends - {0}):
    axes.axvline(step, color=INK, linewidth=0.8, linestyle=':', alpha=0.6)
    if len(ends) == 1:
      axes.annotate(
        'burn-in ends',
        (step, 1),
        xycoords=('data', 'axes fraction'),
        xytext=(3, -2),
        textcoords='offset points',
        va='top',
        fontsize=8,
      )


def draw_ends(
  axes: Axes, arms: Sequence[Arm], metric: Metric, baseline: Point
) -> None:
  """A dot a seed, a bar for their mean; a sample of each line by its name."""
  every: list[float] = []
  names, places, bottom = _names(arms)
  for place, arm, look in zip(places, arms, looks(arms), strict=True):
    ends = [*arm.ends(metric).values()]
    every += ends
    several = len(ends) > 1
    axes.plot(
      ends,
      [place] * len(ends),
      'o',
      color=look.color,
      # A single one shows no spread.
      markerfacecolor=look.color if several else 'none',
      alpha=0.7 if several else 1,
      markersize=5,
    )
    if several:
      axes.vlines(
        statistics.fmean(ends),
        place - 0.5,
        place + 0.5,
        look.color,
        linewidth=2,
      )
    if several and arm.point is baseline:
      axes.axvline(
        statistics.fmean(ends), color=INK, linewidth=0.8, alpha=0.4, zorder=0
      )
    axes.annotate(
      '',
      xy=(0, place),
      xycoords=axes.get_yaxis_transform(),
      xytext=(-26, 0),
      textcoords='offset points',
      arrowprops={
        'arrowstyle': '-',
        'color': look.color,
        'linestyle': look.line,
        'linewidth': 1.9,
        'shrinkA': 0,
        'shrinkB': 5,
      },
    )
  if _are_wide(every):
    axes.set_xscale('log')
    _label_decades(axes.xaxis)
  elif every:
    axes.xaxis.set_major_locator(MaxNLocator(5))
  else:
    axes.set_xticks([])
    axes.text(
      0.5, 0.5, 'no run is finished', ha='center', transform=axes.transAxes
    )
  axes.set_yticks(places, names)
  axes.tick_params('y', length=0, pad=30)
  axes.grid(visible=False, axis='y')
  axes.set(ylim=(bottom, 0), xlabel=f'{metric.short}, at the end')


Panel = Callable[[Axes, Sequence[Arm], Metric, Point], None]
PANELS: tuple[Panel, ...] = (draw_curves, draw_ends)


def _names(arms: Sequence[Arm]) -> tuple[list[str], list[float], float]:
  """Names in lines, how far down each stands, and where they end, in lines."""
  names = [textwrap.fill(arm.name, _NAME_CHARACTERS) for arm in arms]
  heights = [name.count('\n') + 1 + _BETWEEN_NAMES for name in names]
  bottoms = list(itertools.accumulate(heights))
  places = [
    bottom - height / 2 for bottom, height in zip(bottoms, heights, strict=True)
  ]
  return names, places, bottoms[-1]


def _height(arms: Sequence[Arm]) -> float:
  """In inches, of a panel with all the names."""
  *_, lines = _names(arms)
  return max(3.2, 0.8 + _LINE_INCHES * lines)


def seeds_note(arms: Sequence[Arm], metric: Metric) -> str:
  """What the lines are: 'mean of 3 seeds, shaded from least to greatest'."""
  counts = sorted({len(arm.ends(metric)) for arm in arms} - {0})
  parts = []
  if counts and counts[-1] > 1:
    seeds = ' or '.join(map(str, counts))
    parts.append(f'mean of {seeds} seeds, shaded from least to greatest')
  elif counts:
    parts.append('one seed each')
  if any(arm.unfinished(metric) for arm in arms):
    parts.append('dotted: not finished')
  return '; '.join(parts)


def save(
  title: str,
  arms: Sequence[Arm],
  metrics: Sequence[Metric],
  baseline: Point,
  path: pathlib.Path,
) -> None:
  """Draws everything in one picture.

  Args:
    title: what all points have in common.
    arms: at least one.
    metrics: a row of panels each.
    baseline: whose end is marked.
    path: where to; its suffix decides the format.

  Raises:
    UserError: if that is none.
    OSError: if it cannot be written.
  """
  formats = sorted(FigureCanvasBase.get_supported_filetypes())
  if path.suffix[1:].lower() not in formats:
    raise UserError(
      f'the suffix of --out={path} is no format of pictures; it can be '
      f'.{", .".join(formats)}'
    )
  with plt.style.context(['default', _STYLE]):
    figure, axes = plt.subplots(
      len(metrics),
      len(PANELS),
      figsize=(10, 0.4 + _height(arms) * len(metrics)),
      layout='constrained',
      squeeze=False,
    )
    note = seeds_note(arms, metrics[0])
    figure.suptitle(', '.join(filter(None, (title, note))), fontsize=10)
    for metric, row in zip(metrics, axes, strict=True):
      for panel, one in zip(PANELS, row, strict=True):
        panel(one, arms, metric, baseline)
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
      figure.savefig(path, dpi=150)
    finally:
      plt.close(figure)


def svg(
  panel: Panel, arms: Sequence[Arm], metric: Metric, baseline: Point
) -> str:
  """One panel alone, transparent."""
  with plt.style.context(['default', _STYLE]):
    figure = Figure(figsize=(4.6, _height(arms)), layout='constrained')
    panel(figure.subplots(), arms, metric, baseline)
    out = io.StringIO()
    figure.savefig(out, format='svg', transparent=True, metadata={'Date': None})
  return out.getvalue()

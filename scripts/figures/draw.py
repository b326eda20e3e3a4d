"""Pictures from data: panels of lines over something, or of dots by arm.

The mean over seeds is a line or a bar; a band or dots show all of them. A line
of fewer than three seeds is thin and pale, and the panel's title says so. Lines
are named where they end; if there is no room, by one legend below all panels;
or by rows of dots that show where they end.
"""

from __future__ import annotations

import itertools
import pathlib
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure as Canvas
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from scripts.figures.panel import DARK_GRAY, Grid, Line, Panel

_WIDTH = 10  # Inches: letters of 10 points are 10 pixels high in 720.
# The same for the same rows: no dates, no random ids, letters as outlines. The
# ground is white on a dark web page, too: black lines and pale bands need it.
_STYLE = {
  'svg.hashsalt': 'codistillation',
  'svg.fonttype': 'path',
  'savefig.facecolor': 'white',
  'savefig.dpi': 150,
  'font.size': 10,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'axes.titlesize': 10.5,
  'figure.titlesize': 12.5,
  'figure.titleweight': 'bold',
  'grid.alpha': 0.3,
  'legend.frameon': False,
  'legend.borderpad': 0,
  'legend.borderaxespad': 0.4,
  'legend.title_fontsize': 10,
}
# Without the date, and the version of the library.
_METADATA = {'svg': {'Date': None}, 'png': {'Software': None}}
_FEW = 3  # A line of fewer seeds is a weak one.
_WRAP = 21  # Letters in a line of a name.
_LINE = 13  # Points from one line of a name to the next.
_COLUMNS = 3  # Of a legend.
_MIDDLES = {statistics.fmean: 'mean', statistics.median: 'median'}
_AROUND = 0.95  # Inches of a row of panels around its axes.


def picture(
  title: str,
  grid: Grid,
  variant: str,
  files: Mapping[str, pathlib.Path | BinaryIO],
) -> None:
  """Writes one picture.

  Args:
    title: above all panels.
    grid: the panels.
    variant: for their titles.
    files: where to, by the format.

  Raises:
    ValueError: for a format that is none.
  """
  # The user's own matplotlibrc has no say.
  with plt.style.context(['default', _STYLE]):
    canvas = draw(title, grid, variant)
    try:
      for kind, file in files.items():
        canvas.savefig(file, format=kind, metadata=_METADATA.get(kind))
    finally:
      plt.close(canvas)


def draw(title: str, grid: Grid, variant: str) -> Canvas:
  """The panels, laid out; arguments as `picture`."""
  heights = [max(p.height for p in row) + _AROUND for row in grid]
  panels = [panel for row in grid for panel in row]
  rows = [row for panel in panels if not panel.lines for row in panel.content]
  there = {row.label for row in rows if row.line}
  direct = not there and all(map(_has_room, panels))
  names = {n.label: n for panel in panels for n in panel.lines}
  names = {} if direct else {k: n for k, n in names.items() if k not in there}
  canvas, axes = plt.subplots(
    len(grid),
    len(grid[0]),
    figsize=(_WIDTH, sum(heights) + 0.4 + 0.2 * -(-len(names) // _COLUMNS)),
    height_ratios=heights,
    squeeze=False,
  )
  canvas.suptitle(title, x=0.01, ha='left')
  for one, panel in zip(axes.flat, panels, strict=True):
    one.set_title(_title(panel, variant), loc='left')
    (_draw_lines if panel.lines else _draw_dots)(one, panel)
  for some, row in zip(axes, grid, strict=True):
    _share(some, row)
  note = _note(panels)
  if names or note:
    lines = names.values()
    handles = [
      # One place alone is not a line.
      Line2D([], [], color=n.color, marker=n.marker, ls='')
      if len(n.points) == 1
      else Line2D([], [], color=n.color, ls=n.style, lw=2)
      for n in lines
    ]
    keys = {'loc': 'outside lower center', 'ncols': _COLUMNS, 'title': note}
    canvas.legend(handles, names, **keys)
  pairs = zip(axes.flat, panels if direct else [], strict=False)
  labels = [(one, _name_ends(one, panel)) for one, panel in pairs]
  ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1).execute(canvas)
  # Names that move up or down do not change the layout.
  for one, some in labels:
    _move_apart(one, some)
  return canvas


def _has_room(panel: Panel) -> bool:
  """Whether its lines end at the right, where there is room for their names."""
  names = [name for line in panel.lines for name in _wrap(line.label)]
  right = max((line.last for line in panel.lines), default=0)
  return _LINE * len(names) < 72 * panel.height and all(
    line.last > 0.75 * right for line in panel.lines
  )


def _share(axes: Sequence[Axes], panels: Sequence[Panel]) -> None:
  """Dots of the same arms are named once, of the same measure on one scale."""
  if any(panel.lines for panel in panels):
    return
  for one, panel in zip(axes[1:], panels[1:], strict=True):
    names = [[dots.label for dots in p.content] for p in (panels[0], panel)]
    if names[0] == names[1]:
      one.set_yticks(one.get_yticks(), [''] * len(names[0]))
      one.set_ylabel('')
    if panel.xlabel == panels[0].xlabel:
      one.sharex(axes[0])
      one.autoscale(axis='x')


def _title(panel: Panel, variant: str) -> str:
  """With the number of seeds, and that of those of thin lines."""
  title = panel.title.format(f':{variant}' if variant else 'the paper’s scale')
  seeds = sorted({line.seeds for line in panel.lines if line.seeds})
  if not seeds:
    return title
  thin = ' or '.join(str(number) for number in seeds if number < _FEW)
  thick = ' or '.join(str(number) for number in seeds if number >= _FEW)
  title += f', {thick or thin} seed{"s" * ((thick or thin) != "1")}'
  return f'{title} (thin: {thin})' if thick and thin else title


def _note(panels: Sequence[Panel]) -> str:
  """What lines, bands, bars and dots are; a title may say the last."""
  bands = [
    panel.over
    for panel in panels
    if any(len(ys) > 1 for n in panel.lines for ys in n.points.values())
  ]
  said = any('a dot' in panel.title for panel in panels)
  # The paper's numbers are single ones, or have a title that says it.
  bars = [
    _MIDDLES[panel.middle]
    for panel in panels
    if not panel.lines and not panel.title.startswith('the paper')
    if any(len(row.values) > 1 for row in panel.content)
  ]
  over, dots = _in_turn(bands), 'bar: ' if said else 'a dot a seed, bar: their '
  line = f'line: mean over {over}, band: from the least to the greatest'
  return '; '.join([line] * bool(bands) + [dots + _in_turn(bars)] * bool(bars))


def _in_turn(names: Sequence[str]) -> str:
  """'mean', or 'mean, on the right median' if panels differ."""
  return ', on the right '.join(dict.fromkeys(names))


def _draw_lines(axes: Axes, panel: Panel) -> None:
  shown = _without_far_levels(axes, panel)
  for line in shown:
    x, values = list(line.points), line.points.values()
    weak = line.seeds is not None and line.seeds < _FEW
    axes.plot(
      x,
      line.mean,
      linestyle=line.style,
      marker=line.marker,
      markersize=5,
      color=line.color,
      linewidth=1 if weak or line.level else 1.8,
      alpha=0.8 if weak else 1,
      label=line.label,
    )
    if max(map(len, values)) > 1:
      band = list(map(min, values)), list(map(max, values))
      alpha = 0.1 if line.level else 0.16
      axes.fill_between(x, *band, color=line.color, alpha=alpha, linewidth=0)
  _set_scales(axes, panel, shown)
  for place, text in panel.marks.items():
    _mark(axes, place, text)
  if panel.zero is not None:
    axes.axhline(panel.zero, color=DARK_GRAY, linewidth=0.8)
  axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel)


def _without_far_levels(axes: Axes, panel: Panel) -> list[Line]:
  """The lines but for levels farther away than all others are apart."""
  others = [y for n in panel.lines if not n.level for y in n.mean]
  low, high = min(others), max(others)
  shown = []
  for line in panel.lines:
    y = line.mean[0]
    if not line.level or low == high or 2 * low - high <= y <= 2 * high - low:
      shown.append(line)
      continue
    arrow, place = ('↑', 0.98) if y > high else ('↓', 0.08)
    text = f'{arrow} {line.label}: {y:.3g}'
    where = {'xycoords': 'axes fraction', 'va': 'top'}
    axes.annotate(text, (0.02, place), color=_dark(line.color), **where)
  return shown


def _set_scales(axes: Axes, panel: Panel, lines: Sequence[Line]) -> None:
  seen = [y for line in lines for y in line.values(panel.early)]
  if panel.yscale == 'log' or (
    panel.yscale == 'auto' and 0 < 10 * min(seen) < max(seen)
  ):
    seen = [y for line in lines for y in line.values(0)]
    axes.set_yscale('log')
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter('{x:g}')
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(min(seen) / 1.15, max(seen) * 1.15)
  else:
    margin = 0.06 * (max(seen) - min(seen)) or 0.1
    axes.set_ylim(panel.ylim or (min(seen) - margin, max(seen) + margin))
  axes.set_xscale(panel.xscale)
  if panel.xticks:
    axes.set_xticks(panel.xticks, [f'{x:,g}' for x in panel.xticks])
    axes.set_xticks([], minor=True)
  else:
    _few_ticks(axes)


def _few_ticks(axes: Axes) -> None:
  axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
  axes.xaxis.set_major_formatter('{x:,g}')


def _mark(axes: Axes, place: float, text: str) -> None:
  """A dotted line, named at that end of it from which curves are farther."""
  to_axes = axes.transData + axes.transAxes.inverted()
  lines = [line for line in axes.get_lines() if line.get_label()[0] != '_']
  curves = [to_axes.transform(line.get_xydata()).T for line in lines]
  start = to_axes.transform((place, 1))[0]
  left = start > 0.45
  beside = np.linspace(start, start + (-0.3 if left else 0.3), 30)
  heights = np.concatenate([np.interp(beside, *curve) for curve in curves])
  seen = heights[(heights > 0) & (heights < 1)]
  high = not seen.size or 1 - seen.max() > seen.min()
  axes.axvline(place, color=DARK_GRAY, linewidth=0.8, linestyle=':')
  axes.annotate(
    text,
    (place, 0.985 if high else 0.015),
    xycoords=('data', 'axes fraction'),
    xytext=(-3 if left else 3, 0),
    textcoords='offset points',
    ha='right' if left else 'left',
    va='top' if high else 'bottom',
    color=DARK_GRAY,
  )


def _draw_dots(axes: Axes, panel: Panel) -> None:
  for place, row in enumerate(panel.content):
    places = [place] * len(row.values)
    look = {'color': row.color, 'alpha': 0.6, 'markersize': 6}
    axes.plot(row.values, places, row.marker, **look)
    if len(row.values) > 1:
      middle = panel.middle(row.values)
      axes.vlines(middle, place - 0.3, place + 0.3, row.color, linewidth=2.5)
  if panel.zero is not None:
    axes.axvline(panel.zero, color=DARK_GRAY, linewidth=0.8)
  number = len(panel.content)
  axes.set_yticks(range(number), [row.label for row in panel.content])
  axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel, ylim=(number - 0.5, -0.5))
  axes.tick_params(axis='y', length=0)
  _few_ticks(axes)
  if not any(row.values for row in panel.content):
    axes.set_xticks([])
  _draw_samples(axes, panel)


def _draw_samples(axes: Axes, panel: Panel) -> None:
  """A piece of line between a name and its dots."""
  for place, row in enumerate(panel.content):
    if row.line:
      axes.tick_params(axis='y', pad=30)
      axes.annotate(
        '',
        (0, place),
        (-28, 0),
        xycoords=axes.get_yaxis_transform(),
        textcoords='offset points',
        arrowprops={
          'arrowstyle': '-',
          'color': row.color,
          'linestyle': row.line,
          'linewidth': 1.8,
          'shrinkA': 0,
          'shrinkB': 5,
        },
      )


def _wrap(label: str) -> list[str]:
  """Its lines: broken after the first comma if it is too long for one."""
  parts = label.replace(', ', ',\n', len(label) > _WRAP).split('\n')
  return [line for part in parts for line in textwrap.wrap(part, _WRAP)]


def _dark(color: str) -> str:
  """Of a name: dark enough to be read on white."""
  return to_hex([0.72 * part for part in to_rgb(color)])


def _name_ends(axes: Axes, panel: Panel) -> list[Annotation]:
  """Names at the right of lines, if there is more than one."""
  drawn = {line.get_label() for line in axes.get_lines()}
  return [
    axes.annotate(
      '\n'.join(_wrap(line.label)),
      (line.last, line.mean[-1]),
      xytext=(1.05, 0.5),
      textcoords='axes fraction',
      va='center',
      color=_dark(line.color),
      annotation_clip=False,
      arrowprops={
        'arrowstyle': '-',
        'relpos': (0, 0.5),
        'color': line.color,
        'linestyle': line.style,
        'shrinkA': 1,
        'shrinkB': 1,
      },
    )
    for line in panel.lines
    if len(panel.lines) > 1 and line.label in drawn
  ]


def _move_apart(axes: Axes, names: Sequence[Annotation]) -> None:
  """Moves names from the heights of their lines until none touches another."""
  frame = axes.get_window_extent()
  line = _LINE * axes.figure.dpi / 72 / frame.height
  heights = [line * len(name.get_text().splitlines()) for name in names]
  wanted = [
    (axes.transData.transform(name.xy)[1] - frame.y0) / frame.height
    for name in names
  ]
  for name, place in zip(names, spread(wanted, heights), strict=True):
    name.set_position((1.05, place))


def spread(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
  """Middles from 0 to 1 near the wanted ones, so that no two labels touch."""
  places = list(wanted)
  order = sorted(range(len(places)), key=lambda index: (places[index], index))
  for _ in range(1_000):
    apart = True
    for below, above in itertools.pairwise(order):
      gap = (heights[below] + heights[above]) / 2
      overlap = gap - (places[above] - places[below])
      if overlap > 1e-4:
        places[below] -= overlap / 2
        places[above] += overlap / 2
        apart = False
    for index in order:
      half = heights[index] / 2
      places[index] = min(max(places[index], half), 1 - half)
    if apart:
      break
  return places

"""What a picture shows: panels of lines along something, or of dots by arm."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence

import matplotlib
from matplotlib.colors import to_hex

from scripts.figures.metric import Points

# Okabe & Ito (2008), told apart by colour-blind readers, too.
BLACK, GRAY, DARK_GRAY = '#000000', '#999999', '#555555'
ORANGE, VERMILION, PURPLE = '#E69F00', '#D55E00', '#CC79A7'
GREEN, BLUE = '#009E73', '#0072B2'


@dataclasses.dataclass(frozen=True)
class Line:
  """The mean over seeds along something, with a band from least to greatest.

  Attributes:
    label: its name.
    color: of line, band and name.
    points: the values of all seeds at each place.
    style: Matplotlib's.
    marker: at each place, if any.
    seeds: how many it is of; None if that is not to be said, as of the paper's.
    level: whether others are compared with it. One that is far from all of them
      is a note at the edge, where a line would squeeze the others.
  """

  label: str
  color: str
  points: Points
  style: str | tuple = '-'
  marker: str = ''
  seeds: int | None = None
  level: bool = False

  @property
  def mean(self) -> list[float]:
    """At each place."""
    return [statistics.fmean(values) for values in self.points.values()]

  @property
  def last(self) -> float:
    """Where it ends."""
    return max(self.points)

  def values(self, early: float) -> list[float]:
    """Of all seeds, after a share of its way."""
    first = min(self.points)
    start = first + early * (self.last - first)
    return [y for x, some in self.points.items() if x >= start for y in some]


@dataclasses.dataclass(frozen=True)
class Dots:
  """A row of a panel: a dot a seed and a bar for their mean, or their range.

  Attributes:
    label: its name.
    color: of dots and bar.
    values: of all seeds.
    marker: Matplotlib's.
    line: style of the lines of that name, which are then named here alone.
  """

  label: str
  color: str
  values: Sequence[float]
  marker: str = 'o'
  line: str | tuple = ''


@dataclasses.dataclass(frozen=True)
class Panel:
  """Axes with lines, or with rows of dots.

  Attributes:
    title: '{}' in it is the variant.
    content: all of one kind.
    xlabel: what is along.
    ylabel: what is up.
    xscale: Matplotlib's.
    yscale: 'auto' is logarithmic where what is in sight spans a decade.
    xticks: where they are; by default Matplotlib chooses.
    ylim: from where to where; by default all that is drawn after `early`.
    early: share of a line after which it is in sight from bottom to top.
    zero: where a thin line is drawn from which others are counted.
    marks: what happens at a place.
    middle: of dots: what the bar shows.
    over: of lines: what a place has several values of.
  """

  title: str
  content: Sequence[Line] | Sequence[Dots]
  xlabel: str
  ylabel: str = ''
  xscale: str = 'linear'
  yscale: str = 'linear'
  xticks: Sequence[float] = ()
  ylim: tuple[float, float] | None = None
  early: float = 0.0
  zero: float | None = None
  marks: Mapping[float, str] = dataclasses.field(default_factory=dict)
  middle: Callable[[Sequence[float]], float] = statistics.fmean
  over: str = 'seeds'

  @property
  def lines(self) -> Sequence[Line]:
    """Its lines; [] if it has dots."""
    return self.content if isinstance(self.content[0], Line) else []

  @property
  def height(self) -> float:
    """Inches of its axes."""
    if self.lines:
      return 2.35
    breaks = max(row.label.count('\n') for row in self.content)
    return (0.27 + 0.17 * breaks) * len(self.content)


# Rows of panels, as many in each.
Grid = Sequence[Sequence[Panel]]


def along(label: str, color: str, points: Points, **look) -> list[Line]:
  """The line through all places that have values; [] if there are none."""
  found = {x: points[x] for x in sorted(points) if points[x]}
  seeds = min(map(len, found.values()), default=0)
  look = {'marker': 'o', 'seeds': seeds, **look}
  return [Line(label, color, found, **look)] if found else []


def sequence(number: int) -> list[str]:
  """Colours for an ordered variable, from its least value to its greatest."""
  places = [0.78 * place / max(number - 1, 1) for place in range(number)]
  return [to_hex(matplotlib.colormaps['viridis'](place)) for place in places]

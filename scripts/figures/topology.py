"""Who learns from whom: how alike members become, and what each gains."""

from __future__ import annotations

import statistics

from matplotlib.axes import Axes

from experiments.results import Result
from scripts import markdown
from scripts.figures.arms import (
  LOSS,
  TOP_1,
  Curve,
  Rows,
  mean_curve,
  one_a_seed,
)
from scripts.figures.figure import (
  COMMAND,
  Figure,
  command_cell,
  count_cell,
)

# Okabe & Ito.
_GRAPHS = {
  'all': ('#D55E00', '-'),
  'random': ('#CC79A7', '-'),
  'star': ('#E69F00', '-'),
  'ring': ('#0072B2', '-'),
  'pairs': ('#009E73', '-'),
  'none': ('#000000', '--'),
}
Points = dict[tuple[int, str], list[Result]]


class Topology(Figure):
  """Disagreement over steps of the most members; every graph at the end."""

  configs = ('topology',)
  titles = ('ours, :{variant}, the most members', 'ours, :{variant}')

  def __init__(self, title: str):
    """Takes the picture's title; the paper has no such figure."""
    self.title = title

  def draw_left(self, axes: Axes, rows: Rows) -> None:
    """On how many examples two members differ."""
    points = _points(rows)
    most = max((members for members, _ in points), default=0)
    for (members, graph), runs in points.items():
      if members != most:
        continue
      color, line = _GRAPHS[graph]
      x, mean, low, high = mean_curve([_disagreement(run) for run in runs])
      axes.plot(x, mean, line, color=color, label=f'{graph} (×{len(runs)})')
      axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set(
      xlabel='step (updates of each member)',
      ylabel='two members differ on (% of held-out examples)',
      yscale='log',
    )
    axes.yaxis.set_major_formatter('{x:g}')
    axes.yaxis.set_minor_formatter('{x:g}')
    axes.tick_params(axis='y', which='minor', labelsize=7)
    if axes.lines:
      axes.legend(title=f'{most} members')

  def draw_ours(self, axes: Axes, rows: Rows) -> None:
    """A dot a seed, the mean of its members; a bar for their mean."""
    points = _points(rows)
    for place, ((_, graph), runs) in enumerate(points.items()):
      color, _ = _GRAPHS[graph]
      values = [_of_members(LOSS, run) for run in runs]
      axes.plot(
        [place] * len(values), values, 'o', color=color, alpha=0.5, ms=4
      )
      mean = statistics.fmean(values)
      axes.hlines(mean, place - 0.3, place + 0.3, color, linewidth=2)
    axes.set_xticks(
      range(len(points)),
      [f'{graph}\n{members}' for members, graph in points],
      fontsize=7,
      rotation=45,
    )
    axes.set(
      xlabel='who teaches whom, and how many members',
      ylabel=f'a member: {LOSS.label}',
    )
    axes.grid(axis='x', visible=False)

  def table(self, rows: Rows, variant: str) -> str:
    """A line a graph and number of members."""
    lines = [
      [
        str(members),
        graph,
        LOSS.text([_of_members(LOSS, run) for run in runs]),
        TOP_1.text([_of_members(TOP_1, run) for run in runs]),
        LOSS.text(LOSS.ends(runs, 'ensemble')),
        TOP_1.text(TOP_1.ends(runs, 'ensemble')),
        TOP_1.text([_disagreement(run)[-1][1] for run in runs]),
        megabytes(runs, 'publish', members),
        megabytes(runs, 'load', members),
        count_cell(runs),
        command_cell('topology', variant, runs),
      ]
      for (members, graph), runs in _points(rows).items()
    ]
    header = [
      'members',
      'who teaches whom',
      f'a member: {LOSS.short}',
      f'a member: {TOP_1.short}',
      f'ensemble: {LOSS.short}',
      f'ensemble: {TOP_1.short}',
      'two members differ on (%)',
      'published, a member (MB)',
      'loaded, a member (MB)',
      'runs',
      COMMAND,
    ]
    return markdown.table(header, lines) if lines else ''


def megabytes(runs: list[Result], event: str, members: int) -> str:
  """What a member exchanged in a whole run, in 10⁶ bytes."""
  total = [run.run.get('exchanged_bytes', {}).get(event, 0) for run in runs]
  return f'{statistics.fmean(total) / members / 1e6:.2f}'


def _points(rows: Rows) -> Points:
  """Finished runs by number of members and graph."""
  points: Points = {}
  for run in rows.get('topology', ()):
    codistill = run.run['config']['codistill']
    if not set(run.point) <= {
      'codistill.members',
      'codistill.topology',
      'codistill.exchange',
    } or not TOP_1.ends([run], 'ensemble'):
      continue
    alone = codistill['exchange'] == 'none'
    graph = 'none' if alone else codistill['topology']
    points.setdefault((codistill['members'], graph), []).append(run)
  order = list(_GRAPHS)
  return {
    key: one_a_seed(points[key])
    for key in sorted(points, key=lambda key: (key[0], order.index(key[1])))
  }


def _of_members(metric, run: Result) -> float:
  members = range(run.run['config']['codistill']['members'])
  return statistics.fmean(
    value for member in members for value in metric.ends([run], member)
  )


def _disagreement(run: Result) -> Curve:
  return [
    (row['step'], 100 * row['disagreement'])
    for row in run.rows
    if row['member'] == 'ensemble' and row.get('disagreement')
  ]

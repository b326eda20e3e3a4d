"""Is randomness the benefit: what members share, ours beside Figure 2b."""

from __future__ import annotations

import itertools
import statistics

from matplotlib.axes import Axes

from experiments.results import Result
from scripts import markdown
from scripts.figures.arms import (
  CODISTILL,
  ENSEMBLE,
  SAME,
  SYNC,
  TOP_1,
  Rows,
  one_a_seed,
)
from scripts.figures.curves import BesideCurves
from scripts.figures.figure import (
  COMMAND,
  command_cell,
  count_cell,
  draw_reference,
  gain_cell,
  gain_header,
)

_SOURCES = ('initialization', 'order', 'partition')


class Diversity(BesideCurves):
  """The end of training for each combination of own and same."""

  configs = ('imagenet_codistill', 'imagenet_diversity')

  def has_rows(self, rows: Rows) -> bool:
    """Its own rows: codistillation's alone are no comparison."""
    own = {'imagenet_diversity': rows.get('imagenet_diversity', ())}
    return any(
      self._metrics[0].whole(runs, 0) for runs in _points(own).values()
    )

  def draw_ours(self, axes: Axes, rows: Rows) -> None:
    """A dot a seed, a bar for their mean."""
    metric = self._metrics[0]
    points = _points(rows)
    for place, (key, runs) in enumerate(points.items()):
      values = metric.ends(runs, 0)
      color = (CODISTILL if key[-1] == 'own' else SAME).color
      axes.plot(
        [place] * len(values), values, 'o', color=color, alpha=0.5, ms=4
      )
      if values:
        axes.hlines(
          statistics.fmean(values), place - 0.3, place + 0.3, color, linewidth=2
        )
    for arm in (SYNC, ENSEMBLE):
      draw_reference(axes, arm, metric, rows)
    axes.set_xticks(
      range(len(points)),
      ['\n'.join((*key, f'×{len(runs)}')) for key, runs in points.items()],
      fontsize=7.5,
    )
    axes.set(
      xlabel='initialisation, order and partition of the two members; seeds',
      ylabel=f'{metric.label}, at the end',
    )
    axes.grid(axis='x', visible=False)
    if axes.get_legend_handles_labels()[0]:
      axes.legend()

  def table(self, rows: Rows, variant: str) -> str:
    """One member, both averaged, and how far they agree."""
    metric = self._metrics[0]
    lines = []
    for key, runs in _points(rows).items():
      apart = [
        100 * row['disagreement']
        for run in runs
        for row in run.rows
        if row['kind'] == 'final' and 'disagreement' in row
      ]
      lines.append(
        [
          ', '.join(key),
          *(one.text(one.ends(runs, 0)) for one in self._metrics),
          gain_cell(metric, runs, 0, SYNC, rows),
          metric.text(metric.ends(runs, 'ensemble')),
          TOP_1.text(apart),
          count_cell(runs),
          command_cell(runs[0].run['experiment'], variant, runs),
        ]
      )
    header = [
      'initialisation, order, partition',
      *(f'one member: {one.short}' for one in self._metrics),
      gain_header(metric),
      f'both averaged: {metric.short}',
      'members disagree on (%)',
      'runs',
      COMMAND,
    ]
    return markdown.table(header, lines) if lines else ''


def _points(rows: Rows) -> dict[tuple[str, ...], list[Result]]:
  """Runs by their sources of diversity, own before same."""
  points: dict[tuple[str, ...], list[Result]] = {}
  for result in (
    *CODISTILL.runs(rows),
    *SAME.runs(rows),
    *rows.get('imagenet_diversity', ()),
  ):
    if not {f'diversity.{source}' for source in _SOURCES} >= set(result.point):
      continue
    diversity = result.run['config']['diversity']
    key = tuple(diversity[source] for source in _SOURCES)
    points.setdefault(key, []).append(result)
  return {
    key: one_a_seed(points[key])
    for key in itertools.product(('own', 'same'), repeat=len(_SOURCES))
    if key in points
  }

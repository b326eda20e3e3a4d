"""Learning curves: Figures 1 to 4 of the paper, and our controls on images."""

from __future__ import annotations

import dataclasses
import statistics

from matplotlib.axes import Axes

from experiments.results import Result
from scripts import markdown
from scripts.figures.arms import (
  Arm,
  Curve,
  Metric,
  Rows,
  crossing,
  mean_curve,
  seeds_text,
)
from scripts.figures.figure import (
  COMMAND,
  Figure,
  command_cell,
  count_cell,
  gain_cell,
  gain_header,
  mark_step,
)

# Of the steps: what is drawn from there on is in sight from bottom to top.
_EARLY = 0.25
# Where a legend of more arms than this would cover them.
_FEW_ARMS = 7
_BELOW = {'loc': 'upper center', 'bbox_to_anchor': (0.5, -0.14), 'ncols': 2}


@dataclasses.dataclass(frozen=True)
class Curves(Figure):
  """A metric over steps, or over hours on the paper's cluster.

  Attributes:
    title: of the picture.
    paper: where arms are looked for in the paper, by its figures' names.
    metric: of our panel.
    arms: a curve each, in both panels where there is one.
    baseline: whose best value the others are to reach.
    paper_label: what the paper's panel has upwards.
    paper_range: and how far it goes.
    paper_steps: where the paper's plotted window ends; its markers go on.
    also: metrics whose ends the table has, too.
    paper_note: what else than ours the paper's numbers are of, for the table.
    by_hours: the horizontal axis is steps times the paper's seconds a step.
  """

  title: str
  paper: tuple[str, ...]
  metric: Metric
  arms: tuple[Arm, ...]
  baseline: Arm
  paper_label: str
  paper_range: tuple[float, float]
  paper_steps: float = float('inf')
  also: tuple[Metric, ...] = ()
  by_hours: bool = False
  paper_note: str = ''

  @property
  def configs(self) -> tuple[str, ...]:
    """Those of its arms."""
    return tuple(dict.fromkeys(arm.config for arm in self.arms))

  def has_rows(self, rows: Rows) -> bool:
    """Whether half of the arms have runs that got to their end."""
    return 2 * sum(bool(self._runs(arm, rows)) for arm in self.arms) >= len(
      self.arms
    )

  def draw_paper(self, axes: Axes) -> None:
    """Single runs, without error bars: so the paper shows them."""
    for arm in self.arms:
      curve = self.paper_curve(arm)
      if curve:
        x, y = zip(*curve, strict=True)
        axes.plot(x, y, arm.line, color=arm.color, label=arm.label)
    axes.set(
      xlabel='hours' if self.by_hours else 'step',
      ylabel=self.paper_label,
      ylim=self.paper_range,
    )
    axes.legend()

  def draw_ours(self, axes: Axes, rows: Rows) -> None:
    """The mean over seeds and, shaded, from the least to the greatest."""
    late, burn_ins = [], set()
    for arm in self.arms:
      runs = self._runs(arm, rows)
      if not runs:
        continue
      x, mean, low, high = mean_curve(
        [self.metric.curve(run, arm.who) for run in runs]
      )
      from_here = [step > _EARLY * x[-1] for step in x]
      late += [
        value
        for values in (low, high)
        for value, seen in zip(values, from_here, strict=True)
        if seen
      ]
      x = [step * self._unit(arm) for step in x]
      axes.fill_between(x, low, high, color=arm.color, alpha=0.18, linewidth=0)
      label = f'{arm.label} ({seeds_text(len(runs))})'
      axes.plot(x, mean, arm.line, color=arm.color, label=label)
      codistill = runs[0].run['config']['codistill']
      if codistill['exchange'] != 'none' and not self.by_hours:
        burn_ins.add(codistill['burn_in_steps'])
    for step in sorted(burn_ins):
      mark_step(axes, step, 'burn-in ends', 0.01)
    margin = 0.06 * (max(late) - min(late)) or 0.1
    axes.set(
      xlabel='hours at the paper’s seconds a step'
      if self.by_hours
      else 'step (updates of each member)',
      ylabel=self.metric.label,
      ylim=(min(late) - margin, max(late) + margin),
    )
    axes.legend(**(_BELOW if len(self.arms) > _FEW_ARMS else {}))

  def table(self, rows: Rows, variant: str) -> str:
    """Where arms end, and when they get to the baseline's best value."""
    best = self.metric.best
    our_baseline = self._our_curve(self.baseline, rows)
    paper_baseline = self.paper_curve(self.baseline)
    unit = 'hours' if self.by_hours else 'steps'
    metrics = (self.metric, *self.also)

    def reached(curve: Curve, baseline: Curve) -> str:
      if not curve or not baseline:
        return '–'
      at = crossing(curve, best(y for _, y in baseline), best)
      if at is None:
        return 'not reached'
      return f'{at:.2f}' if self.by_hours else f'{at:,.0f}'

    lines = []
    for arm in self.arms:
      runs, paper = arm.runs(rows), self.paper_curve(arm)
      line = [
        arm.label,
        *(one.text(one.ends(runs, arm.who)) for one in metrics),
        self.metric.text(self.metric.bests(runs, arm.who)),
        '–'
        if arm.label == self.baseline.label
        else gain_cell(self.metric, runs, arm.who, self.baseline, rows),
        reached(self._our_curve(arm, rows), our_baseline),
        f'{paper[-1][1]:g}' if paper else '–',
        reached(paper, paper_baseline),
        count_cell(runs),
        command_cell(arm.config, variant, runs),
      ]
      if self.by_hours:
        last = [run.rows[-1] for run in self._runs(arm, rows)]
        pace = [row['seconds'] / row['step'] for row in last]
        line.insert(-4, f'{statistics.fmean(pace):.3f}' if pace else '–')
      lines.append(line)
    header = [
      'arm',
      *(one.short for one in metrics),
      f'best on the way: {self.metric.short}',
      gain_header(self.metric),
      f'{unit} to the baseline’s best',
      f'paper{self.paper_note}: at the end',
      f'paper{self.paper_note}: {unit} to its baseline’s best',
      'runs',
      COMMAND,
    ]
    if self.by_hours:
      header.insert(-4, 'seconds a step here, as measured')
    return markdown.table(header, lines)

  def _runs(self, arm: Arm, rows: Rows) -> list[Result]:
    """Those that got to their end: a curve that stops would bend the mean."""
    return self.metric.whole(arm.runs(rows), arm.who)

  def _unit(self, arm: Arm) -> float:
    """From steps to what is on the horizontal axis."""
    return arm.seconds_per_step / 3_600 if self.by_hours else 1

  def paper_curve(self, arm: Arm) -> Curve:
    """What the paper's panel shows of an arm; [] if nothing."""
    last = self.paper_steps * self._unit(arm)
    return [(x, y) for x, y in arm.paper_curve(self.paper) if x <= last]

  def _our_curve(self, arm: Arm, rows: Rows) -> Curve:
    unit = self._unit(arm)
    mean = self.metric.mean_curve(self._runs(arm, rows), arm.who)
    return [(step * unit, y) for step, y in mean]


class BesideCurves(Figure):
  """A figure of our own beside the paper's panel of another one."""

  def __init__(self, title: str, paper: Curves, metrics: tuple[Metric, ...]):
    """Takes the paper's panel from another figure.

    Args:
      title: of the picture.
      paper: whose left panel is the left panel here.
      metrics: of the table; the first one is drawn.
    """
    self.title = title
    self._paper = paper
    self._metrics = metrics

  def draw_paper(self, axes: Axes) -> None:
    """The other figure's."""
    self._paper.draw_paper(axes)

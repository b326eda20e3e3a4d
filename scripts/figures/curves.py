"""Learning curves: Figures 1 to 4 of the paper, and our controls on images."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator

from scripts.figures.arms import LM_NO_PEERS, LM_RELOADS, Arm
from scripts.figures.figure import Cells, Figure, beside, ends, gains, made_by
from scripts.figures.metric import LOSS, Curve, Metric, Rows, crossing, together
from scripts.figures.panel import Grid, Panel, along

# Of the steps: what is drawn from there on is in sight from bottom to top.
EARLY = 0.25
STEPS = 'step (updates of each member)'
_INTERVAL = 'reload interval (updates)'


@dataclasses.dataclass(frozen=True)
class Curves(Figure):
  """A metric over steps, or over hours on the paper's cluster.

  Attributes:
    title: of the picture.
    paper: where arms are looked for in the paper, by its figures' names.
    arms: a curve each, in both panels where there is one.
    baseline: whose best value the others are to reach.
    metric: of our panel.
    paper_label: what the paper's panel has upwards.
    paper_range: and how far it goes.
    paper_steps: where the paper's plotted window ends; its markers go on.
    also: metrics whose ends the table has, too.
    paper_note: what else than ours the paper's numbers are of.
    by_hours: the horizontal axis is steps times the paper's seconds a step.
  """

  title: str
  paper: tuple[str, ...]
  arms: tuple[Arm, ...]
  baseline: Arm
  metric: Metric = LOSS
  paper_label: str = 'cross-entropy (nats a token)'
  paper_range: tuple[float, float] = (3.85, 4.75)
  paper_steps: float = 15_000
  also: tuple[Metric, ...] = ()
  paper_note: str = ''
  by_hours: bool = False

  @property
  def configs(self) -> tuple[str, ...]:
    """Those of its arms."""
    return tuple(dict.fromkeys(arm.config for arm in self.arms))

  def panels(self, rows: Rows) -> Grid:
    """The paper's and ours, if half of the arms have got to their end."""
    lines, marks = [], {}
    for arm in self.arms:
      # A curve that stops would bend the mean.
      if runs := arm.ended(self.metric, rows):
        points = self.metric.points(runs, arm.who)
        points = {step * self._unit(arm): y for step, y in points.items()}
        lines.append(arm.draw(points, seeds=len(runs)))
        codistill = runs[0].run['config']['codistill']
        if codistill['exchange'] != 'none' and not self.by_hours:
          marks[codistill['burn_in_steps']] = 'burn-in ends'
    if 2 * len(lines) < len(self.arms):
      return []
    xlabel = 'hours at the paper’s seconds a step' if self.by_hours else STEPS
    look = {'yscale': 'auto' if self.metric is LOSS else 'linear'}
    look |= {'early': EARLY, 'marks': marks}
    ours = Panel('ours, {}', lines, xlabel, self.metric.label, **look)
    # Single runs, without error bars: so the paper shows them.
    theirs = [
      arm.draw(together([curve]))
      for arm in self.arms
      if (curve := self.paper_curve(arm))
    ]
    title = f'the paper{self.paper_note}'
    xlabel = 'hours' if self.by_hours else 'step'
    look = {'ylim': self.paper_range}
    return [[Panel(title, theirs, xlabel, self.paper_label, **look), ours]]

  def lines(self, rows: Rows) -> Iterator[Cells]:
    """Where arms end, and when they get to the baseline's best value."""
    unit = 'hours' if self.by_hours else 'steps'
    ours = self._our_curve(self.baseline, rows)
    theirs = self.paper_curve(self.baseline)
    for arm in self.arms:
      runs, paper = arm.runs(rows), self.paper_curve(arm)
      bests = self.metric.bests(runs, arm.who)
      steps = self._reached(self._our_curve(arm, rows), ours)
      there = {f'{unit} to the baseline’s best': steps}
      if self.by_hours:
        last = [run.rows[-1] for run in arm.ended(self.metric, rows)]
        pace = [row['seconds'] / row['step'] for row in last]
        measured = f'{statistics.fmean(pace):.3f}' if pace else '–'
        header = 'hours to the baseline’s best / seconds a step, as measured'
        there = {header: beside(steps, measured)}
      end = f'{paper[-1][1]:g}' if paper else '–'
      header = (
        f'paper{self.paper_note}: at the end / {unit} to its baseline’s best'
      )
      yield {
        'arm': arm.label,
        **ends(runs, arm.who, self.metric, *self.also),
        f'best on the way: {self.metric.short}': self.metric.text(bests),
        **gains(runs, arm.who, self.baseline, rows, self.metric),
        **there,
        header: beside(end, self._reached(paper, theirs)),
        **made_by(arm.config, runs),
      }

  def _reached(self, curve: Curve, baseline: Curve) -> str:
    if not curve or not baseline:
      return '–'
    best = self.metric.best
    at = crossing(curve, best(y for _, y in baseline), best)
    if at is None:
      return 'not reached'
    return f'{at:.2f}' if self.by_hours else f'{at:,.0f}'

  def _unit(self, arm: Arm) -> float:
    """From steps to what is on the horizontal axis."""
    return arm.seconds_per_step / 3_600 if self.by_hours else 1

  def paper_curve(self, arm: Arm) -> Curve:
    """What the paper's panel shows of an arm; [] if nothing."""
    last = self.paper_steps * self._unit(arm)
    return [(x, y) for x, y in arm.paper_curve(self.paper) if x <= last]

  def _our_curve(self, arm: Arm, rows: Rows) -> Curve:
    unit = self._unit(arm)
    mean = self.metric.mean_curve(arm.ended(self.metric, rows), arm.who)
    return [(step * unit, y) for step, y in mean]


class Reloads(Curves):
  """Figure 4: the curves, and below them where they end by the interval."""

  def panels(self, rows: Rows) -> Grid:
    """If there are three intervals: fewer do not answer its question."""
    found = {k: arm.ends(LOSS, rows) for k, arm in LM_RELOADS.items()}
    places = [k for k, values in found.items() if values]
    above = super().panels(rows)
    if len(places) < 3 or not above:
      return []
    lines = [
      *along('codistilled', LM_RELOADS[50].color, found),
      *self.baseline.level(LOSS, rows, places),
      *LM_NO_PEERS.level(LOSS, rows, places),
    ]
    axis = {'xscale': 'log', 'xticks': places}
    ours = Panel('ours, {}, at the end', lines, _INTERVAL, LOSS.label, **axis)
    return [*above, [self.paper_ends(), ours]]

  def paper_ends(self) -> Panel:
    """The last values of the paper's curves within its window."""
    curves = {k: self.paper_curve(arm) for k, arm in LM_RELOADS.items()}
    found = {k: [curve[-1][1]] for k, curve in curves.items() if curve}
    end = [self.paper_curve(self.baseline)[-1][1]]
    alone = {place: end for place in (min(found), max(found))}
    lines = [
      *along('codistilled', LM_RELOADS[50].color, found, seeds=None),
      self.baseline.draw(alone, level=True),
    ]
    title = 'the paper, language model, at the end'
    axis = {'xscale': 'log', 'xticks': list(found)}
    return Panel(title, lines, _INTERVAL, self.paper_label, **axis)

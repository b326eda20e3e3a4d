"""Distillation in two phases beside codistillation: all steps counted."""

from __future__ import annotations

from matplotlib.axes import Axes

from scripts import markdown
from scripts.figures.arms import (
  LM_CODISTILL,
  LM_ENSEMBLE,
  LM_SYNC,
  LM_TWO_PHASE,
  LOSS,
  Rows,
  crossing,
)
from scripts.figures.cost import curve, draw_curves, learning, total_steps
from scripts.figures.figure import (
  COMMAND,
  Figure,
  command_cell,
  count_cell,
)

_ARMS = (LM_SYNC, LM_CODISTILL, LM_ENSEMBLE, LM_TWO_PHASE)
# §3.4.1, in words: steps to 4.0 nats, those of an ensemble and those after.
_PAPER = {
  LM_TWO_PHASE.label: (18_000, 9_000),
  LM_CODISTILL.label: (0, 10_000),
}


class TwoPhase(Figure):
  """The paper's steps as bars; our curves over all steps."""

  configs = ('lm_two_phase',)
  seeds = 1
  titles = ('the paper (§3.4.1, in words)', 'ours, :{variant}')

  def __init__(self, title: str):
    """Takes the picture's title."""
    self.title = title

  def has_rows(self, rows: Rows) -> bool:
    """Whether a student got to its end."""
    return bool(curve(LM_TWO_PHASE, rows))

  def draw_paper(self, axes: Axes) -> None:
    """Steps to 4.0 nats a token."""
    for place, arm in enumerate((LM_TWO_PHASE, LM_CODISTILL)):
      first, after = _PAPER[arm.label]
      axes.barh(place, first, color=LM_ENSEMBLE.color, height=0.4)
      axes.barh(place, after, left=first, color=arm.color, height=0.4)
    axes.annotate('an ensemble of two', (500, 0.25), fontsize=8)
    axes.annotate('its student', (18_500, 0.25), fontsize=8)
    axes.annotate('codistillation', (500, 1.25), fontsize=8)
    axes.set(xlabel='steps to 4.0 nats', yticks=[], ylim=(-0.5, 1.6))

  def draw_ours(self, axes: Axes, rows: Rows) -> None:
    """A student's steps come after its ensemble's."""
    draw_curves(axes, rows, _ARMS, total_steps)
    axes.set_xlabel('steps, a first phase’s before')

  def table(self, rows: Rows, variant: str) -> str:
    """Steps to the baseline's best, and to where codistillation ends."""
    best = min((y for _, y in curve(LM_SYNC, rows)), default=None)
    end = min((y for _, y in curve(LM_CODISTILL, rows)), default=None)
    lines = []
    for arm in _ARMS:
      runs = LOSS.whole(arm.runs(rows), arm.who)

      def reached(level, arm=arm, runs=runs):
        if level is None or not runs:
          return '–'
        at = crossing(curve(arm, rows), level, min)
        if at is None:
          return 'not reached'
        return f'{total_steps(runs[0], at):,.0f}'

      first = total_steps(runs[0], 0) if runs else 0
      paper = _PAPER.get(arm.label)
      lines.append(
        [
          arm.label,
          f'{first:,.0f}' if first else '–',
          reached(best),
          reached(end),
          LOSS.text(LOSS.ends(learning(arm).runs(rows), arm.who)),
          f'{sum(paper):,}' if paper else '–',
          count_cell(runs),
          command_cell(arm.config, variant, runs),
        ]
      )
    header = [
      'arm',
      'steps of a first phase',
      'all steps to the baseline’s best',
      'all steps to codistillation’s best',
      f'at the end: {LOSS.short}',
      'paper: all steps to 4.0 nats',
      'runs',
      COMMAND,
    ]
    return markdown.table(header, lines)

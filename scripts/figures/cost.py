"""What a level costs: steps, tokens, forward passes and seconds, apart.

Fewer steps are not less computing. A forward pass over an example is the unit
of what is computed: an update costs three (its gradient takes as much as two)
for each of its examples, and one more for each teacher. Not counted: the
optimizer, and evaluation.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes

from experiments.results import Result
from scripts import markdown
from scripts.figures.arms import (
  LM_ALONE,
  LM_CODISTILL,
  LM_DOUBLE,
  LM_ENSEMBLE,
  LM_SAME,
  LM_SYNC,
  LOSS,
  MEMBERS,
  Arm,
  Curve,
  Metric,
  Rows,
  crossing,
  seeds_text,
)
from scripts.figures.figure import (
  COMMAND,
  Figure,
  command_cell,
  count_cell,
)

# Of the steps: what is drawn from there on is in sight from bottom to top.
_EARLY = 0.25
_UPDATE = 3
# What two networks' worth of computing is spent on; and of the last one's two
# networks one alone.
_TWO = (LM_DOUBLE, LM_CODISTILL, LM_SAME, LM_ENSEMBLE)
_ONE = {'label': 'one of two that never meet', 'who': MEMBERS}


def trained_on(run: Result, step: float) -> float:
  """Examples that all members together have trained on, by a step.

  Tokens, for text. Those of a first phase count.
  """
  config = run.run['config']
  own = config['batch_size'] * config['data'].get('sequence_length', 1)
  first = 0
  if has_first_phase(run):
    phase = config['two_phase']
    first = phase['members'] * phase['num_steps']
  return own * (config['codistill']['members'] * step + first)


def forward_passes(run: Result, step: float) -> float:
  """What all members together have computed by a step, teachers included."""
  config = run.run['config']
  own = config['batch_size'] * config['data'].get('sequence_length', 1)
  codistill = config['codistill']
  match codistill['exchange']:
    case 'none':
      teachers = 0
    case 'frozen':
      teachers = config['two_phase']['members']
    case _:
      teachers = codistill['members'] - 1
  taught = max(0, step - codistill['burn_in_steps'])
  return _UPDATE * trained_on(run, step) + own * (
    codistill['members'] * teachers * taught
  )


def total_steps(run: Result, step: float) -> float:
  """Updates one after another: a first phase's come before."""
  if not has_first_phase(run):
    return step
  return run.run['config']['two_phase']['num_steps'] + step


def seconds(run: Result, step: float) -> float:
  """Of the run until a step, as measured, with evaluation; no first phase."""
  rows = [row for row in run.rows if 'seconds' in row]
  before = max((row for row in rows if row['step'] <= step), key=_step)
  return before['seconds'] * (step / before['step'] if before['step'] else 1)


def _step(row) -> int:
  return row['step']


def has_first_phase(run: Result) -> bool:
  """Whether its teachers were trained before it."""
  return run.run['config']['codistill']['exchange'] == 'frozen'


@dataclasses.dataclass(frozen=True)
class Cost(Figure):
  """Arms over steps and over what they compute, and their way to a level.

  Attributes:
    title: of the picture.
    arms: a curve each.
    baseline: whose best value is the level.
  """

  title: str
  arms: tuple[Arm, ...]
  baseline: Arm
  titles = ('ours, :{variant}, over steps', 'ours, :{variant}, over computing')

  @property
  def configs(self) -> tuple[str, ...]:
    """Those of its arms."""
    return tuple(dict.fromkeys(arm.config for arm in self.arms))

  def has_rows(self, rows: Rows) -> bool:
    """Whether the baseline and another arm have runs that got to their end."""
    there = [arm for arm in self.arms if LOSS.whole(arm.runs(rows), arm.who)]
    return self.baseline in there and len(there) > 1

  def draw_left(self, axes: Axes, rows: Rows) -> None:
    """Over steps, one after another."""
    draw_curves(axes, rows, self.arms, total_steps)
    axes.set_xlabel('steps, a first phase’s before')

  def draw_ours(self, axes: Axes, rows: Rows) -> None:
    """The same curves over forward passes."""
    _over_computing(axes, rows, self.arms)

  def table(self, rows: Rows, variant: str) -> str:
    """A line an arm: its way to the baseline's best, and its end."""
    level = min((y for _, y in curve(self.baseline, rows)), default=None)
    lines, least = [], None
    for arm in self.arms:
      runs = LOSS.whole(arm.runs(rows), arm.who)
      at = None if level is None else crossing(curve(arm, rows), level, min)
      if not runs or level is None:
        cells = ['–'] * 6
      elif at is None:
        cells = ['not reached', *['–'] * 3]
      else:
        passes = forward_passes(runs[0], at)
        least = passes if arm is self.baseline else least
        took = statistics.fmean(seconds(run, at) for run in runs)
        cells = [
          f'{total_steps(runs[0], at):,.0f}',
          f'{trained_on(runs[0], at) / 1e6:.1f}',
          f'{passes / least:.2f}' if least else '–',
          '–' if has_first_phase(runs[0]) else f'{took:,.0f}',
        ]
      if runs and level is not None:
        last = runs[0].rows[-1]['step']
        cells += [
          f'{forward_passes(runs[0], last) / 1e6:.0f}',
          LOSS.text(LOSS.ends(learning(arm).runs(rows), arm.who)),
        ]
      lines.append(
        [
          arm.label,
          '2' if arm.who == 'ensemble' else '1',
          *cells,
          count_cell(runs),
          command_cell(arm.config, variant, runs),
        ]
      )
    header = [
      'arm',
      'networks served',
      'steps to the baseline’s best',
      'tokens to it (M)',
      'computing to it, over the baseline’s',
      'seconds to it, as measured',
      'forward passes of a token at the end (M)',
      f'at the end: {LOSS.short}',
      'runs',
      COMMAND,
    ]
    return markdown.table(header, lines)


class EqualCompute(Figure):
  """Two networks' worth of computing: what is the best use of it?"""

  configs = ('lm_sync', 'lm_codistill', 'lm_ensemble')
  titles = ('ours, :{variant}, over tokens', 'ours, :{variant}, over computing')

  def __init__(self, title: str):
    """Takes the picture's title; the paper has no such figure."""
    self.title = title

  def has_rows(self, rows: Rows) -> bool:
    """Whether twice the batch, the budget, and another got to their end."""
    there = [arm for arm in _TWO if curve(arm, rows)]
    return LM_DOUBLE in there and len(there) > 1

  def draw_left(self, axes: Axes, rows: Rows) -> None:
    """Over tokens that all members together have trained on."""
    draw_curves(axes, rows, _TWO, lambda run, step: trained_on(run, step) / 1e6)
    axes.set_xlabel('tokens trained on, all members (M)')

  def draw_ours(self, axes: Axes, rows: Rows) -> None:
    """Over forward passes."""
    _over_computing(axes, rows, _TWO)

  def table(self, rows: Rows, variant: str) -> str:
    """A line an arm, where each has computed what twice the batch has."""
    double = LOSS.whole(LM_DOUBLE.runs(rows), 0)
    if not double:
      return ''
    budget = forward_passes(double[0], double[0].rows[-1]['step'])
    lines = []
    for arm in (*_TWO, dataclasses.replace(_TWO[-1], **_ONE)):
      runs = LOSS.whole(arm.runs(rows), arm.who)
      if not runs:
        continue
      steps = [x for x, _ in LOSS.curve(runs[0], arm.who)]
      # The last evaluation within the budget.
      step = max(x for x in steps if forward_passes(runs[0], x) <= budget)
      values = [dict(LOSS.curve(run, arm.who))[step] for run in runs]
      lines.append(
        [
          arm.label,
          '2' if arm.who == 'ensemble' else '1',
          f'{step:,}',
          f'{trained_on(runs[0], step) / 1e6:.1f}',
          f'{forward_passes(runs[0], step) / 1e6:.0f}',
          LOSS.text(values),
          count_cell(runs),
          command_cell(arm.config, variant, runs),
        ]
      )
    header = [
      'two networks’ worth of computing',
      'networks served',
      'step',
      'tokens (M)',
      'forward passes of a token (M)',
      f'there: {LOSS.short}',
      'runs',
      COMMAND,
    ]
    return markdown.table(header, lines)


def draw_curves(
  axes: Axes,
  rows: Rows,
  arms: Sequence[Arm],
  unit: Callable[[Result, float], float],
  metric: Metric = LOSS,
  early: float = _EARLY,
) -> None:
  """Means over seeds, over something that a run's steps make.

  Args:
    axes: to draw on.
    rows: of all configs.
    arms: a curve each.
    unit: from a run and a step to what is on the horizontal axis.
    metric: on the vertical one.
    early: share of the steps from which on all is in sight.
  """
  late = []
  for arm in arms:
    runs = metric.whole(arm.runs(rows), arm.who)
    points = curve(arm, rows, metric)
    if not points or not runs:
      continue
    x, y = zip(*points, strict=True)
    late += [b for a, b in points if a > early * x[-1]]
    axes.plot(
      [unit(runs[0], step) for step in x],
      y,
      arm.line,
      color=arm.color,
      label=f'{arm.label} ({seeds_text(len(runs))})',
    )
  if late:
    margin = 0.02 * metric.scale
    axes.set_ylim(min(late) - margin, max(late) + margin)
    axes.legend()
  axes.set_ylabel(metric.label)


def _over_computing(axes: Axes, rows: Rows, arms: Sequence[Arm]) -> None:
  draw_curves(
    axes, rows, arms, lambda run, step: forward_passes(run, step) / 1e6
  )
  axes.set_xlabel('forward passes of a token, all members and teachers (M)')


def curve(arm: Arm, rows: Rows, metric: Metric = LOSS) -> Curve:
  """(step, mean over seeds) of an arm."""
  arm = learning(arm)
  return metric.mean_curve(arm.runs(rows), arm.who)


def learning(arm: Arm) -> Arm:
  """Whose losses are an arm's: of one alone, those of both that never meet.

  What others end at is a mean of both members; what one costs is one's own.
  """
  return LM_ALONE if arm is LM_SYNC else arm

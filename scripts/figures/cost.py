"""What a level costs: steps, tokens, forward passes and seconds, apart.

Fewer steps are not less computing. A forward pass over an example is the unit
of what is computed: an update costs three (its gradient takes as much as two)
for each of its examples, and one more for each teacher. Not counted: the
optimizer, and evaluation.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Iterator

from codistill.exchange.topology import make_topology
from experiments.results import Result
from scripts.figures import arms
from scripts.figures.arms import Arm
from scripts.figures.curves import EARLY
from scripts.figures.figure import Cells, Figure, count, ends, made_by
from scripts.figures.metric import LOSS, MEMBERS, Curve, Metric, Rows, crossing
from scripts.figures.panel import Dots, Grid, Panel

UPDATE = 3
Unit = Callable[[Result, float], float]


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
  members = codistill['members']
  if codistill.get('method', 'codistillation') != 'codistillation':
    # Members of a group are averaged; only other groups' teach.
    members //= codistill['group_size'] or members
  match codistill['exchange']:
    case 'none':
      teachers = 0
    case 'frozen':
      teachers = config['two_phase']['members']
    case _:
      graph = make_topology(
        codistill.get('topology', 'all'),
        members,
        num_random=codistill.get('num_random_neighbours', 1),
      )
      teachers = statistics.fmean(
        len(graph.teachers(member, 0)) for member in range(members)
      )
  taught = max(0, step - codistill['burn_in_steps'])
  return UPDATE * trained_on(run, step) + own * (
    codistill['members'] * teachers * taught
  )


def total_steps(run: Result, step: float) -> float:
  """Updates one after another: a first phase's come before."""
  if not has_first_phase(run):
    return step
  return run.run['config']['two_phase']['num_steps'] + step


def seconds(run: Result, step: float) -> float:
  """Of the run until a step, as measured, with evaluation; no first phase."""
  rows = [row for row in run.rows if 'seconds' in row and row['step'] <= step]
  before = max(rows, key=lambda row: row['step'])
  return before['seconds'] * (step / before['step'] if before['step'] else 1)


def has_first_phase(run: Result) -> bool:
  """Whether its teachers were trained before it."""
  return run.run['config']['codistill']['exchange'] == 'frozen'


def curve(arm: Arm, rows: Rows, metric: Metric = LOSS) -> Curve:
  """(step, mean over seeds) of an arm."""
  arm = learning(arm)
  return metric.mean_curve(arm.runs(rows), arm.who)


def learning(arm: Arm) -> Arm:
  """Whose losses are an arm's: of one alone, those of both that never meet.

  What others end at is a mean of both members; what one costs is one's own.
  """
  return arms.LM_ALONE if arm is arms.LM_SYNC else arm


def over(
  rows: Rows,
  some: Iterable[Arm],
  unit: Unit,
  xlabel: str,
  metric: Metric = LOSS,
  early: float = EARLY,
) -> Panel:
  """A panel of learning curves over something that a run's steps make.

  Args:
    rows: of all configs.
    some: arms, a curve each, if their runs got to their end.
    unit: from a run and a step to what is on the horizontal axis, in millions
      unless it is steps.
    xlabel: of that axis.
    metric: on the vertical one.
    early: share of a curve from which on it is in sight.
  """
  lines, scale = [], 1 if unit is total_steps else 1e6
  for arm in some:
    runs, seen = (one.ended(metric, rows) for one in (arm, learning(arm)))
    if runs and seen:
      points = metric.points(seen, learning(arm).who)
      points = {unit(runs[0], x) / scale: y for x, y in points.items()}
      lines.append(arm.draw(points, seeds=len(seen)))
  return Panel('ours, {}', lines, xlabel, metric.label, early=early)


def _over_computing(rows: Rows, some: Iterable[Arm]) -> Panel:
  xlabel = 'forward passes of a token, all networks (M)'
  return over(rows, some, forward_passes, xlabel)


def _over_steps(rows: Rows, some: Iterable[Arm]) -> Panel:
  xlabel = 'steps, those of a first phase included'
  return over(rows, some, total_steps, xlabel)


class Cost(Figure):
  """Arms over steps and over what they compute, and their way to a level."""

  title = 'Fewer steps are not less computing'
  drawn = (
    arms.LM_SYNC,
    arms.LM_HALF,
    arms.LM_DOUBLE,
    arms.LM_UNIFORM,
    arms.LM_CODISTILL,
    arms.LM_SAME,
    arms.LM_TWO_PHASE,
    arms.LM_ENSEMBLE,
  )
  configs = tuple(dict.fromkeys(arm.config for arm in drawn))

  def panels(self, rows: Rows) -> Grid:
    there = [arm for arm in self.drawn if arm.ended(LOSS, rows)]
    if arms.LM_SYNC not in there or len(there) < 2:
      return []
    return [[_over_steps(rows, self.drawn), _over_computing(rows, self.drawn)]]

  def lines(self, rows: Rows) -> Iterator[Cells]:
    level = min((y for _, y in curve(arms.LM_SYNC, rows)), default=None)
    least = None
    for arm in self.drawn:
      runs = arm.ended(LOSS, rows)
      there = runs and level is not None
      at = crossing(curve(arm, rows), level, min) if there else None
      way = ['not reached' if there else '–', '–', '–', '–']
      if at is not None:
        passes = forward_passes(runs[0], at)
        least = passes if arm is arms.LM_SYNC else least
        took = statistics.fmean(seconds(run, at) for run in runs)
        way = [
          count(total_steps(runs[0], at)),
          f'{trained_on(runs[0], at) / 1e6:.1f}',
          f'{passes / least:.2f}' if least else '–',
          count(None if has_first_phase(runs[0]) else took),
        ]
      end = '–'
      if there:
        computed = forward_passes(runs[0], runs[0].rows[-1]['step']) / 1e6
        losses = LOSS.text(learning(arm).ends(LOSS, rows))
        end = f'{computed:.0f} / {losses}'
      yield {
        'arm': arm.label,
        'steps to the baseline’s best': way[0],
        'tokens to it (M)': way[1],
        'computing to it, over the baseline’s': way[2],
        'seconds to it, as measured': way[3],
        f'at the end: forward passes of a token (M) / {LOSS.short}': end,
        **made_by(arm.config, learning(arm).ended(LOSS, rows)),
      }


class EqualCompute(Figure):
  """Two networks' worth of computing: what is the best use of it?"""

  title = 'Two networks’ worth of computing'
  drawn = (arms.LM_DOUBLE, arms.LM_CODISTILL, arms.LM_SAME, arms.LM_ENSEMBLE)
  configs = ('lm_sync', 'lm_codistill', 'lm_ensemble')

  def panels(self, rows: Rows) -> Grid:
    there = [arm for arm in self.drawn if curve(arm, rows)]
    if arms.LM_DOUBLE not in there or len(there) < 2:
      return []
    xlabel = 'tokens trained on, all members (M)'
    tokens = over(rows, self.drawn, trained_on, xlabel)
    return [[tokens, _over_computing(rows, self.drawn)]]

  def lines(self, rows: Rows) -> Iterator[Cells]:
    double = arms.LM_DOUBLE.ended(LOSS, rows)
    if not double:
      return
    budget = forward_passes(double[0], double[0].rows[-1]['step'])
    one = {'label': 'one of two that never meet', 'who': MEMBERS}
    for arm in (*self.drawn, dataclasses.replace(arms.LM_ENSEMBLE, **one)):
      runs = arm.ended(LOSS, rows)
      if not runs:
        continue
      steps = [x for x, _ in LOSS.curve(runs[0], arm.who)]
      # The last evaluation within the budget.
      step = max(x for x in steps if forward_passes(runs[0], x) <= budget)
      tokens, passes = trained_on(runs[0], step), forward_passes(runs[0], step)
      yield {
        'two networks’ worth of computing': arm.label,
        'networks served': '2' if arm.who == 'ensemble' else '1',
        'step': f'{step:,}',
        'tokens (M)': f'{tokens / 1e6:.1f}',
        'forward passes of a token (M)': f'{passes / 1e6:.0f}',
        f'there: {LOSS.short}': LOSS.text(
          [dict(LOSS.curve(run, arm.who))[step] for run in runs]
        ),
        **made_by(arm.config, runs),
      }


class TwoPhase(Figure):
  """Distillation in two phases beside codistillation: all steps counted."""

  title = 'Two phases, all steps counted'
  configs = ('lm_two_phase',)
  seeds = 1
  drawn = (arms.LM_SYNC, arms.LM_CODISTILL, arms.LM_ENSEMBLE, arms.LM_TWO_PHASE)
  # §3.4.1, in words: to 4.0 nats, those of its ensemble included.
  paper = (
    ('codistilled', arms.LM_CODISTILL, 10_000),
    ('student, all steps', arms.LM_TWO_PHASE, 27_000),
    ('of these its ensemble’s', arms.LM_ENSEMBLE, 18_000),
  )

  def panels(self, rows: Rows) -> Grid:
    if not curve(arms.LM_TWO_PHASE, rows):
      return []
    dots = [Dots(label, arm.color, [steps]) for label, arm, steps in self.paper]
    title = 'the paper (§3.4.1, in words)'
    paper = Panel(title, dots, 'steps to 4.0 nats', zero=0)
    return [[paper, _over_steps(rows, self.drawn)]]

  def lines(self, rows: Rows) -> Iterator[Cells]:
    levels = {
      f'all steps to {name} best': min(
        (y for _, y in curve(arm, rows)), default=None
      )
      for name, arm in (
        ('the baseline’s', arms.LM_SYNC),
        ('codistillation’s', arms.LM_CODISTILL),
      )
    }
    papers = {arm.label: f'{steps:,}' for _, arm, steps in self.paper[:2]}
    for arm in self.drawn:
      runs = arm.ended(LOSS, rows)
      reached = dict.fromkeys(levels, '–')
      for name, level in levels.items():
        if runs and level is not None:
          at = crossing(curve(arm, rows), level, min)
          steps = None if at is None else total_steps(runs[0], at)
          reached[name] = count(steps, 'not reached')
      first = total_steps(runs[0], 0) if runs else 0
      learnt = learning(arm).runs(rows)
      yield {
        'arm': arm.label,
        'steps of a first phase': count(first or None),
        **reached,
        **ends(learnt, arm.who, LOSS, of='at the end'),
        'paper: all steps to 4.0 nats': papers.get(arm.label, '–'),
        **made_by(arm.config, LOSS.whole(learnt, arm.who)),
      }

"""The arms of the comparisons: what they are called, look like, come from.

An arm has the same colour in every figure. It is a curve of the paper's, read
off its figures (experiments/results/paper.json), and some of our runs, one a
seed.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from experiments import results
from experiments.results import Result, Row

PAPER = json.loads((results.FOLDER / 'paper.json').read_text(encoding='utf-8'))

Curve = Sequence[tuple[float, float]]
# Who is shown, if not one member or the ensemble: the mean over the members.
MEMBERS = 'members'
Rows = Mapping[str, Sequence[Result]]


@dataclasses.dataclass(frozen=True)
class Metric:
  """What is plotted.

  Attributes:
    key: of the rows.
    label: with the unit.
    short: the same in a table.
    scale: from the rows' number to that unit.
    best: min or max.
    digits: after the point, in tables.
  """

  key: str
  label: str
  short: str
  scale: float
  best: Callable[[Iterable[float]], float]
  digits: int

  def whole(self, runs: Sequence[Result], who: int | str) -> list[Result]:
    """Those of the runs in which a member got to the end."""
    return [run for run in runs if self.ends([run], who)]

  def curve(self, result: Result, who: int | str) -> Curve:
    """(step, value) at each evaluation of a member, or of all in the mean."""
    values: dict[int, dict[int | str, float]] = {}
    for row in self._rows(result, who):
      by_member = values.setdefault(row['step'], {})
      by_member[row['member']] = row[self.key] * self.scale
    return [
      (step, statistics.fmean(by_member.values()))
      for step, by_member in values.items()
    ]

  def ends(self, runs: Sequence[Result], who: int | str) -> list[float]:
    """A member's value at the end of each run that got there."""
    found = (
      [row for row in self._rows(run, who) if row['kind'] == 'final']
      for run in runs
    )
    return [
      statistics.fmean(row[self.key] for row in rows) * self.scale
      for rows in found
      if rows
    ]

  def _rows(self, result: Result, who: int | str) -> list[Row]:
    return [
      row
      for row in result.rows
      if self.key in row
      and (
        row['member'] == who
        or (who == MEMBERS and isinstance(row['member'], int))
      )
    ]

  def mean_curve(self, runs: Sequence[Result], who: int | str) -> Curve:
    """(step, mean over runs) of those in which a member got to the end."""
    runs = self.whole(runs, who)
    if not runs:
      return []
    steps, mean, _, _ = mean_curve([self.curve(run, who) for run in runs])
    return list(zip(steps, mean, strict=True))

  def bests(self, runs: Sequence[Result], who: int | str) -> list[float]:
    """A member's best value on the way, in each run that got to its end."""
    return [
      self.best(y for _, y in self.curve(run, who))
      for run in self.whole(runs, who)
    ]

  def gains(
    self,
    runs: Sequence[Result],
    who: int | str,
    baseline: Sequence[Result],
    baseline_who: int | str,
  ) -> list[float]:
    """How much better than a baseline runs end, seed for seed.

    A seed is the same initialisation in both, and with the same data and batch
    the same order, so that this varies less than what it is the difference of.
    So are two members of one number: where all are shown they are compared one
    by one, and one alone with the first.
    """
    if who == baseline_who == MEMBERS:
      by_member = [
        self._gains(runs, member, baseline, member)
        for member in sorted(_members(runs) & _members(baseline))
      ]
    else:
      by_member = [self._gains(runs, who, baseline, baseline_who)]
    seeds = sorted(set().union(*by_member))
    return [
      statistics.fmean(gains[seed] for gains in by_member if seed in gains)
      for seed in seeds
    ]

  def _gains(
    self,
    runs: Sequence[Result],
    who: int | str,
    baseline: Sequence[Result],
    baseline_who: int | str,
  ) -> dict[int, float]:
    """By seed."""
    theirs, ours = (
      {run.run['seed']: end for run in some for end in self.ends([run], member)}
      for some, member in ((baseline, baseline_who), (runs, who))
    )
    sign = 1 if self.best is max else -1
    return {
      seed: sign * (ours[seed] - theirs[seed])
      for seed in ours.keys() & theirs.keys()
    }

  def text(self, values: Sequence[float], sign: str = '') -> str:
    """Mean ± half the range, as in the paper's Table 1; one has no range."""
    if not values:
      return '–'
    mean = f'{statistics.fmean(values):{sign}.{self.digits}f}'
    mean = mean.replace('-', '−')
    half = (max(values) - min(values)) / 2
    return f'{mean} ± {half:.{self.digits}f}' if len(values) > 1 else mean


LOSS = Metric(
  'task_loss',
  'held-out cross-entropy (nats)',
  'cross-entropy (nats)',
  1,
  min,
  4,
)
TOP_1 = Metric(
  'accuracy', 'held-out top-1 accuracy (%)', 'top-1 (%)', 100, max, 2
)


def _members(runs: Sequence[Result]) -> set[int]:
  return {
    row['member']
    for run in runs
    for row in run.rows
    if isinstance(row['member'], int)
  }


class _Anything:
  """Equal to whatever it is compared with."""

  def __eq__(self, other: object) -> bool:
    return True

  def __hash__(self) -> int:
    return 0


# In an arm's point: what follows from the variant.
ANY = _Anything()


@dataclasses.dataclass(frozen=True)
class Arm:
  """One curve.

  Attributes:
    label: its name.
    color: the same in every figure.
    line: Matplotlib's style.
    paper: its curve's name in paper.json, or None.
    config: whose results.
    instead: whose, where it has none.
    point: what its runs have otherwise than the config.
    batch: its batch size, in batch sizes of the config; another one comes
      with another learning rate.
    who: the member that is shown. The paper evaluates one copy, chosen
      arbitrarily; on images it is the first, on text the mean of all members,
      whose parts of the text are not alike.
    seconds_per_step: on the paper's cluster: Figure 1b over Figure 1a.
  """

  label: str
  color: str
  line: str = '-'
  paper: str | None = None
  config: str = ''
  instead: str = ''
  point: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  batch: float = 1.0
  who: int | str = 0
  seconds_per_step: float | None = None

  def runs(self, rows: Rows) -> list[Result]:
    """Our runs of it, one a seed.

    Raises:
      ValueError: if a seed was run in two ways that both are this arm.
    """
    runs = rows.get(self.config) or rows.get(self.instead, ())
    base = {
      run.run['config']['batch_size']
      for run in runs
      if 'batch_size' not in run.point
    }
    sizes = {self.batch * size for size in base}
    return one_a_seed(
      run
      for run in runs
      if run.run['config']['batch_size'] in sizes
      and self._point(run) == self.point
    )

  def _point(self, run: Result) -> dict[str, Any]:
    if self.batch == 1:
      return run.point
    return {
      key: value
      for key, value in run.point.items()
      if key != 'batch_size' and not key.endswith('.peak_rate')
    }

  def paper_curve(self, figures: Sequence[str]) -> Curve:
    """(x, y) from the first of the paper's figures that shows it; or []."""
    for figure in figures:
      if self.paper in PAPER[figure]['curves']:
        return [tuple(point) for point in PAPER[figure]['curves'][self.paper]]
    return []


def one_a_seed(runs: Iterable[Result]) -> list[Result]:
  """The runs, if no two are of one seed: those would be no repetitions.

  Raises:
    ValueError: if two are.
  """
  by_seed: dict[int, Result] = {}
  for run in runs:
    other = by_seed.setdefault(run.run['seed'], run)
    if other is not run:
      raise ValueError(
        f'{run.run["experiment"]} has two runs for one arm, {other.id} and '
        f'{run.id}; remove one of them from its results'
      )
  return list(by_seed.values())


def mean_curve(
  curves: Sequence[Curve],
) -> tuple[list[float], list[float], list[float], list[float]]:
  """Steps that all curves have; the mean, least and greatest value there."""
  by_step = [dict(curve) for curve in curves]
  steps = [x for x in by_step[0] if all(x in curve for curve in by_step)]
  columns = [[curve[x] for curve in by_step] for x in steps]
  return (
    steps,
    [statistics.fmean(column) for column in columns],
    [min(column) for column in columns],
    [max(column) for column in columns],
  )


def crossing(
  curve: Curve, level: float, best: Callable[[Iterable[float]], float]
) -> float | None:
  """Where a curve first is at a level or better, by linear interpolation."""
  before = None
  for x, y in curve:
    if best((y, level)) == y:
      if before is None:
        return x
      x0, y0 = before
      return x0 + (x - x0) * (level - y0) / (y - y0)
    before = x, y
  return None


def seeds_text(number: int) -> str:
  """'3 seeds', '1 seed'."""
  return f'{number} seed{"s" * (number != 1)}'


# Colours: Okabe & Ito (2008), told apart by colour-blind readers, too.
_SYNC = Arm('synchronous SGD', '#000000')
_DOUBLE = Arm('synchronous SGD, twice the batch', '#999999', batch=2.0)
_UNIFORM = Arm('label smoothing, uniform', '#E69F00')
_CODISTILL = Arm('codistilled, partitioned data', '#D55E00')
_SAME = Arm('codistilled, same data', '#CC79A7')
_ENSEMBLE = Arm('ensemble of two', '#009E73', who='ensemble')
_of = dataclasses.replace

SYNC = _of(_SYNC, paper='sync_batch_16384', config='imagenet_sync')
SYNC_DOUBLE = _of(_DOUBLE, paper='sync_batch_32768', config='imagenet_sync')
UNIFORM = _of(_UNIFORM, config='imagenet_label_smoothing')
CODISTILL = _of(
  _CODISTILL,
  paper='codistill_2_way_batch_16384',
  config='imagenet_codistill',
)
# The paper does not say how its two members' data differ.
TWO_WAY = _of(CODISTILL, label='two-way codistilled')
SAME = _of(
  _SAME, config='imagenet_codistill', point={'diversity.partition': 'same'}
)
ENSEMBLE = _of(_ENSEMBLE, config='imagenet_ensemble')
# What a member of a codistilling pair would be without the other one.
HALF_OF_THE_DATA = Arm(
  'no peers, half of the data',
  '#000000',
  '--',
  config='imagenet_staleness',
  point={'codistill.exchange': 'none'},
)

# Of imagenet_equal_compute, but for the first: all of the steps of one network,
# or half of the steps of two.
EQUAL_SYNC = _of(SYNC, label='one, all of the steps', paper=None)
_HALF = Arm('', '', config='imagenet_equal_compute')
_APART = {'codistill.exchange': 'none', 'codistill.burn_in_steps': ANY}
EQUAL_DOUBLE = _of(
  _HALF,
  label='one with twice the batch',
  color=_DOUBLE.color,
  point={**_APART, 'codistill.members': 1},
  batch=2.0,
)
EQUAL_SAME = _of(_HALF, label='two codistil, same data', color=_SAME.color)
EQUAL_LESS_DECAY = _of(
  EQUAL_SAME,
  label='the same, less weight decay',
  line=':',
  point={'optimizer.sgd.weight_decay_drop_at_steps': ANY},
)
EQUAL_OWN = _of(
  _HALF,
  label='two codistil, half of the data each',
  color=_CODISTILL.color,
  point={'diversity.partition': 'own'},
)
EQUAL_ENSEMBLE = _of(
  _HALF,
  label='two that never meet, averaged',
  color=_ENSEMBLE.color,
  point=_APART,
  who='ensemble',
)
EQUAL_ONE = _of(
  EQUAL_ENSEMBLE, label='one of these', color='#000000', line='--', who=0
)
# Of imagenet_two_phase: from what its student learns, and the student alone.
_STUDENT = Arm('', '', config='imagenet_two_phase')
_UNSEEN = {'data.train_split': ANY}
STUDENT_ALONE = _of(
  _STUDENT, label='no teacher', color='#000000', line='--', point=_APART
)
TRANSFER = (
  _of(_STUDENT, label='the teachers’ images', color='#CC79A7'),
  _of(_STUDENT, label='other images', color='#D55E00', point=_UNSEEN),
  _of(
    _STUDENT,
    label='other images, unlabelled',
    color='#E69F00',
    point={**_UNSEEN, 'codistill.task_weight': 0.0},
  ),
  _of(
    _STUDENT,
    label='both, the others unlabelled',
    color='#0072B2',
    point={'data.unlabelled_split': ANY},
  ),
)

LM_SYNC = _of(
  _SYNC,
  paper='sync_128_workers',
  config='lm_sync',
  who=MEMBERS,
  seconds_per_step=4.55,
)
# The same by more runs: two that never meet are two such networks.
LM_ALONE = _of(LM_SYNC, config='lm_ensemble', instead='lm_sync')
LM_HALF = Arm(
  'synchronous SGD, half the batch',
  '#999999',
  '--',
  paper='sync_64_workers',
  config='lm_sync',
  batch=0.5,
  who=MEMBERS,
  seconds_per_step=4.0,
)
LM_DOUBLE = _of(
  _DOUBLE,
  paper='sync_256_workers',
  config='lm_sync',
  who=MEMBERS,
  seconds_per_step=10.0,
)
LM_UNIFORM = _of(
  _UNIFORM,
  paper='label_smoothing_uniform_0.99',
  config='lm_label_smoothing',
  who=MEMBERS,
)
LM_UNIGRAM = Arm(
  'label smoothing, unigram',
  '#E69F00',
  '--',
  paper='label_smoothing_unigram_0.9',
  config='lm_label_smoothing',
  who=MEMBERS,
  point={
    'codistill.distill_weight': 0.1,
    'codistill.task_weight': 0.9,
    'codistill.teacher': 'unigram',
  },
)
LM_CODISTILL = _of(
  _CODISTILL,
  paper='codistill_2x128_partitioned_reload_50',
  config='lm_codistill',
  who=MEMBERS,
)
LM_SAME = _of(
  _SAME, paper='codistill_2x128_same_data', config='lm_same_data', who=MEMBERS
)
LM_ENSEMBLE = _of(_ENSEMBLE, paper='ensemble_2x128', config='lm_ensemble')
LM_RELOAD_100, LM_RELOAD_250, LM_RELOAD_10, LM_RELOAD_25 = (
  Arm(
    f'codistilled, reload {steps}',
    color,
    line,
    paper=f'codistill_2x128_reload_{steps}' if line == '-' else None,
    config='lm_staleness',
    point={'codistill.reload_interval_steps': steps},
    who=MEMBERS,
  )
  for steps, color, line in (
    (100, '#56B4E9', '-'),
    (250, '#0072B2', '-'),
    (10, '#E69F00', ':'),
    (25, '#009E73', ':'),
  )
)
LM_NO_PEERS = _of(HALF_OF_THE_DATA, config='lm_staleness', who=MEMBERS)
# A first phase of its own, whose steps come before the student's.
LM_TWO_PHASE = Arm(
  'student of a frozen ensemble', '#0072B2', config='lm_two_phase'
)

# Those of Figures 2a and 2b where a network over-fits: of lm_regime, on a
# thirtieth of what two members at :laptop read in a single pass.
_LITTLE_TEXT = {'data.max_train_tokens': 136_533}
_ALL_OF_IT = {**_LITTLE_TEXT, 'diversity.partition': 'same'}
_ALONE = _of(LM_SYNC, config='lm_regime', point={**_ALL_OF_IT, **_APART})
_SMOOTHED = {
  **_ALONE.point,
  'codistill.members': 1,
  'codistill.task_weight': ANY,
}
OVER_FITTING = (
  _ALONE,
  *(
    _of(
      _ALONE,
      label=f'label smoothing, {teacher}, {weight}',
      color=arm.color,
      line=line,
      paper=arm.paper if line == arm.line else None,
      point={
        **_SMOOTHED,
        'codistill.teacher': teacher,
        'codistill.distill_weight': weight,
      },
    )
    for arm, teacher, weight, line in (
      (LM_UNIFORM, 'uniform', 0.01, LM_UNIFORM.line),
      (LM_UNIFORM, 'uniform', 0.1, ':'),
      (LM_UNIGRAM, 'unigram', 0.1, LM_UNIGRAM.line),
      (LM_UNIGRAM, 'unigram', 0.5, '-.'),
    )
  ),
  _of(LM_CODISTILL, config='lm_regime', point=_LITTLE_TEXT),
  _of(LM_SAME, config='lm_regime', point=_ALL_OF_IT),
  _of(LM_ENSEMBLE, config='lm_regime', point=_ALONE.point),
)

# The comparisons of Figures 2a and 2b with our runs on images.
CONTROLS = (
  _of(SYNC, paper=LM_SYNC.paper),
  HALF_OF_THE_DATA,
  _of(UNIFORM, paper=LM_UNIFORM.paper),
  _of(CODISTILL, paper=LM_CODISTILL.paper),
  _of(SAME, paper=LM_SAME.paper),
  _of(ENSEMBLE, paper=LM_ENSEMBLE.paper),
)

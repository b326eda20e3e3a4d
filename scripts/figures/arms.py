"""The arms of the comparisons: what they are called, look like, come from.

An arm has the same colour in every figure. It is a curve of the paper's, read
off its figures (experiments/results/paper.json), and some of our runs, one a
seed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import results
from experiments.results import Result
from scripts.figures import panel
from scripts.figures.metric import (
  MEMBERS,
  Curve,
  Metric,
  Points,
  Rows,
  one_a_seed,
)
from scripts.figures.panel import Dots, Line, sequence

PAPER = json.loads((results.FOLDER / 'paper.json').read_text(encoding='utf-8'))


class _Anything:
  """Equal to everything."""

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
    instead: whose, where these have more seeds.
    point: what its runs have otherwise than the config.
    free: keys that its runs may set to anything, or leave alone.
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
  free: tuple[str, ...] = ()
  batch: float = 1.0
  who: int | str = 0
  seconds_per_step: float | None = None

  def runs(self, rows: Rows) -> list[Result]:
    """Our runs of it, one a seed.

    Raises:
      ValueError: if a seed was run in two ways that both are this arm.
    """
    found = [
      self._among(rows.get(config, ()))
      for config in (self.config, self.instead)
    ]
    return max(found, key=len)

  def _among(self, runs: Sequence[Result]) -> list[Result]:
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
    scaled = self.batch != 1
    return {
      key: value
      for key, value in run.point.items()
      if key not in self.free
      and not (scaled and key.endswith(('batch_size', '.peak_rate')))
    }

  def ended(self, metric: Metric, rows: Rows) -> list[Result]:
    """Our runs of it that got to their end, one a seed."""
    return metric.whole(self.runs(rows), self.who)

  def ends(self, metric: Metric, rows: Rows) -> list[float]:
    """What a metric is at the end, a value a seed."""
    return metric.ends(self.runs(rows), self.who)

  def dots(self, metric: Metric, rows: Rows) -> Dots:
    """Its ends as a row of dots."""
    return Dots(self.label, self.color, self.ends(metric, rows))

  def draw(self, points: Points, **look: Any) -> Line:
    """Something of it along something."""
    return Line(self.label, self.color, points, self.line, **look)

  def level(
    self, metric: Metric, rows: Rows, places: Sequence[float]
  ) -> list[Line]:
    """Its end as a line across some places; [] if it has none."""
    values = self.ends(metric, rows)
    if not values or not places:
      return []
    points = {place: values for place in (min(places), max(places))}
    return [self.draw(points, seeds=len(values), level=True)]

  def paper_curve(self, figures: Sequence[str]) -> Curve:
    """(x, y) from the first of the paper's figures that shows it; or []."""
    for figure in figures:
      if self.paper in PAPER[figure]['curves']:
        return [tuple(point) for point in PAPER[figure]['curves'][self.paper]]
    return []


_of = dataclasses.replace
_SYNC = Arm('synchronous SGD', panel.BLACK)
_DOUBLE = Arm('synchronous SGD, twice the batch', panel.GRAY, batch=2.0)
_UNIFORM = Arm('label smoothing, uniform', panel.ORANGE)
_CODISTILL = Arm('codistilled, partitioned data', panel.VERMILION)
_SAME = Arm('codistilled, same data', panel.PURPLE)
_ENSEMBLE = Arm('ensemble of two', panel.GREEN, who='ensemble')
_NO_PEERS = {'codistill.exchange': 'none'}
_SAME_DATA = {'diversity.partition': 'same'}
_APART = {**_NO_PEERS, 'codistill.burn_in_steps': ANY}
_ONE = {'codistill.members': 1}

SYNC = _of(_SYNC, paper='sync_batch_16384', config='imagenet_sync')
SYNC_DOUBLE = _of(_DOUBLE, paper='sync_batch_32768', config='imagenet_sync')
UNIFORM = _of(_UNIFORM, config='imagenet_label_smoothing')
_PAIR = {'config': 'imagenet_codistill', 'paper': 'codistill_2_way_batch_16384'}
CODISTILL = _of(_CODISTILL, **_PAIR)
# The paper does not say how its two members' data differ.
TWO_WAY = _of(CODISTILL, label='two-way codistilled')
SAME = _of(_SAME, config='imagenet_codistill', point=_SAME_DATA)
ENSEMBLE = _of(_ENSEMBLE, config='imagenet_ensemble')
# What a member of a codistilling pair would be without the other one.
HALF_OF_THE_DATA = Arm(
  'no peers, half of the data',
  panel.BLACK,
  '--',
  config='imagenet_staleness',
  point=_NO_PEERS,
)

# Of imagenet_equal_compute, but for the first: all of the steps of one network,
# or half of the steps of two.
EQUAL_SYNC = _of(SYNC, label='one, all of the steps', paper=None)


def _half(label: str, color: str, line: str = '-', **more: Any) -> Arm:
  return Arm(label, color, line, config='imagenet_equal_compute', **more)


_LESS = {'optimizer.sgd.weight_decay_drop_at_steps': ANY}
_OWN = {'diversity.partition': 'own'}
EQUAL_DOUBLE = _half(
  'one with twice the batch', panel.GRAY, point=_APART | _ONE, batch=2.0
)
EQUAL_SAME = _half('two codistil, same data', panel.PURPLE)
EQUAL_LESS_DECAY = _half(
  'the same, less weight decay', panel.PURPLE, ':', point=_LESS
)
EQUAL_OWN = _half(
  'two codistil, half of the data each', panel.VERMILION, point=_OWN
)
EQUAL_ENSEMBLE = _half(
  'two that never meet, averaged', panel.GREEN, point=_APART, who='ensemble'
)
EQUAL_ONE = _half('one of these', panel.BLACK, '--', point=_APART)


def _student(label: str, color: str, line: str = '-', **point: Any) -> Arm:
  return Arm(label, color, line, config='imagenet_two_phase', point=point)


# Of imagenet_two_phase: from what its student learns, and the student alone.
STUDENT_ALONE = _student('no teacher', panel.BLACK, '--', **_APART)
_UNSEEN = {'data.train_split': ANY}
_UNLABELLED = {**_UNSEEN, 'codistill.task_weight': 0.0}
_BOTH = {'data.unlabelled_split': ANY}
TRANSFER = (
  _student('the teachers’ images', panel.PURPLE),
  _student('other images', panel.VERMILION, **_UNSEEN),
  _student('other images, unlabelled', panel.ORANGE, **_UNLABELLED),
  _student('both, the others unlabelled', panel.BLUE, **_BOTH),
)


def _lm(arm: Arm, paper: str | None, config: str, **more: Any) -> Arm:
  return _of(arm, **{'who': MEMBERS, **more}, paper=paper, config=config)


LM_SYNC = _lm(_SYNC, 'sync_128_workers', 'lm_sync', seconds_per_step=4.55)
# The same by more runs: two that never meet are two such networks.
LM_ALONE = _of(LM_SYNC, config='lm_ensemble', instead='lm_sync')
_LESS_BATCH = Arm(
  'synchronous SGD, half the batch', panel.GRAY, '--', batch=0.5
)
LM_HALF = _lm(_LESS_BATCH, 'sync_64_workers', 'lm_sync', seconds_per_step=4.0)
LM_DOUBLE = _lm(_DOUBLE, 'sync_256_workers', 'lm_sync', seconds_per_step=10.0)
_SMOOTHING = 'lm_label_smoothing'
LM_UNIFORM = _lm(_UNIFORM, 'label_smoothing_uniform_0.99', _SMOOTHING)
LM_UNIGRAM = _lm(
  Arm('label smoothing, unigram', panel.ORANGE, '--'),
  'label_smoothing_unigram_0.9',
  _SMOOTHING,
  point={
    'codistill.distill_weight': 0.1,
    'codistill.task_weight': 0.9,
    'codistill.teacher': 'unigram',
  },
)
_PARTITIONED = 'codistill_2x128_partitioned_reload_50'
LM_CODISTILL = _lm(_CODISTILL, _PARTITIONED, 'lm_codistill')
LM_SAME = _lm(_SAME, 'codistill_2x128_same_data', 'lm_same_data')
LM_ENSEMBLE = _lm(_ENSEMBLE, 'ensemble_2x128', 'lm_ensemble', who='ensemble')
LM_NO_PEERS = _of(HALF_OF_THE_DATA, config='lm_staleness', who=MEMBERS)
# Figure 4, by the interval; the paper reloads every 50 in its other figures.
LM_RELOADS = {
  steps: _lm(
    Arm(f'codistilled, reload {steps}', color),
    f'codistill_2x128_reload_{steps}' if steps > 50 else None,
    'lm_staleness',
    point={'codistill.reload_interval_steps': steps},
  )
  for steps, color in zip((10, 25, 50, 100, 250), sequence(5), strict=True)
}
LM_RELOADS[50] = _of(
  LM_RELOADS[50], paper=_PARTITIONED, config='lm_codistill', point={}
)
# A first phase of its own, whose steps come before the student's.
LM_TWO_PHASE = Arm(
  'student of a frozen ensemble', panel.BLUE, config='lm_two_phase'
)

# Those of Figures 2a and 2b where a network over-fits: of lm_regime, on a
# thirtieth of what two members at :laptop read in a single pass.
_LITTLE_TEXT = {'data.max_train_tokens': 136_533}
_ALL_OF_IT = {**_LITTLE_TEXT, **_SAME_DATA}
_ALONE = _of(LM_SYNC, config='lm_regime', point=_ALL_OF_IT | _APART)
_SMOOTHED = {**_ALONE.point, **_ONE, 'codistill.task_weight': ANY}


def _smoothed(arm: Arm, teacher: str, weight: float, line: str) -> Arm:
  point = {'codistill.teacher': teacher, 'codistill.distill_weight': weight}
  return Arm(
    f'label smoothing, {teacher}, {weight}',
    arm.color,
    line,
    arm.paper if line == arm.line else None,
    'lm_regime',
    point=_SMOOTHED | point,
    who=MEMBERS,
  )


OVER_FITTING = (
  _ALONE,
  _smoothed(LM_UNIFORM, 'uniform', 0.01, '-'),
  _smoothed(LM_UNIFORM, 'uniform', 0.1, ':'),
  _smoothed(LM_UNIGRAM, 'unigram', 0.1, '--'),
  _smoothed(LM_UNIGRAM, 'unigram', 0.5, '-.'),
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

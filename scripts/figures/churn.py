"""Table 1: predictions that change from one retrain to another."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from experiments.results import Result
from scripts import markdown
from scripts.figures.arms import (
  CODISTILL,
  ENSEMBLE,
  LOSS,
  PAPER,
  SYNC,
  TOP_1,
  Curve,
  Metric,
  Rows,
  mean_curve,
  one_a_seed,
  seeds_text,
)
from scripts.figures.figure import (
  COMMAND,
  Figure,
  command_cell,
  count_cell,
  mark_step,
)

_AUC = Metric('auc', 'AUC', 'AUC', 1, max, 4)
_CHURN = Metric(
  'total_variation', 'churn between two retrains', 'churn', 1, min, 4
)
_CHANGED = Metric(
  'changed_decisions', 'changed (%)', 'changed decisions (%)', 100, min, 2
)


@dataclasses.dataclass(frozen=True)
class Model:
  """A row of Table 1.

  Attributes:
    label: its name, around what a network is called.
    paper: its name in paper.json; None if it is not the paper's.
    color: that of its arm in other figures.
    members: how many networks a run trains.
    codistilled: whether they learn from each other.
    who: the predictor that is compared; of a codistilled pair one copy.
    network: what it has otherwise than the config's network.
  """

  label: str
  paper: str | None
  color: str
  members: int
  codistilled: bool
  who: int | str
  network: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def is_of(self, run: Result) -> bool:
    """Whether a run trained it, and no other network."""
    codistill = run.run['config']['codistill']
    network = {
      key: value for key, value in run.point.items() if key.startswith('model.')
    }
    return (
      network == self.network
      and codistill['members'] == self.members
      and (codistill['exchange'] != 'none') == self.codistilled
    )

  def of_paper(self) -> Sequence[float] | None:
    """The paper's log loss and churn, each with its half-range."""
    return PAPER['table1']['rows'][self.paper] if self.paper else None


MODELS = (
  Model('{}', 'dnn', SYNC.color, 1, False, 0),
  Model(
    'ensemble of two {}s',
    'ensemble_of_two_dnns',
    ENSEMBLE.color,
    2,
    False,
    'ensemble',
  ),
  Model(
    'two-way codistilled {}',
    'two_way_codistilled_dnn',
    CODISTILL.color,
    2,
    True,
    0,
  ),
)
# Its peer, for which all is the same: what the choice of one copy makes out.
OTHER_COPY = dataclasses.replace(
  MODELS[-1],
  label='two-way codistilled {}, the other copy',
  paper=None,
  color='#E69F00',
  who=1,
)
# What a DNN must beat before its churn means anything.
REGRESSION = Model(
  'hashed logistic regression',
  None,
  '#0072B2',
  1,
  False,
  0,
  {'model.name': 'click_regression'},
)


class Churn(Figure):
  """Log loss over churn at the end of training, with half-ranges as bars."""

  seeds = 5

  def __init__(
    self,
    title: str,
    configs: tuple[str, ...],
    network: str,
    models: Sequence[Model] = MODELS,
  ):
    """Names it.

    Args:
      title: of the picture.
      configs: whose rows are ours: one with all models in its sweep, or several
        whose base points are the models.
      network: what one is called.
      models: those that are compared.
    """
    self.title = title
    self.configs = configs
    self.network = network
    self.models = models

  def has_rows(self, rows: Rows) -> bool:
    """Whether two retrains of a model have been compared."""
    return any(self._pairs(model, rows) for model in self.models)

  def models_of(self, rows: Rows) -> Sequence[Model]:
    """Those of the lines of the table, the first of which others are beside."""
    del rows
    return self.models

  def how(self, variant: str) -> str:
    """What makes our rows."""
    text = super().how(variant)
    return text.replace('No rows yet', 'No stored predictions yet')

  def draw_paper(self, axes: Axes) -> None:
    """Table 1: five retrains a model."""
    for model in self.models:
      if numbers := model.of_paper():
        loss, loss_range, churn, churn_range = numbers
        label = model.label.format('DNN')
        _point(axes, model, label, churn, churn_range, loss, loss_range)
    _finish(axes, 'churn: mean |Δp| between two retrains')

  def draw_ours(self, axes: Axes, rows: Rows) -> None:
    """A point a model."""
    for model in self.models_of(rows):
      pairs, runs = self._pairs(model, rows), self._runs(model, rows)
      losses = LOSS.ends(runs, model.who)
      if pairs and losses:
        _point(
          axes,
          model,
          f'{self._label(model)} ({seeds_text(len(runs))})',
          *_mean_and_half(_ends(_CHURN, pairs, model)),
          *_mean_and_half(losses),
        )
    _finish(axes, _CHURN.label, self._best_text(rows))

  def table(self, rows: Rows, variant: str) -> str:
    """The paper's numbers beside ours."""
    lines = []
    models = self.models_of(rows)
    firsts = [
      of(_CHURN, self._pairs(models[0], rows), models[0])
      for of in (_ends, _late)
    ]
    for model in models:
      pairs, runs = self._pairs(model, rows), self._runs(model, rows)
      config = runs[0].run['experiment'] if runs else self._config(model)
      lines.append(
        [
          self._label(model),
          *_paper_cells(model),
          LOSS.text(LOSS.ends(runs, model.who)),
          _AUC.text(_AUC.ends(runs, model.who)),
          TOP_1.text(TOP_1.ends(runs, model.who)),
          *(
            _beside(
              of(_CHURN, pairs, model), [] if model is models[0] else first
            )
            for of, first in zip((_ends, _late), firsts, strict=True)
          ),
          _CHANGED.text(_ends(_CHANGED, pairs, model)),
          count_cell(runs),
          command_cell(config, variant, runs, self.seeds),
        ]
      )
    best = self._best(rows)
    if best is not None:
      name = 'best that can be reached (the truth itself)'
      lines.append(
        [name, '–', '–', LOSS.text([best]), *['–'] * 5, '–', 'printed by runs']
      )
    paper = 'paper' if len(self.configs) == 1 else 'paper, Criteo'
    header = [
      'model',
      f'{paper}: validation log loss (nats)',
      f'{paper}: mean absolute difference between retrains',
      'ours: log loss (nats)',
      'ours: AUC',
      f'ours: {TOP_1.short}',
      'ours: churn (of the first line’s)',
      'ours: churn, mean over the second half of the steps',
      f'ours: {_CHANGED.short}',
      'our runs',
      COMMAND,
    ]
    return markdown.table(header, lines)

  def _best(self, rows: Rows) -> float | None:
    """What no model can beat in expectation, if a log is synthetic, in nats.

    On all held-out rows, of which a variant may evaluate only the first.
    """
    found = {
      run.run.get('data', {}).get('best_log_loss')
      for config in self.configs
      for run in rows.get(config, ())
    }
    return found.pop() if len(found) == 1 else None

  def _best_text(self, rows: Rows) -> str:
    """That for a legend: as a line it would be far below all others."""
    best = self._best(rows)
    return f'best that can be reached: {best:.4f} nats' if best else ''

  def _label(self, model: Model) -> str:
    return model.label.format(self.network)

  def _config(self, model: Model) -> str:
    """Which config will have its runs."""
    return self.configs[
      self.models.index(model) if len(self.configs) > 1 else 0
    ]

  def _runs(self, model: Model, rows: Rows) -> list[Result]:
    return one_a_seed(
      run
      for run in rows.get(self._config(model), ())
      if self._is_of(model, run)
    )

  def _is_of(self, model: Model, run: Result) -> bool:
    return model.is_of(run) and (len(self.configs) == 1 or not run.point)

  def _pairs(self, model: Model, rows: Rows) -> list[Result]:
    """Its runs two by two: a `Result` a pair, whose rows are their churn."""
    runs = self._runs(model, rows)
    ids = {run.id for run in runs}
    pairs: dict[tuple[str, str], list] = {}
    for run in runs:
      for row in run.churn:
        if row['other'] in ids and row['member'] == model.who:
          pairs.setdefault((run.id, row['other']), []).append(row)
    return [Result({}, tuple(churn)) for churn in pairs.values()]


@dataclasses.dataclass(frozen=True)
class Choice(Model):
  """A codistilled pair with one thing otherwise.

  Attributes:
    point: what.
  """

  point: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def is_of(self, run: Result) -> bool:
    """Whether a run has it otherwise, and nothing else."""
    return run.point == self.point


class Choices(Churn):
  """Codistilled pairs, each with one thing otherwise, beside Table 1's arms."""

  config = 'criteo_choices'

  def has_rows(self, rows: Rows) -> bool:
    """Whether two retrains of a choice have been compared."""
    return any(self._pairs(choice, rows) for choice in _choices(rows))

  def models_of(self, rows: Rows) -> Sequence[Model]:
    """The arms, then the choices that have been run."""
    return [*self.models, *_choices(rows)]

  def _config(self, model: Model) -> str:
    return self.config if isinstance(model, Choice) else self.configs[0]

  def _is_of(self, model: Model, run: Result) -> bool:
    return model.is_of(run)


# What the paper leaves out, in the order of the lines, and in words.
_CHOICES = {
  'codistill.reload_interval_steps': 'reload interval {}',
  'codistill.burn_in_steps': 'ψ from step {} on',
  'diversity.partition': '{}',
}
_PARTITIONS = {'own': 'disjoint halves of the rows'}
_CHOICE_COLORS = ('#0072B2', '#56B4E9', '#CC79A7', '#E69F00', '#999999')


def _choices(rows: Rows) -> list[Choice]:
  found = {
    item
    for run in rows.get(Choices.config, ())
    if len(run.point) == 1
    for item in run.point.items()
    if item[0] in _CHOICES
  }
  order = list(_CHOICES)
  return [
    Choice(
      'codistilled, ' + _CHOICES[key].format(_PARTITIONS.get(value, value)),
      None,
      _CHOICE_COLORS[number % len(_CHOICE_COLORS)],
      2,
      True,
      0,
      point={key: value},
    )
    for number, (key, value) in enumerate(
      sorted(found, key=lambda item: (order.index(item[0]), item[1]))
    )
  ]


class ChurnOverSteps(Churn):
  """Log loss of all runs, and churn of all pairs of them, over steps."""

  titles = ('ours, :{variant}', 'ours, :{variant}')

  def how(self, variant: str) -> str:
    """What makes our rows, on the way, too."""
    return (
      f'{super().how(variant)}\n\nFor more than their ends, where a config '
      'has it not:\n\n'
      '  --config.predictions_interval_steps=K'
    )

  def draw_left(self, axes: Axes, rows: Rows) -> None:
    """Log loss of all runs of the models that have churn."""
    for model in self.models:
      if self._pairs(model, rows):
        runs = LOSS.whole(self._runs(model, rows), model.who)
        label = f'{self._label(model)} ({seeds_text(len(runs))})'
        _curves(
          axes, model, label, [LOSS.curve(run, model.who) for run in runs]
        )
    self._mark_switch(axes, rows)
    _over_steps(axes, LOSS.label, self._best_text(rows))

  def draw_ours(self, axes: Axes, rows: Rows) -> None:
    """Churn of all pairs of runs."""
    for model in self.models:
      pairs = self._pairs(model, rows)
      label = f'{self._label(model)} ({len(pairs)} pairs)'
      _curves(
        axes, model, label, [_CHURN.curve(pair, model.who) for pair in pairs]
      )
    self._mark_switch(axes, rows)
    _over_steps(axes, _CHURN.label)

  def _mark_switch(self, axes: Axes, rows: Rows) -> None:
    """Where codistilled members begin to learn from each other."""
    steps = {
      run.run['config']['codistill']['burn_in_steps']
      for model in self.models
      if model.codistilled and self._pairs(model, rows)
      for run in self._runs(model, rows)
    }
    for step in steps:
      mark_step(axes, step, 'burn-in ends', 0.01)


def _ends(metric: Metric, pairs: Sequence[Result], model: Model) -> list[float]:
  """Of each pair, at the last step of which both have predictions."""
  return [metric.curve(pair, model.who)[-1][1] for pair in pairs]


def _late(metric: Metric, pairs: Sequence[Result], model: Model) -> list[float]:
  """Of each pair, the mean over the second half of the steps.

  At a constant rate the churn of a pair goes up and down on the way, and where
  it is at the last step is chance.
  """
  curves = [metric.curve(pair, model.who) for pair in pairs]
  return [
    statistics.fmean(y for x, y in curve if x > curve[-1][0] / 2)
    for curve in curves
  ]


def _beside(values: Sequence[float], first: Sequence[float]) -> str:
  """'0.0409 ± 0.0023 (72 %)'; the first line itself is beside none."""
  text = _CHURN.text(values)
  if not values or not first:
    return text
  return (
    f'{text} ({100 * statistics.fmean(values) / statistics.fmean(first):.0f} %)'
  )


def _paper_cells(model: Model) -> list[str]:
  numbers = model.of_paper()
  if numbers is None:
    return ['–', '–']
  loss, loss_range, churn, churn_range = numbers
  return [f'{loss:.4f} ± {loss_range:g}', f'{churn:.3f} ± {churn_range:g}']


def _mean_and_half(values: Sequence[float]) -> tuple[float, float]:
  return statistics.fmean(values), (max(values) - min(values)) / 2


def _point(
  axes: Axes,
  model: Model,
  label: str,
  churn: float,
  churn_range: float,
  loss: float,
  loss_range: float,
) -> None:
  axes.errorbar(
    churn,
    loss,
    xerr=churn_range,
    yerr=loss_range,
    fmt='o',
    capsize=2,
    color=model.color,
    label=label,
  )


def _finish(axes: Axes, label: str, note: str = '') -> None:
  axes.set(xlabel=label, ylabel='validation log loss (nats)')
  if len(axes.containers) > len(MODELS):
    # Room for a long legend.
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.11 * len(axes.containers) * (high - low))
  _legend(axes, note)


def _curves(
  axes: Axes, model: Model, label: str, curves: Sequence[Curve]
) -> None:
  if not curves:
    return
  steps, mean, low, high = mean_curve(curves)
  axes.plot(steps, mean, 'o-', ms=2, color=model.color, label=label)
  axes.fill_between(
    steps, low, high, color=model.color, alpha=0.15, linewidth=0
  )


def _over_steps(axes: Axes, label: str, note: str = '') -> None:
  axes.set(xlabel='step (updates of each member)', ylabel=label)
  if axes.lines:
    _legend(axes, note)


def _legend(axes: Axes, note: str) -> None:
  axes.legend(title=note or None, title_fontsize=7.5, alignment='left')

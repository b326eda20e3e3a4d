"""Table 1: predictions that change from one retrain to another."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

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
    paper: its name in paper.json.
    color: that of its arm in other figures.
    members: how many networks a run trains.
    codistilled: whether they learn from each other.
    who: the predictor that is compared; of a codistilled pair one copy.
  """

  label: str
  paper: str
  color: str
  members: int
  codistilled: bool
  who: int | str

  def is_of(self, run: Result) -> bool:
    """Whether a run trained it, and no other network."""
    codistill = run.run['config']['codistill']
    return (
      not any(key.startswith('model.') for key in run.point)
      and codistill['members'] == self.members
      and (codistill['exchange'] != 'none') == self.codistilled
    )


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


class Churn(Figure):
  """Log loss over churn at the end of training, with half-ranges as bars."""

  seeds = 5

  def __init__(self, title: str, configs: tuple[str, ...], network: str):
    """Names it.

    Args:
      title: of the picture.
      configs: whose rows are ours: one with all models in its sweep, or several
        whose base points are the models.
      network: what one is called.
    """
    self.title = title
    self.configs = configs
    self.network = network

  def has_rows(self, rows: Rows) -> bool:
    """Whether two retrains of a model have been compared."""
    return any(self._pairs(model, rows) for model in MODELS)

  def how(self, variant: str) -> str:
    """What makes our rows."""
    text = super().how(variant)
    return text.replace('No rows yet', 'No stored predictions yet')

  def draw_paper(self, axes: Axes) -> None:
    """Table 1: five retrains a model."""
    for model in MODELS:
      loss, loss_range, churn, churn_range = PAPER['table1']['rows'][
        model.paper
      ]
      label = model.label.format('DNN')
      _point(axes, model, label, churn, churn_range, loss, loss_range)
    _finish(axes, 'churn: mean |Δp| between two retrains')

  def draw_ours(self, axes: Axes, rows: Rows) -> None:
    """A point a model."""
    for model in MODELS:
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
    _finish(axes, _CHURN.label)

  def table(self, rows: Rows, variant: str) -> str:
    """The paper's numbers beside ours."""
    lines = []
    for model in MODELS:
      loss, loss_range, churn, churn_range = PAPER['table1']['rows'][
        model.paper
      ]
      pairs, runs = self._pairs(model, rows), self._runs(model, rows)
      config = runs[0].run['experiment'] if runs else self._config(model)
      lines.append(
        [
          self._label(model),
          f'{loss:.4f} ± {loss_range:g}',
          f'{churn:.3f} ± {churn_range:g}',
          LOSS.text(LOSS.ends(runs, model.who)),
          _AUC.text(_AUC.ends(runs, model.who)),
          TOP_1.text(TOP_1.ends(runs, model.who)),
          _CHURN.text(_ends(_CHURN, pairs, model)),
          _CHANGED.text(_ends(_CHANGED, pairs, model)),
          count_cell(runs),
          command_cell(config, variant, runs, self.seeds),
        ]
      )
    paper = 'paper' if len(self.configs) == 1 else 'paper, Criteo'
    header = [
      'model',
      f'{paper}: validation log loss (nats)',
      f'{paper}: mean absolute difference between retrains',
      'ours: log loss (nats)',
      'ours: AUC',
      f'ours: {TOP_1.short}',
      'ours: churn',
      f'ours: {_CHANGED.short}',
      'our runs',
      COMMAND,
    ]
    return markdown.table(header, lines)

  def _label(self, model: Model) -> str:
    return model.label.format(self.network)

  def _config(self, model: Model) -> str:
    """Which config will have its runs."""
    return self.configs[MODELS.index(model) if len(self.configs) > 1 else 0]

  def _runs(self, model: Model, rows: Rows) -> list[Result]:
    return one_a_seed(
      run
      for run in rows.get(self._config(model), ())
      if model.is_of(run) and (len(self.configs) == 1 or not run.point)
    )

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


class ChurnOverSteps(Churn):
  """Log loss of all runs, and churn of all pairs of them, over steps."""

  titles = ('ours, :{variant}', 'ours, :{variant}')

  def how(self, variant: str) -> str:
    """What makes our rows, on the way, too."""
    return (
      f'{super().how(variant)}\n\nFor more than their ends, add\n\n'
      '  --config.predictions_interval_steps=K'
    )

  def draw_left(self, axes: Axes, rows: Rows) -> None:
    """Log loss of all runs of the models that have churn."""
    for model in MODELS:
      if self._pairs(model, rows):
        runs = LOSS.whole(self._runs(model, rows), model.who)
        label = f'{self._label(model)} ({seeds_text(len(runs))})'
        _curves(
          axes, model, label, [LOSS.curve(run, model.who) for run in runs]
        )
    _over_steps(axes, LOSS.label)

  def draw_ours(self, axes: Axes, rows: Rows) -> None:
    """Churn of all pairs of runs."""
    for model in MODELS:
      pairs = self._pairs(model, rows)
      label = f'{self._label(model)} ({len(pairs)} pairs)'
      _curves(
        axes, model, label, [_CHURN.curve(pair, model.who) for pair in pairs]
      )
    _over_steps(axes, _CHURN.label)


def _ends(metric: Metric, pairs: Sequence[Result], model: Model) -> list[float]:
  """Of each pair, at the last step of which both have predictions."""
  return [metric.curve(pair, model.who)[-1][1] for pair in pairs]


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


def _finish(axes: Axes, label: str) -> None:
  axes.set(xlabel=label, ylabel='validation log loss (nats)')
  axes.legend()


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


def _over_steps(axes: Axes, label: str) -> None:
  axes.set(xlabel='step (updates of each member)', ylabel=label)
  if axes.lines:
    axes.legend()

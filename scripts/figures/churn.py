"""Table 1: log loss, and predictions that change from retrain to retrain."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from experiments.results import Result
from scripts.figures import panel
from scripts.figures.arms import CODISTILL, ENSEMBLE, PAPER, SYNC
from scripts.figures.curves import STEPS
from scripts.figures.figure import Cells, Figure, beside, made_by
from scripts.figures.metric import (
  LOSS,
  TOP_1,
  Metric,
  Rows,
  one_a_seed,
  together,
)
from scripts.figures.panel import Dots, Grid, Line, Panel, sequence

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
    color: that of its arm in other figures.
    members: how many networks a run trains.
    codistilled: whether they learn from each other.
    who: the predictor that is compared; of a codistilled pair one copy.
    paper: its name in paper.json; None if it is not the paper's.
    network: what it has otherwise than the config's network.
    point: what else, if its runs are of another sweep of one thing otherwise.
  """

  label: str
  color: str
  members: int
  codistilled: bool = False
  who: int | str = 0
  paper: str | None = None
  network: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  point: Mapping[str, Any] | None = None

  def is_of(self, run: Result) -> bool:
    """Whether a run trained it, and no other network."""
    if self.point is not None:
      return run.point == self.point
    codistill = run.run['config']['codistill']
    network = {
      key: value for key, value in run.point.items() if key.startswith('model.')
    }
    return (
      network == self.network
      and codistill['members'] == self.members
      and (codistill['exchange'] != 'none') == self.codistilled
    )

  @property
  def of_paper(self) -> Sequence[float]:
    """The paper's log loss and churn, each with its half-range; or nothing."""
    return PAPER['table1']['rows'][self.paper] if self.paper else ()


_PAIR = {'paper': 'two_way_codistilled_dnn', 'codistilled': True}
_MEAN = {'paper': 'ensemble_of_two_dnns', 'who': 'ensemble'}
_LINEAR = {'network': {'model.name': 'click_regression'}}
MODELS = (
  Model('{}', SYNC.color, 1, paper='dnn'),
  Model('ensemble of two {}s', ENSEMBLE.color, 2, **_MEAN),
  Model('two-way codistilled {}', CODISTILL.color, 2, **_PAIR),
)
# Its peer, for which all is the same: what the choice of one copy makes out.
OTHER_COPY = dataclasses.replace(
  MODELS[-1],
  label='two-way codistilled {}, the other copy',
  paper=None,
  color=panel.ORANGE,
  who=1,
)
# What a DNN must beat before its churn means anything.
REGRESSION = Model('hashed logistic regression', panel.BLUE, 1, **_LINEAR)


class Churn(Figure):
  """Log loss and churn at the end of training, a dot a retrain and a pair."""

  seeds = 5
  lacking = 'stored predictions'

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

  def panels(self, rows: Rows) -> Grid:
    ours = self._at_end(rows)
    return [self._of_paper(), ours] if ours else []

  def _of_paper(self) -> Sequence[Panel]:
    """Table 1 itself."""
    models = [model for model in self.models if model.of_paper]
    panels = []
    for column, label in ((0, 'validation log loss (nats)'), (2, _CHURN.label)):
      dots = []
      for model in models:
        mean, half = model.of_paper[column : column + 2]
        values, name = [mean - half, mean, mean + half], model.label
        dots.append(Dots(name.format('DNN'), model.color, values, '-'))
      title = 'the paper, Criteo, mean and range of five'
      panels.append(Panel(title, dots, label))
    return panels

  def models_of(self, rows: Rows) -> Sequence[Model]:
    """Those of the lines of the table, the first of which others are beside."""
    del rows
    return self.models

  def _at_end(self, rows: Rows) -> Sequence[Panel]:
    """Losses and churn of all models that were compared; [] if none was."""
    losses, churn = [], []
    for model in self.models_of(rows):
      if pairs := self._pairs(model, rows):
        look = self._label(model), model.color
        ends = LOSS.ends(self._runs(model, rows), model.who)
        losses.append(Dots(*look, ends))
        churn.append(Dots(*look, _ends(_CHURN, pairs, model)))
    if not losses:
      return []
    label, title = (
      f'log loss (nats){self._best_text(rows)}',
      'ours, {}, a dot a ',
    )
    return [
      Panel(f'{title}retrain', losses, label),
      Panel(f'{title}pair of retrains', churn, _CHURN.label),
    ]

  def lines(self, rows: Rows) -> Iterator[Cells]:
    paper = 'paper' if len(self.configs) == 1 else 'paper, Criteo'
    paper += ': log loss (nats) / mean absolute difference between retrains'
    first: dict[Callable, list[float]] = {}
    for model in self.models_of(rows):
      pairs, runs = self._pairs(model, rows), self._runs(model, rows)
      config = runs[0].run['experiment'] if runs else self._config(model)
      churn = {of: of(_CHURN, pairs, model) for of in (_ends, _late)}
      shares = [_share(churn[of], first.get(of)) for of in churn]
      first = first or churn
      text = '{:.4f} ± {:g} / {:.3f} ± {:g}'
      changed = _CHANGED.text(_ends(_CHANGED, pairs, model))
      losses = [m.text(m.ends(runs, model.who)) for m in (LOSS, _AUC, TOP_1)]
      line = {
        'model': self._label(model),
        paper: text.format(*model.of_paper) if model.of_paper else '–',
        'ours: log loss (nats) / AUC / top-1 (%)': beside(*losses),
        'ours: churn (of the first line’s)': shares[0],
        'ours: churn, mean over the second half of the steps': shares[1],
        f'ours: {_CHANGED.short}': changed,
        **made_by(config, runs, self.seeds),
      }
      yield line
    best = self._best(rows)
    if best is not None:
      name, last = (
        'best that can be reached (the truth itself)',
        'printed by runs',
      )
      cells = [name, '–', LOSS.text([best]), *['–'] * 4, last]
      yield dict(zip(line, cells, strict=True))

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
    """That for an axis: as a line it would be far below all dots."""
    best = self._best(rows)
    return f'\nthe best there can be: {best:.4f}' if best else ''

  def _label(self, model: Model) -> str:
    return model.label.format(self.network)

  def _config(self, model: Model) -> str:
    """Which config will have its runs."""
    if len(self.configs) > 1:
      return self.configs[self.models.index(model)]
    return self.configs[0]

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


class Choices(Churn):
  """Codistilled pairs, each with one thing otherwise, after Table 1's arms."""

  # What the paper leaves out, in the order of the lines, and in words.
  choices: Mapping[str, str] = {
    'codistill.reload_interval_steps': 'reload interval {}',
    'codistill.burn_in_steps': 'ψ from step {} on',
    'diversity.partition': '{}',
  }
  words: Mapping[str, str] = {'own': 'disjoint halves of the rows'}

  def panels(self, rows: Rows) -> Grid:
    some = [self._pairs(choice, rows) for choice in self._choices(rows)]
    return [self._at_end(rows)] if any(some) else []

  def models_of(self, rows: Rows) -> Sequence[Model]:
    """The arms, then the choices that have been run."""
    return [*self.models, *self._choices(rows)]

  def _config(self, model: Model) -> str:
    return self.configs[0 if model.point is None else 1]

  def _runs(self, model: Model, rows: Rows) -> list[Result]:
    return one_a_seed(filter(model.is_of, rows.get(self._config(model), ())))

  def _choices(self, rows: Rows) -> list[Model]:
    order = list(self.choices)
    points = [run.point for run in rows.get(self.configs[1], ())]
    items = {
      item for point in points if len(point) == 1 for item in point.items()
    }
    found = sorted(
      (order.index(key), value) for key, value in items if key in order
    )
    models = []
    for (place, value), color in zip(found, sequence(len(found)), strict=True):
      words = self.choices[order[place]].format(self.words.get(value, value))
      point = {order[place]: value}
      models.append(Model(f'codistilled, {words}', color, 2, point=point))
    return models


class ChurnOverSteps(Churn):
  """Log loss of all runs, and churn of all pairs of them, over steps."""

  hint = (
    '; predictions on the way, where a config does not store them, with '
    '--config.predictions_interval_steps=K'
  )

  def panels(self, rows: Rows) -> Grid:
    losses, churn, marks = [], [], {}
    for model in self.models:
      pairs = self._pairs(model, rows)
      runs = LOSS.whole(self._runs(model, rows), model.who)
      if pairs and runs:
        look, seeds = (self._label(model), model.color), {'seeds': len(runs)}
        losses.append(Line(*look, LOSS.points(runs, model.who), **seeds))
        curves = [_CHURN.curve(pair, model.who) for pair in pairs]
        churn.append(Line(*look, together(curves), **seeds))
        if model.codistilled:
          codistill = runs[0].run['config']['codistill']
          marks[codistill['burn_in_steps']] = 'burn-in ends'
    if not losses:
      return []
    look = {'marks': marks, 'early': 0.1}
    label = f'log loss (nats){self._best_text(rows)}'
    loss = Panel('ours, {}', losses, STEPS, label, **look)
    return [[loss, Panel('ours, {}', churn, STEPS, _CHURN.label, **look)]]


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


def _share(values: Sequence[float], first: Sequence[float] | None) -> str:
  """'0.0409 ± 0.0023 (72 %)'; the first line itself is beside none."""
  text = _CHURN.text(values)
  if not values or not first:
    return text
  share = 100 * statistics.fmean(values) / statistics.fmean(first)
  return f'{text} ({share:.0f} %)'

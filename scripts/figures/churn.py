"""Table 1: log loss, and predictions that change from retrain to retrain."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from experiments.results import Result
from scripts.figures import panel
from scripts.figures.arms import ANY, CODISTILL, ENSEMBLE, PAPER, SYNC, Arm
from scripts.figures.curves import STEPS
from scripts.figures.figure import Cells, Figure, beside, made_by
from scripts.figures.metric import AUC, LOSS, TOP_1, Metric, Rows, together
from scripts.figures.panel import Dots, Grid, Panel, sequence

_CHURN = Metric(
  'total_variation', 'churn between two retrains', 'churn', 1, min, 4
)
_CHANGED = Metric(
  'changed_decisions', 'changed (%)', 'changed decisions (%)', 100, min, 2
)
_PAPER = (
  'paper, Criteo: log loss (nats) / mean absolute difference between retrains'
)
_TWO = {'codistill.members': 2}
_TAUGHT = {'codistill.exchange': 'memory', 'codistill.burn_in_steps': ANY}


def _clicks(arm: Arm, label: str, paper: str, point: Mapping) -> Arm:
  return replace(
    arm, label=label, config='criteo_table1', paper=paper, point=point
  )


_DNN = _clicks(SYNC, 'DNN', 'dnn', {})
_PAIR = 'two-way codistilled DNN'
_ARMS = (
  _DNN,
  _clicks(ENSEMBLE, 'ensemble of two DNNs', 'ensemble_of_two_dnns', _TWO),
  _clicks(CODISTILL, _PAIR, 'two_way_codistilled_dnn', _TWO | _TAUGHT),
)
# Its peer, for which all is the same: what the choice of one copy makes out.
_OTHER = replace(
  _ARMS[-1],
  label=f'{_PAIR}, the other copy',
  paper=None,
  color=panel.ORANGE,
  who=1,
)
# What a DNN must beat before its churn means anything.
_REGRESSION = replace(
  _DNN,
  label='hashed logistic regression',
  paper=None,
  color=panel.BLUE,
  point={'model.name': 'click_regression'},
)


class _Churn(Figure):
  """Log loss and churn of some arms, each with several retrains."""

  seeds = 5
  lacking = 'stored predictions'
  configs = ('criteo_table1',)
  arms: tuple[Arm, ...] = _ARMS

  def arms_of(self, rows: Rows) -> Sequence[Arm]:
    """Those of the lines of the table, the first of which others are beside."""
    del rows
    return self.arms

  def lines(self, rows: Rows) -> Iterator[Cells]:
    first: list[list[float]] = []
    for arm in self.arms_of(rows):
      pairs, runs = _pairs(arm, rows), arm.runs(rows)
      curves = [_CHURN.curve(pair, arm.who) for pair in pairs]
      churn = [_ends(curves), _late(curves)]
      shares = list(map(_share, churn, first or [[], []]))
      first = first or churn
      changed = [_CHANGED.curve(pair, arm.who) for pair in pairs]
      losses = [m.text(m.ends(runs, arm.who)) for m in (LOSS, AUC, TOP_1)]
      paper = PAPER['table1']['rows'].get(arm.paper)
      text = '{:.4f} ± {:g} / {:.3f} ± {:g}'
      line = {
        'model': arm.label,
        _PAPER: text.format(*paper) if paper else '–',
        'ours: log loss (nats) / AUC / top-1 (%)': beside(*losses),
        'ours: churn (of the first line’s)': shares[0],
        'ours: churn, mean over the second half of the steps': shares[1],
        f'ours: {_CHANGED.short}': _CHANGED.text(_ends(changed)),
        **made_by(arm.config, runs, self.seeds),
      }
      yield line
    if best := self._best(rows):
      name = 'best that can be reached (the truth itself)'
      cells = [name, '–', LOSS.text([best]), '–', '–', '–', '–']
      yield dict(zip(line, [*cells, 'printed by runs'], strict=True))

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

  def _loss_label(self, rows: Rows) -> str:
    """The best is no line: it would be far below all others."""
    best = self._best(rows)
    more = f'\nthe best there can be: {best:.4f}' if best else ''
    return f'log loss (nats){more}'

  def _at_end(self, rows: Rows) -> Sequence[Panel]:
    """Losses and churn of all arms that were compared; [] if none was."""
    losses, churn = [], []
    for arm in self.arms_of(rows):
      if pairs := _pairs(arm, rows):
        curves = [_CHURN.curve(pair, arm.who) for pair in pairs]
        losses.append(arm.dots(LOSS, rows))
        churn.append(Dots(arm.label, arm.color, _ends(curves)))
    if not losses:
      return []
    title = 'ours, {}, a dot a pair of retrains'
    return [
      Panel('ours, {}, a dot a retrain', losses, self._loss_label(rows)),
      Panel(title, churn, _CHURN.label),
    ]


class Table1(_Churn):
  """The paper's Table 1, and below it ours."""

  title = 'Table 1: log loss and churn of retrains'
  arms = (*_ARMS, _OTHER, _REGRESSION)

  def panels(self, rows: Rows) -> Grid:
    paper = []
    for column, label in ((0, 'validation log loss (nats)'), (2, _CHURN.label)):
      dots = []
      for arm in _ARMS:
        mean, half = PAPER['table1']['rows'][arm.paper][column : column + 2]
        values = [mean - half, mean, mean + half]
        dots.append(Dots(arm.label, arm.color, values, '-'))
      title = 'the paper, Criteo, mean and range of five'
      paper.append(Panel(title, dots, label))
    ours = self._at_end(rows)
    return [paper, ours] if ours else []


class Choices(_Churn):
  """Codistilled pairs, each with one thing otherwise, after Table 1's arms."""

  title = 'What the paper leaves out: reload interval, burn-in, partition'
  configs = ('criteo_table1', 'criteo_choices')
  # In the order of the lines, and in words.
  choices: Mapping[str, str] = {
    'codistill.reload_interval_steps': 'reload interval {}',
    'codistill.burn_in_steps': 'ψ from step {} on',
    'diversity.partition': 'disjoint halves of the rows',
  }

  def panels(self, rows: Rows) -> Grid:
    some = [_pairs(choice, rows) for choice in self.arms_of(rows)[3:]]
    return [self._at_end(rows)] if any(some) else []

  def arms_of(self, rows: Rows) -> Sequence[Arm]:
    """The arms, then the choices that have been run."""
    order = list(self.choices)
    points = [run.point for run in rows.get('criteo_choices', ())]
    items = {item for p in points if len(p) == 1 for item in p.items()}
    found = sorted((order.index(k), v) for k, v in items if k in order)
    colors = sequence(len(found))
    return [*self.arms] + [
      Arm(
        f'codistilled, {self.choices[order[place]].format(value)}',
        color,
        config='criteo_choices',
        point={order[place]: value},
      )
      for (place, value), color in zip(found, colors, strict=True)
    ]


class ChurnOverSteps(_Churn):
  """Log loss of all runs, and churn of all pairs of them, over steps."""

  hint = (
    '; predictions on the way, where a config does not store them, with '
    '--config.predictions_interval_steps=K'
  )

  def __init__(self, kind: str, arms: tuple[Arm, ...]):
    """Takes what predictions are of, and whose they are."""
    self.title = f'Log loss and churn on the way: {kind}'
    self.arms = arms
    self.configs = tuple(dict.fromkeys(arm.config for arm in arms))

  def panels(self, rows: Rows) -> Grid:
    losses, churn, marks = [], [], {}
    for arm in self.arms:
      pairs, runs = _pairs(arm, rows), arm.ended(LOSS, rows)
      if pairs and runs:
        seeds = len(runs)
        losses.append(arm.draw(LOSS.points(runs, arm.who), seeds=seeds))
        curves = [_CHURN.curve(pair, arm.who) for pair in pairs]
        churn.append(arm.draw(together(curves), seeds=seeds))
        codistill = runs[0].run['config']['codistill']
        if codistill['exchange'] != 'none':
          marks[codistill['burn_in_steps']] = 'burn-in ends'
    if not losses:
      return []
    look = {'marks': marks, 'early': 0.1}
    loss = Panel('ours, {}', losses, STEPS, self._loss_label(rows), **look)
    look['over'] = 'pairs of retrains'
    return [[loss, Panel('ours, {}', churn, STEPS, _CHURN.label, **look)]]


CLICKS = ChurnOverSteps('clicks', (*_ARMS, _REGRESSION))
IMAGES = ChurnOverSteps(
  'images',
  (
    replace(SYNC, label='network'),
    replace(ENSEMBLE, label='ensemble of two networks'),
    replace(CODISTILL, label='two-way codistilled network'),
  ),
)


def _pairs(arm: Arm, rows: Rows) -> list[Result]:
  """Its runs two by two: a `Result` a pair, whose rows are their churn."""
  runs = arm.runs(rows)
  ids = {run.id for run in runs}
  pairs: dict[tuple[str, str], list] = {}
  for run in runs:
    for row in run.churn:
      if row['other'] in ids and row['member'] == arm.who:
        pairs.setdefault((run.id, row['other']), []).append(row)
  return [Result({}, tuple(churn)) for churn in pairs.values()]


def _ends(curves: Sequence[Sequence[tuple[float, float]]]) -> list[float]:
  """Of each pair, at the last step of which both have predictions."""
  return [curve[-1][1] for curve in curves]


def _late(curves: Sequence[Sequence[tuple[float, float]]]) -> list[float]:
  """Of each pair, the mean over the second half of the steps.

  At a constant rate the churn of a pair goes up and down on the way, and where
  it is at the last step is chance.
  """
  return [
    statistics.fmean(y for x, y in curve if x > curve[-1][0] / 2)
    for curve in curves
  ]


def _share(values: Sequence[float], first: Sequence[float]) -> str:
  """'0.0409 ± 0.0023 (72 %)'; the first line itself is beside none."""
  text = _CHURN.text(values)
  if not values or not first:
    return text
  share = 100 * statistics.fmean(values) / statistics.fmean(first)
  return f'{text} ({share:.0f} %)'

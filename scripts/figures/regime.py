"""From where on codistillation gains on text: batch, amount of text, ψ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from experiments.results import Result
from scripts.figures.arms import LM_CODISTILL, LM_ENSEMBLE, LM_SAME, Arm
from scripts.figures.figure import Cells, Figure, ends, made_by
from scripts.figures.metric import LOSS, MEMBERS, Rows, one_a_seed
from scripts.figures.panel import Dots, Grid, Panel

_PARTITION = 'diversity.partition'
_APART = {'codistill.exchange', 'codistill.burn_in_steps', _PARTITION}
# Two that codistil, two that never meet; either may be without runs.
Pair = tuple[list[Result], list[Result]]
_FEW = 4  # Fewer conditions are no comparison of conditions.


class Regime(Figure):
  """Gains over a network alone, condition by condition."""

  title = 'Where does codistillation gain?'
  configs = ('lm_regime',)

  def panels(self, rows: Rows) -> Grid:
    conditions = _conditions(rows)
    if len(conditions) < _FEW or not rows.get('lm_regime'):
      return []
    xlabel = 'better than one alone, seed for seed (nats)'
    return [
      [
        Panel(
          f'ours, {{}}, {title}',
          [Dots(name, color, of(pair)) for name, pair in conditions.items()],
          xlabel,
          'what is different',
          zero=0,
        )
        for title, color, of in (
          ('codistilled', LM_CODISTILL.color, codistilled),
          ('ensemble of two', LM_ENSEMBLE.color, ensemble),
        )
      ]
    ]

  def lines(self, rows: Rows) -> Iterator[Cells]:
    for name, (together, apart) in _conditions(rows).items():
      pair = together, apart
      yield {
        'what is different': name,
        **ends(apart, MEMBERS, LOSS, of='alone'),
        **ends(together, MEMBERS, LOSS, of='codistilled'),
        **ends(apart, 'ensemble', LOSS, of='ensemble of two'),
        'codistillation gains': LOSS.text(codistilled(pair), sign='+'),
        'the ensemble gains': LOSS.text(ensemble(pair), sign='+'),
        **made_by('lm_regime', together),
      }


def codistilled(pair: Pair) -> list[float]:
  """What a peer gives, seed for seed."""
  together, apart = pair
  return LOSS.gains(together, MEMBERS, apart, MEMBERS)


def ensemble(pair: Pair) -> list[float]:
  """What the mean of two that never meet gives, seed for seed."""
  _, apart = pair
  return LOSS.gains(apart, 'ensemble', apart, MEMBERS)


def _base(rows: Rows, arm: Arm = LM_CODISTILL) -> Pair:
  """The config's own condition, which other experiments have runs of."""
  together, apart = arm.runs(rows), LM_ENSEMBLE.runs(rows)
  return LOSS.whole(together, 0), LOSS.whole(apart, 0)


def _pair(rows: Rows, point: Mapping[str, Any]) -> Pair:
  """Finished runs of a condition: with its point, and apart with its point."""
  together, apart = [], []
  for run in LOSS.whole(rows.get('lm_regime', ()), 0):
    if run.point == point:
      together.append(run)
    elif set(run.point) >= _APART and _rest(run.point) == _rest(point):
      apart.append(run)
  return one_a_seed(together), one_a_seed(apart)


def _rest(point: Mapping[str, Any]) -> dict[str, Any]:
  """What two that never meet have in common with two that do."""
  return {key: point[key] for key in point if key not in _APART}


def _values(rows: Rows, key: str) -> list[float]:
  points = (run.point for run in rows.get('lm_regime', ()))
  return sorted({point[key] for point in points if key in point})


def _conditions(rows: Rows) -> dict[str, Pair]:
  """All of them by name, the config's own first."""
  base = _base(rows)
  found = {'nothing': base, 'the same data for both': _base(rows, LM_SAME)}
  for key, name in (
    ('data.max_document_tokens', 'whole documents'),
    ('batch_size', '{:,} lanes a batch'),
    ('data.max_train_tokens', '{:,} tokens of text'),
    ('num_steps', '{:,} steps'),
    ('schedule.constant.rate', 'learning rate {:g}'),
  ):
    for value in _values(rows, key):
      point, shown = {key: value}, name.format(value)
      found[shown] = _pair(rows, point)
      found[f'{shown}, the same for both'] = _pair(
        rows, {**point, _PARTITION: 'same'}
      )
  found = {name: pair for name, pair in found.items() if all(pair)}
  for key, name in (
    ('codistill.distill_weight', 'ψ weighs {:g}'),
    ('codistill.burn_in_steps', 'burn-in of {:g} steps'),
  ):
    for value in _values(rows, key):
      together, _ = _pair(rows, {key: value})
      if together and base[1]:
        # Alone and apart there is no ψ.
        found[name.format(value)] = together, base[1]
  return found

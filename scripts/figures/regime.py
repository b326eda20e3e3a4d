"""From where on codistillation gains on text: batch, amount of text, ψ."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.axes import Axes

from experiments.results import Result
from scripts import markdown
from scripts.figures.arms import (
  LM_CODISTILL,
  LM_ENSEMBLE,
  LM_SAME,
  LOSS,
  MEMBERS,
  Arm,
  Rows,
  one_a_seed,
)
from scripts.figures.figure import (
  COMMAND,
  GRAY,
  Figure,
  command_cell,
  count_cell,
)

_CONFIG = 'lm_regime'
_BATCH, _TEXT = 'batch_size', 'data.max_train_tokens'
_CUT, _STEPS = 'data.max_document_tokens', 'num_steps'
_PARTITION = 'diversity.partition'
_APART = {'codistill.exchange', 'codistill.burn_in_steps', _PARTITION}
# Two that codistil, two that never meet; either may be without runs.
Pair = tuple[list[Result], list[Result]]


class Regime(Figure):
  """Gains over a network alone, condition by condition."""

  configs = (_CONFIG,)
  titles = (
    'ours, :{variant}, codistilled',
    'ours, :{variant}, ensemble of two',
  )

  def __init__(self, title: str):
    """Takes the picture's title; the paper has no such figure."""
    self.title = title

  def has_rows(self, rows: Rows) -> bool:
    """Whether there are conditions of its own."""
    return bool(_conditions(rows)) and bool(rows.get(_CONFIG))

  def draw_left(self, axes: Axes, rows: Rows) -> None:
    """What codistillation gains over a network alone."""
    _draw(axes, rows, _codistilled, LM_CODISTILL.color)

  def draw_ours(self, axes: Axes, rows: Rows) -> None:
    """What an ensemble gains; its lines are named at the left."""
    _draw(axes, rows, _ensemble, LM_ENSEMBLE.color)
    axes.set_yticklabels([])

  def table(self, rows: Rows, variant: str) -> str:
    """A line a condition."""
    lines = []
    for name, (together, apart) in _conditions(rows).items():
      ends = LOSS.ends(together, MEMBERS)
      lines.append(
        [
          name,
          LOSS.text(LOSS.ends(apart, MEMBERS)),
          LOSS.text(ends),
          LOSS.text(LOSS.ends(apart, 'ensemble')),
          LOSS.text(_codistilled((together, apart)), sign='+'),
          LOSS.text(_ensemble((together, apart)), sign='+'),
          count_cell(together),
          command_cell(_CONFIG, variant, together),
        ]
      )
    header = [
      'what is different',
      f'alone: {LOSS.short}',
      f'codistilled: {LOSS.short}',
      f'ensemble of two: {LOSS.short}',
      'codistillation gains',
      'the ensemble gains',
      'runs',
      COMMAND,
    ]
    return markdown.table(header, lines) if lines else ''


def _codistilled(pair: Pair) -> list[float]:
  together, apart = pair
  return LOSS.gains(together, MEMBERS, apart, MEMBERS)


def _ensemble(pair: Pair) -> list[float]:
  _, apart = pair
  return LOSS.gains(apart, 'ensemble', apart, MEMBERS)


def _base(rows: Rows, arm: Arm = LM_CODISTILL) -> Pair:
  """The config's own condition, which other experiments have runs of."""
  together, apart = arm.runs(rows), LM_ENSEMBLE.runs(rows)
  return LOSS.whole(together, 0), LOSS.whole(apart, 0)


def _pair(rows: Rows, point: Mapping[str, Any]) -> Pair:
  """Finished runs of a condition: with its point, and apart with its point."""
  together, apart = [], []
  for run in LOSS.whole(rows.get(_CONFIG, ()), 0):
    if run.point == point:
      together.append(run)
    elif set(run.point) >= _APART and _rest(run.point) == _rest(point):
      apart.append(run)
  return one_a_seed(together), one_a_seed(apart)


def _rest(point: Mapping[str, Any]) -> dict[str, Any]:
  """What two that never meet have in common with two that do."""
  return {key: point[key] for key in point if key not in _APART}


def _values(rows: Rows, key: str) -> list[float]:
  points = (run.point for run in rows.get(_CONFIG, ()))
  return sorted({point[key] for point in points if key in point})


def _draw(
  axes: Axes,
  rows: Rows,
  gains: Callable[[Pair], list[float]],
  color: str,
) -> None:
  """A dot a seed, a bar for their mean; a line down a condition."""
  conditions = _conditions(rows)
  for place, pair in enumerate(conditions.values()):
    values = gains(pair)
    if values:
      axes.plot(values, [place] * len(values), 'o', color=color, alpha=0.5)
      mean = statistics.fmean(values)
      axes.vlines(mean, place - 0.3, place + 0.3, color, linewidth=2)
  axes.axvline(0, color=GRAY, linewidth=0.8)
  axes.set_yticks(range(len(conditions)), list(conditions))
  axes.set(
    xlabel='better than one alone, seed for seed (nats)',
    ylim=(max(len(conditions), 1) - 0.5, -0.5),
  )


def _conditions(rows: Rows) -> dict[str, Pair]:
  """All of them by name, the config's own first."""
  base = _base(rows)
  found = {
    'nothing': base,
    'the same data for both': _base(rows, LM_SAME),
  }
  for key, name in (
    (_CUT, 'whole documents'),
    (_BATCH, '{:,} lanes a batch'),
    (_TEXT, '{:,} tokens of text'),
    (_STEPS, '{:,} steps'),
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

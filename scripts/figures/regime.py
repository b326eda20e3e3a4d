"""From where on codistillation gains on text: batch, amount of text, ψ."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes

from experiments.results import Result
from scripts import markdown
from scripts.figures.arms import (
  LM_CODISTILL,
  LM_ENSEMBLE,
  LOSS,
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
_APART = {
  'codistill.exchange',
  'codistill.burn_in_steps',
  'diversity.partition',
}
# Two that codistil, two that never meet; either may be without runs.
Pair = tuple[list[Result], list[Result]]


class Regime(Figure):
  """Gains over a network alone, over the batch and over the text."""

  configs = (_CONFIG,)
  titles = ('ours, :{variant}, by batch', 'ours, :{variant}, by text')

  def __init__(self, title: str):
    """Takes the picture's title; the paper has no such figure."""
    self.title = title

  def has_rows(self, rows: Rows) -> bool:
    """Whether there is a condition with both kinds of runs."""
    return any(
      len(where) > 1 for where in (_by(rows, _BATCH), _by(rows, _TEXT))
    )

  def draw_left(self, axes: Axes, rows: Rows) -> None:
    """Over the batch, each pass through fresh text."""
    self._draw(axes, _by(rows, _BATCH))
    axes.set_xlabel('lanes a batch')

  def draw_ours(self, axes: Axes, rows: Rows) -> None:
    """Over the text that there is, at the config's own batch."""
    self._draw(axes, _by(rows, _TEXT))
    axes.set_xlabel('tokens to train on (M); most to the right: all fresh')

  def _draw(self, axes: Axes, pairs: dict[float, Pair]) -> None:
    for arm, gains in ((LM_CODISTILL, _codistilled), (LM_ENSEMBLE, _ensemble)):
      found = {
        x: values for x, pair in pairs.items() if (values := gains(pair))
      }
      if not found:
        continue
      fewest = min(map(len, found.values()))
      axes.plot(
        list(found),
        [statistics.fmean(values) for values in found.values()],
        'o-',
        color=arm.color,
        label=f'{arm.label} (×{fewest})',
      )
      axes.fill_between(
        list(found),
        [min(values) for values in found.values()],
        [max(values) for values in found.values()],
        color=arm.color,
        alpha=0.18,
        linewidth=0,
      )
    axes.axhline(0, color=GRAY, linewidth=0.8)
    axes.set(xscale='log', ylabel='better than a network alone (nats)')
    ticks = sorted(pairs)
    axes.set_xticks(ticks, [f'{tick:g}' for tick in ticks])
    axes.minorticks_off()
    if axes.lines:
      axes.legend()

  def table(self, rows: Rows, variant: str) -> str:
    """A line a condition."""
    lines = []
    for name, (together, apart) in _conditions(rows).items():
      ends = LOSS.ends(together, 0)
      lines.append(
        [
          name,
          LOSS.text(LOSS.ends(apart, 0)),
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
      f'codistilled, partitioned: {LOSS.short}',
      f'ensemble of two: {LOSS.short}',
      'codistillation gains',
      'the ensemble gains',
      'runs',
      COMMAND,
    ]
    return markdown.table(header, lines) if lines else ''


def _codistilled(pair: Pair) -> list[float]:
  together, apart = pair
  return LOSS.gains(together, 0, apart, 0)


def _ensemble(pair: Pair) -> list[float]:
  _, apart = pair
  return LOSS.gains(apart, 'ensemble', apart, 0)


def _base(rows: Rows) -> Pair:
  """The config's own condition, which other experiments have runs of."""
  together, apart = LM_CODISTILL.runs(rows), LM_ENSEMBLE.runs(rows)
  return LOSS.whole(together, 0), LOSS.whole(apart, 0)


def _pair(rows: Rows, point: Mapping[str, Any]) -> Pair:
  """Finished runs of a condition: with its point, and apart with its point."""
  together, apart = [], []
  for run in LOSS.whole(rows.get(_CONFIG, ()), 0):
    rest = {key: run.point[key] for key in run.point if key not in _APART}
    if run.point == point:
      together.append(run)
    elif rest == point and set(run.point) >= _APART:
      apart.append(run)
  return one_a_seed(together), one_a_seed(apart)


def _values(rows: Rows, key: str) -> list[int]:
  points = (run.point for run in rows.get(_CONFIG, ()))
  return sorted({point[key] for point in points if key in point})


def _by(rows: Rows, key: str) -> dict[float, Pair]:
  """Conditions by their value of a key; the config's own among them."""
  found: dict[float, Pair] = {}
  base = _base(rows)
  if all(base):
    config = base[0][0].run['config']
    tokens = 2 * config['num_steps'] * config['batch_size']
    tokens *= config['data'].get('sequence_length', 1)
    found[config['batch_size'] if key == _BATCH else tokens / 1e6] = base
  for value in _values(rows, key):
    pair = _pair(rows, {key: value})
    if all(pair):
      found[value if key == _BATCH else value / 1e6] = pair
  return dict(sorted(found.items()))


def _conditions(rows: Rows) -> dict[str, Pair]:
  """All of them by name, the config's own first."""
  base = _base(rows)
  found = {'nothing': base} if all(base) else {}
  for key, name in ((_BATCH, 'lanes a batch'), (_TEXT, 'tokens of text')):
    for value in _values(rows, key):
      pair = _pair(rows, {key: value})
      if all(pair):
        found[f'{value:,} {name}'] = pair
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

"""Gains of a peer and an ensemble by width (not in the paper).

  python -m experiments.sweep --config=lm_width:reduced --seeds=3

The paper has one width. The hypothesis is that a narrow network has no room for
what an ensemble knows. Networks that never meet choose the rate of each width,
out of half the rate, the rate and twice the rate; pairs that codistil are run
at all three. The widest network is that of `lm_codistill` and `lm_ensemble`, at
`:gpu` with their rates; embeddings shrink with the layers.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import lm_codistill

VARIANTS = lm_codistill.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`lm_codistill`."""
  return lm_codistill.get_config(variant)


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """A half, a quarter and an eighth of the units; the widest at other rates."""
  config = get_config(variant)
  alone = {
    'codistill.exchange': 'none',
    'codistill.burn_in_steps': config.num_steps,
    'diversity.partition': 'same',
  }
  lstm, rate = config.model.lstm, config.schedule.constant.rate
  points = []  # Without those of `lm_codistill` and `lm_ensemble`.
  for part in (1, 2, 4, 8):
    if part == 1 and variant == 'gpu':
      continue
    for factor in (1, 1 / 2, 2):
      changed = {}
      if part > 1:
        changed['model.lstm.hidden_size'] = lstm.hidden_size // part
        changed['model.lstm.embedding_size'] = lstm.embedding_size // part
      if factor != 1:
        changed['schedule.constant.rate'] = factor * rate
      if changed:
        points += [changed, changed | alone]
  return points

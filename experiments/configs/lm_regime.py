"""Where does codistillation gain on text? (not in the paper).

  python -m experiments.sweep --config=lm_regime:laptop --seeds=3

Changes `lm_codistill` in one way at a time: whole documents, so that the lanes
of a batch pass through few; two to eight times the batch, for gradients with
less noise; a tenth and a thirtieth of the text, read again and again; four
times the steps; twice and four times the learning rate. Each is also run with
two members that never meet: member 0 alone is the synchronous-SGD baseline,
both together are the ensemble.

Other points change ψ: half and twice its weight, and a burn-in twice as long.
With less text both members also read all of it. On a thirtieth of the text the
paper's controls ask whether a peer is more than label smoothing where a network
over-fits.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import lm_codistill

VARIANTS = lm_codistill.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`lm_codistill`."""
  return lm_codistill.get_config(variant)


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """One change at a time."""
  config = get_config(variant)
  apart = {
    'codistill.exchange': 'none',
    'codistill.burn_in_steps': config.num_steps,
    'diversity.partition': 'same',
  }
  # Tokens that both members read in a single pass.
  tokens = (
    2 * config.num_steps * config.batch_size * config.data.sequence_length
  )
  together = [
    # No document is that long.
    {'data.max_document_tokens': 10_000_000},
    *({'batch_size': factor * config.batch_size} for factor in (2, 4, 8)),
    *({'data.max_train_tokens': tokens // share} for share in (10, 30)),
    {'num_steps': 4 * config.num_steps},
    *(
      {'schedule.constant.rate': factor * config.schedule.constant.rate}
      for factor in (2, 4)
    ),
  ]
  return [
    *(
      point | other
      for point in together
      for other in ({}, _until(point, apart))
    ),
    *({'codistill.distill_weight': weight} for weight in (0.5, 2.0)),
    {'codistill.burn_in_steps': 2 * config.codistill.burn_in_steps},
    *(
      {'data.max_train_tokens': tokens // share, 'diversity.partition': 'same'}
      for share in (10, 30)
    ),
    *(
      {
        **apart,
        'data.max_train_tokens': tokens // 30,
        'codistill.members': 1,
        'codistill.burn_in_steps': 0,
        'codistill.teacher': teacher,
        'codistill.task_weight': 1 - weight,
        'codistill.distill_weight': weight,
      }
      for teacher, weight in (
        ('uniform', 0.01),
        ('uniform', 0.1),
        ('unigram', 0.1),
        ('unigram', 0.5),
      )
    ),
  ]


def _until(point: dict[str, Any], apart: dict[str, Any]) -> dict[str, Any]:
  """Keeps members apart for all steps of a point."""
  steps = point.get('num_steps', apart['codistill.burn_in_steps'])
  return {**apart, 'codistill.burn_in_steps': steps}

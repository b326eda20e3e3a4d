"""Other choices of ψ: its temperature, its weight over steps, its loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from scripts.figures import panel
from scripts.figures.arms import ANY, Arm
from scripts.figures.ends import Ends
from scripts.figures.metric import MEMBERS, Rows

_CONFIG, _REFERENCE = 'psi_choices', 'lm_rivals'
_BURN_IN = 'codistill.burn_in_steps'
_LOSS = 'codistill.distill_loss'
_RAMP = {'codistill.distill_schedule': ANY}
_TEMPERATURE = 'codistill.temperature'
_MEAN = {'codistill.distill_weight': ANY}


def _arm(
  label: str, color: str, point: Mapping[str, Any], config: str = _CONFIG
) -> Arm:
  return Arm(label, color, config=config, point=point, who=MEMBERS)


_APART = {'codistill.exchange': 'none', _BURN_IN: ANY}
_ALONE = dataclasses.replace(
  _arm('members that never meet', panel.BLACK, _APART, _REFERENCE),
  # Their best rate may be another one than that of pairs that codistil.
  free=('schedule.constant.rate',),
)
_PAPER = _arm('ψ as in the paper', panel.VERMILION, {}, _REFERENCE)
_CHOICES = tuple(
  _arm(label, color, point)
  for color, points in (
    (
      panel.BLUE,
      {
        'temperature 2': {_TEMPERATURE: 2.0},
        'temperature 4': {_TEMPERATURE: 4.0},
        'temperature 4, not times T²': {
          _TEMPERATURE: 4.0,
          'codistill.temperature_scaling': False,
        },
      },
    ),
    (
      panel.ORANGE,
      {
        'no burn-in': {_BURN_IN: 0},
        'no burn-in, weight grows': {_BURN_IN: 0} | _RAMP,
        'weight grows after the burn-in': _RAMP,
      },
    ),
    (
      panel.PURPLE,
      {
        'reverse KL': {_LOSS: 'reverse_kl'},
        'Jensen–Shannon': {_LOSS: 'jensen_shannon'},
        'KL of the teacher’s 16 likeliest': {_LOSS: 'top_k_kl'},
        'squared error of logits': {_LOSS: 'squared_logit_error'} | _MEAN,
        'squared error of log-softmax': {_LOSS: 'squared_log_softmax_error'}
        | _MEAN,
      },
    ),
  )
  for label, point in points.items()
)


class PsiChoices(Ends):
  """The end with each choice, beside the paper's and beside no peers."""

  title = 'Which temperature, weight and loss should ψ have?'
  configs = (_REFERENCE, _CONFIG)
  columns = ('ψ',)
  of = 'a member'

  def groups(self, rows: Rows) -> Mapping[str, Sequence[Arm]]:
    del rows
    return {'': (_ALONE, _PAPER, *_CHOICES)}

"""Other choices of ψ: its temperature, its weight over steps, its loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scripts.figures import panel
from scripts.figures.arms import ANY, Arm
from scripts.figures.figure import Cells, Figure, ends, gains, made_by
from scripts.figures.metric import LOSS, MEMBERS, Rows
from scripts.figures.panel import Dots, Grid, Panel

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
# Their best rate may be another one than that of pairs that codistil.
_ALONE = tuple(
  _arm('members that never meet', panel.BLACK, _APART | rate, _REFERENCE)
  for rate in ({}, {'schedule.constant.rate': ANY})
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


class PsiChoices(Figure):
  """The end with each choice, beside the paper's and beside no peers."""

  title = 'Which temperature, weight and loss should ψ have?'
  configs = (_REFERENCE, _CONFIG)

  def panels(self, rows: Rows) -> Grid:
    if not any(arm.runs(rows) for arm in _CHOICES):
      return []
    dots = [
      Dots(arm.label, arm.color, LOSS.ends(arm.runs(rows), arm.who))
      for arm in (_alone(rows), _PAPER, *_CHOICES)
    ]
    return [[Panel('ours, {}, at the end', dots, LOSS.label)]]

  def lines(self, rows: Rows) -> Iterator[Cells]:
    alone = _alone(rows)
    for arm in (alone, _PAPER, *_CHOICES):
      runs = arm.runs(rows)
      yield {
        'ψ': arm.label,
        **ends(runs, arm.who, LOSS, of='a member'),
        **gains(runs, arm.who, alone, rows, LOSS),
        **ends(runs, 'ensemble', LOSS, of='ensemble'),
        **made_by(arm.config, runs),
      }


def _alone(rows: Rows) -> Arm:
  return next((arm for arm in _ALONE if arm.runs(rows)), _ALONE[0])

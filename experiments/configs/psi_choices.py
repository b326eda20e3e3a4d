"""The temperature, weight over steps and loss of ψ (not in the paper).

  python -m experiments.sweep --config=psi_choices:laptop --seeds=3

The paper has cross-entropy with the peers' predictions as they are, at full
weight from the end of the burn-in on. The sweep changes one of these at a time:
temperatures (Hinton et al., 2015), a weight that grows, after the burn-in or
instead of it, and other losses. KL is not among these, since its gradient is
that of cross-entropy. Squared errors, which are sums over K classes, count 1/K
times: that is what cross-entropy at a high temperature, times its square, tends
to (Hinton et al., §2.1).

Codistillation as it is, and members that never meet, are points of `lm_rivals`,
whose networks these are. A run at `:laptop` takes three minutes on a core.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import lm_rivals

VARIANTS = lm_rivals.VARIANTS
_BURN_IN = 'codistill.burn_in_steps'
_SCHEDULE = 'codistill.distill_schedule'
_LOSS = 'codistill.distill_loss'
_TEMPERATURE = 'codistill.temperature'


def get_config(variant: str = '') -> ConfigDict:
  """`lm_rivals`."""
  return lm_rivals.get_config(variant)


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """One change at a time."""
  config = get_config(variant)
  steps = config.codistill.burn_in_steps
  mean = {'codistill.distill_weight': 1 / config.data.vocab_size}
  return [
    {_TEMPERATURE: 2.0},
    {_TEMPERATURE: 4.0},
    {_TEMPERATURE: 4.0, 'codistill.temperature_scaling': False},
    {_BURN_IN: 0},
    {_BURN_IN: 0, _SCHEDULE: f'linear_ramp(num_steps={2 * steps})'},
    {_SCHEDULE: f'linear_ramp(num_steps={steps})'},
    {_LOSS: 'reverse_kl'},
    {_LOSS: 'jensen_shannon'},
    {_LOSS: 'top_k_kl'},
    {_LOSS: 'squared_logit_error'} | mean,
    {_LOSS: 'squared_log_softmax_error'} | mean,
  ]

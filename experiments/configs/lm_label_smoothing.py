"""Label smoothing: is a peer a regulariser only? (Figure 2a, §3.2).

  python -m experiments.sweep --config=lm_label_smoothing:reduced --seeds=3

ψ's first argument is a constant distribution, and there are no peers: 0.99 φ +
0.01 ψ(uniform), and 0.9 φ + 0.1 ψ(unigram), the pieces' frequencies. The paper
labels these arms 0.99 and 0.9 and does not say what the numbers weigh. They end
at 4.07 and 4.33 nats, the baseline at 4.04.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import lm_sync

VARIANTS = lm_sync.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`lm_sync` with a uniform teacher from the first step on."""
  config = lm_sync.get_config(variant)
  config.codistill.burn_in_steps = 0
  config.codistill.teacher = 'uniform'
  config.codistill.task_weight = 0.99
  config.codistill.distill_weight = 0.01
  return config


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """Uniform and unigram."""
  del variant
  return [
    {},
    {
      'codistill.teacher': 'unigram',
      'codistill.task_weight': 0.9,
      'codistill.distill_weight': 0.1,
    },
  ]

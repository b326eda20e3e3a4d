"""Asynchronous SGD, simulated (§2.1, §3.2).

  python -m experiments.sweep --config=lm_async:reduced

W workers with lanes of their own take turns; each gradient is computed on the
weights of W − 1 updates ago, as if all workers took equally long. This is
deterministic and takes one process. The paper tries 32 and 128 workers, finds
it hard to keep them from diverging, and shows no curve. The sweep changes W and
the learning rate, and lets two such groups codistil.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import lm_sync

VARIANTS = lm_sync.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`lm_sync` with as many updates, each by one worker."""
  config = lm_sync.get_config(variant)
  # Of each worker: 128, as in the paper.
  config.batch_size //= {'': 128, 'smoke': 4}.get(variant, 8)
  config.num_async_workers = {'': 128, 'smoke': 4}.get(variant, 8)
  return config


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """Workers, learning rates, and two groups that codistil."""
  config = get_config(variant)
  workers, rate = config.num_async_workers, config.schedule.constant.rate
  return [
    *(
      ({} if count == workers else {'num_async_workers': count})
      | ({} if factor == 1 else {'schedule.constant.rate': factor * rate})
      for factor in (1, 0.3, 0.1)
      for count in (workers // 4, workers, 4 * workers)
    ),
    {
      'codistill.members': 2,
      'codistill.exchange': 'memory',
      'codistill.burn_in_steps': config.num_steps // 6,
      'diversity.partition': 'own',
    },
  ]

"""Asynchronous SGD, simulated (§2.1, §3.2).

  python -m experiments.sweep --config=lm_async:reduced

W workers with lanes of their own take turns; each gradient was computed on the
weights of W − 1 updates ago, as when all take equally long. Deterministic, and
in one process. The paper tries 32 and 128 workers, finds them hard to keep from
diverging, and shows no curve. W and the learning rate are swept, and two such
groups codistil.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import lm_sync

VARIANTS = lm_sync.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`lm_sync` with as many updates, each by one worker."""
  config = lm_sync.get_config(variant)
  # Of each worker: the paper's 128.
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

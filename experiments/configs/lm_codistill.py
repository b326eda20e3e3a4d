"""Two language models that teach each other (Figures 2a, 2b, 4).

  python -m experiments.run --config=lm_codistill --config.data.data_dir=DIR

Two members of 128 workers each learn from disjoint halves of the documents;
peers are reloaded every 50 steps. The paper reaches the baseline's 4.04 nats at
step 6,800 (14,300 for the baseline) and 3.91 at the end. It does not say when ψ
is switched on: by its curves before step 3,200, here at 2,000. No run at this
scale has been made with this code.

  python -m experiments.run --config=lm_codistill:laptop

Two networks of 2 × 64 units on Python sources take two to four minutes on a
core. `:reduced` has 2 × 256 units and three times the steps, and takes over an
hour on a core.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import lm_sync

VARIANTS = lm_sync.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`lm_sync` with two members that teach each other."""
  config = lm_sync.get_config(variant)
  config.codistill.members = 2
  config.codistill.burn_in_steps = {
    '': 2_000,
    'gpu': 500,
    'smoke': 3,
  }.get(variant, 250)
  config.codistill.exchange = 'memory'
  config.codistill.reload_interval_steps = {'smoke': 2}.get(variant, 50)
  config.diversity.partition = 'own'
  return config


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """At `:gpu`, also half and twice the rate, and the largest batches."""
  large = lm_sync.large_batches((16, 32)) if variant == 'gpu' else []
  # They would read halves eight times.
  return [
    *lm_sync.rates(variant),
    *(point | {'diversity.partition': 'same'} for point in large),
  ]

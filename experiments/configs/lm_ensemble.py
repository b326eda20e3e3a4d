"""Two language models that never meet, averaged (Figure 2a).

  python -m experiments.run --config=lm_ensemble --config.data.data_dir=DIR

Each member learns from all documents in its own order; their predictions are
averaged at evaluation. The paper's ensemble of two times 128 workers ends at
3.89 nats, and serving it costs twice as much.

  python -m experiments.run --config=lm_ensemble:laptop
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import lm_sync

VARIANTS = lm_sync.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`lm_sync`, twice."""
  config = lm_sync.get_config(variant)
  config.codistill.members = 2
  return config


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """At `:gpu`, also half and twice the rate."""
  return lm_sync.rates(variant)

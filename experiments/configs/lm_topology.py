"""Three and four language models, all or a ring (§4).

  python -m experiments.sweep --config=lm_topology:reduced --seeds=3

The paper trains two members, and leaves more members and other graphs open.
Members learn from disjoint thirds or quarters of the documents.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import lm_codistill

VARIANTS = lm_codistill.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`lm_codistill` with three members."""
  config = lm_codistill.get_config(variant)
  config.codistill.members = 3
  return config


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """All and ring, with three members and with four."""
  del variant
  return [
    ({} if members == 3 else {'codistill.members': members})
    | ({} if graph == 'all' else {'codistill.topology': graph})
    for members in (3, 4)
    for graph in ('all', 'ring')
  ]

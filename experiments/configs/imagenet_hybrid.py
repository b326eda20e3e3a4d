"""Codistillation between pairs of averaged ResNet-50 (not in the paper).

  python -m experiments.run --config=imagenet_hybrid

As `lm_hybrid`, on images: members 0 and 1 average their weights every 50 steps,
and so do 2 and 3; after the burn-in 0 and 2 teach each other, and 1 and 3. No
run at this scale has been made with this code.

  python -m experiments.run --config=imagenet_hybrid:laptop

Four ResNet-8 on handwritten digits take three minutes on two CPU cores.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import (
  imagenet_codistill,
  imagenet_local_sgd,
  lm_hybrid,
)

VARIANTS = imagenet_codistill.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`imagenet_local_sgd` with two pairs, ψ from `imagenet_codistill`'s step."""
  config = imagenet_local_sgd.get_config(variant)
  config.codistill.members = 4
  config.codistill.group_size = 2
  config.codistill.burn_in_steps = imagenet_codistill.get_config(
    variant
  ).codistill.burn_in_steps
  return config


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """Local SGD inside the pairs, and DiLoCo."""
  return lm_hybrid.sweep(variant)

"""Peers in float32, bfloat16 and int8 (not in the paper).

  python -m experiments.sweep --config=teacher_precision:reduced --seeds=3

Two-way codistillation as `imagenet_codistill`, whose peers are published in one
precision and held by their students in the same or another. Weights alone are
rounded (`codistill.precision`); students compute and train as ever. The paper
publishes checkpoints as they are, and names the bytes as what codistillation
saves (§2.1).

Fashion-MNIST (`:reduced`): about three minutes a run on two CPU cores.
Handwritten digits (`:laptop`): about a minute.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import imagenet_codistill

VARIANTS = imagenet_codistill.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`imagenet_codistill` as it is."""
  return imagenet_codistill.get_config(variant)


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """The same for publications and teachers, and one held otherwise."""
  del variant
  return [
    {
      'codistill.publish_precision': published,
      'codistill.teacher_precision': held,
    }
    for published, held in (
      ('float32', 'float32'),
      ('bfloat16', 'bfloat16'),
      ('int8', 'int8'),
      ('int8', 'float32'),
    )
  ]

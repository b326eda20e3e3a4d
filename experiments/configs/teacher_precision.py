"""Peers in float32, bfloat16 and int8 (not in the paper).

  python -m experiments.sweep --config=teacher_precision:reduced --seeds=3

The peers of `imagenet_codistill` are published in one precision, and their
students hold them in the same or another. Only weights are rounded
(`codistill.precision`); students compute and train as before. The paper
publishes checkpoints as they are, and says that codistillation saves bytes
(§2.1).

A run on Fashion-MNIST (`:reduced`) takes about three minutes on two CPU cores,
one on handwritten digits (`:laptop`) about a minute.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import imagenet_codistill

VARIANTS = imagenet_codistill.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`imagenet_codistill` as it is."""
  return imagenet_codistill.get_config(variant)


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """The same for publications and teachers, then int8 held as float32."""
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

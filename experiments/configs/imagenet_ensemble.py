"""Two ResNet-50 that never meet, averaged (Figure 2a, for text).

  python -m experiments.run --config=imagenet_ensemble

Each network trains on all the data; their predictions are averaged at
evaluation. The paper shows the ensemble for its language model (Figure 2a) and
gives no ImageNet number.

  python -m experiments.run --config=imagenet_ensemble:laptop

Two ResNet-8 on handwritten digits take about a minute on two CPU cores.

  python -m experiments.sweep --config=imagenet_ensemble:reduced --seeds=3

A run on Fashion-MNIST takes about two minutes and ends at 0.332 nats.
"""

from ml_collections import ConfigDict

from experiments.configs import imagenet_sync

VARIANTS = imagenet_sync.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`imagenet_sync`, twice."""
  config = imagenet_sync.get_config(variant)
  config.codistill.members = 2
  return config

"""Two ResNet-50 that never meet, averaged (Figure 2a, for text).

  python -m experiments.run --config=imagenet_ensemble

Two ResNet-50 that never meet, each on all the data; their predictions are
averaged at evaluation. The paper shows the ensemble for its language model
(Figure 2a) and gives no ImageNet number.

  python -m experiments.run --config=imagenet_ensemble:laptop

Handwritten digits, two ResNet-8: about a minute on two CPU cores.

  python -m experiments.sweep --config=imagenet_ensemble:reduced --seeds=3

Fashion-MNIST: about two minutes a run, 0.332 nats.
"""

from ml_collections import ConfigDict

from experiments.configs import imagenet_sync

VARIANTS = imagenet_sync.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`imagenet_sync`, twice."""
  config = imagenet_sync.get_config(variant)
  config.codistill.members = 2
  return config

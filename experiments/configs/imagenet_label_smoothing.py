"""Label smoothing: is a peer a regulariser only? (Figure 2a, for text).

  python -m experiments.run --config=imagenet_label_smoothing

ψ's first argument is a constant distribution, and there are no peers. The
paper runs this control on its language model alone, and labels it 0.99
(uniform) and 0.9 (unigram) without saying what these numbers weigh. Here they
are the weights of the label: 0.99 φ + 0.01 ψ(uniform), and

  python -m experiments.run --config=imagenet_label_smoothing \
    --workdir=runs/unigram --config.codistill.teacher=unigram \
    --config.codistill.task_weight=0.9 --config.codistill.distill_weight=0.1

for 0.9 φ + 0.1 ψ(unigram), the training set's label frequencies. With `:laptop`
after the name a run on handwritten digits takes under a minute on two CPU
cores.

  python -m experiments.sweep --config=imagenet_label_smoothing:reduced \
    --seeds=3

A run on Fashion-MNIST takes about a minute and ends at 0.362 nats.
"""

from ml_collections import ConfigDict

from experiments.configs import imagenet_sync

VARIANTS = imagenet_sync.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`imagenet_sync` with a uniform teacher from the first step on."""
  config = imagenet_sync.get_config(variant)
  config.codistill.burn_in_steps = 0
  config.codistill.teacher = 'uniform'
  config.codistill.task_weight = 0.99
  config.codistill.distill_weight = 0.01
  return config

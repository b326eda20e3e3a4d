"""Two networks for half of the steps, or one? (not in the paper).

  python -m experiments.sweep --config=imagenet_equal_compute --seeds=3

The question of Sodhani et al. (2020, arXiv:2010.02838), who compare for equal
devices and equal updates. A budget of S steps at batch B buys one network at B
for S steps (`imagenet_sync`), one at 2B for S/2 with twice the rate, or two at
B for S/2 each: all have seen as many images, and all have computed as many
gradients; codistillation computes its teachers besides. Every schedule is
`imagenet_sync`'s of 90 epochs, shortened; ψ comes on at the same share of it as
in `imagenet_codistill`, and peers are reloaded as many times.

Members draw from all of the data, and, as the paper has it on text, from
disjoint halves. Because ψ regularises, too, weight decay drops by ten when ψ
comes on, as a variant: Sodhani et al. find codistillation about two points
worse without something like it, and on a par (75.9 against 76.1 %) with it. Two
that never meet are the ensemble, and the first of them is one network for half
of everything.

  python -m experiments.sweep --config=imagenet_equal_compute:reduced --seeds=3

Fashion-MNIST: about two minutes a run on a CPU core.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import imagenet_codistill, imagenet_sync

VARIANTS = imagenet_codistill.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`imagenet_codistill` on the same data, for half of the 90 epochs."""
  config = imagenet_codistill.get_config(variant)
  config.codistill.burn_in_steps //= 2
  # ψ comes on with peers of just then, and not of before the rate dropped.
  config.codistill.reload_interval_steps //= 2
  config.diversity.partition = 'same'
  return imagenet_sync.halve(config)


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """What a budget of half the steps of two networks can be spent on."""
  config = get_config(variant)
  apart = {
    'codistill.exchange': 'none',
    'codistill.burn_in_steps': config.num_steps,
  }
  _, twice_the_batch = imagenet_sync.sweep(variant)
  return [
    {},
    {
      'optimizer.sgd.weight_decay_drop_at_steps': (
        config.codistill.burn_in_steps,
      )
    },
    {'diversity.partition': 'own'},
    apart,
    twice_the_batch | apart | {'codistill.members': 1},
  ]

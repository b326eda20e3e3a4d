"""Two networks for half of the steps, or one? (not in the paper).

  python -m experiments.sweep --config=imagenet_equal_compute --seeds=3

This is the question of Sodhani et al. (2020, arXiv:2010.02838), who compare at
equal devices and equal updates. A budget of S steps at batch B buys one network
at B for S steps (`imagenet_sync`), one at 2B for S/2 with twice the rate, or
two at B for S/2 each. All see as many images and compute as many gradients;
codistillation also computes its teachers. Every schedule is that of
`imagenet_sync` for 90 epochs, shortened; ψ comes on at the same share of it as
in `imagenet_codistill`, and peers are reloaded as many times.

Members draw from all of the data or, as in the paper on text, from disjoint
halves. In one point weight decay drops by ten when ψ comes on, because ψ
regularises, too: Sodhani et al. find codistillation about two points worse
without something like it, and on a par (75.9 against 76.1 %) with it. Two
members that never meet are the ensemble; the first of them is one network for
half of everything.

  python -m experiments.sweep --config=imagenet_equal_compute:reduced --seeds=3

A run on Fashion-MNIST takes about two minutes on a CPU core.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import imagenet_codistill, imagenet_sync

VARIANTS = imagenet_codistill.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`imagenet_codistill` on the same data, for half of the 90 epochs."""
  config = imagenet_codistill.get_config(variant)
  config.codistill.burn_in_steps //= 2
  # ψ then starts with fresh peers, not with those from before the rate dropped.
  config.codistill.reload_interval_steps //= 2
  config.diversity.partition = 'same'
  return imagenet_sync.halve(config)


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """The ways to spend the budget of two networks for half of the steps."""
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

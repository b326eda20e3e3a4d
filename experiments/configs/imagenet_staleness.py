"""How stale may a peer be? On images (Figure 4, for text).

  python -m experiments.sweep --config=imagenet_staleness:laptop --seeds=3

Two members reload each other every 1, 10, 50, 100 or 250 steps, or never. A
second axis delays publications instead: with reloads every 10 steps, each
publication is seen 20, 45 or 120 steps late, so that rare reloads and old
weights can be told apart. The paper sweeps the interval (50, 100, 250) on its
language model, calls the loss slight, and shows no delay.

Burn-in ends at step 250, a multiple of 50 and 250; otherwise long intervals
would start with a teacher from long before it. On two CPU cores a run takes
about a minute with two ResNet-8 on handwritten digits (`:laptop`), and about
three on Fashion-MNIST (`:reduced`). There the loss shows no trend with age:
0.37 to 0.38 nats, and 0.53 without peers.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import imagenet_codistill

VARIANTS = imagenet_codistill.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`imagenet_codistill`, with its burn-in on a step of publication."""
  config = imagenet_codistill.get_config(variant)
  if variant == 'laptop':
    config.codistill.burn_in_steps = 250
  return config


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """Reload intervals, no peers, and delays at a short interval."""
  intervals, short, delays = {
    'smoke': ((1, 2), 1, (1,)),
  }.get(variant, ((1, 10, 50, 100, 250), 10, (20, 45, 120)))
  return [
    *({'codistill.reload_interval_steps': steps} for steps in intervals),
    {'codistill.exchange': 'none'},
    *(
      {
        'codistill.reload_interval_steps': short,
        'codistill.delay_steps': steps,
      }
      for steps in delays
    ),
  ]

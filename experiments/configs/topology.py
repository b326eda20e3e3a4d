"""2, 4 and 8 members: all, ring, pairs, star, random (§4).

  python -m experiments.sweep --config=topology:laptop --seeds=3

All from all, a ring, pairs, a star, two neighbours drawn anew at each reload,
and for reference nobody. The members' data are disjoint: of 8 each sees an
eighth. The paper has run two members only, fears that many which all learn from
all become alike too fast, and leaves rings and others open (§4).

Handwritten digits (`:laptop`): one to eleven minutes a run, two at a time on
two CPU cores; a ring does as well as all from all. Fashion-MNIST (`:reduced`),
batches of 128 and a quarter of the learning rate of
`imagenet_codistill:reduced`: not run yet.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import imagenet_codistill

VARIANTS = imagenet_codistill.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`imagenet_codistill`; at `:reduced` with smaller batches."""
  config = imagenet_codistill.get_config(variant)
  config.codistill.num_random_neighbours = 2
  if variant == 'reduced':
    # Eight members of 512 would take two hours a run.
    config.batch_size = 128
    config.schedule.warmup_piecewise.peak_rate = 0.1
    config.eval_interval_steps = 50
  return config


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """Two members know one graph; four and eight all of them."""
  graphs = ('all', 'ring', 'pairs', 'star', 'random')
  none = {'codistill.exchange': 'none'}
  return [
    {},
    none,
    *(
      {'codistill.members': members} | point
      for members in {'smoke': (4,)}.get(variant, (4, 8))
      for point in (*({'codistill.topology': name} for name in graphs), none)
    ),
  ]

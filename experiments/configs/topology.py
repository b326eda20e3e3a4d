"""2, 4 and 8 members: all, ring, pairs, star, random (§4).

  python -m experiments.sweep --config=topology:laptop --seeds=3

Members learn from all others, in a ring, in pairs, in a star, from two
neighbours drawn anew at each reload or, for reference, from nobody. Their data
are disjoint: each of 8 sees an eighth. The paper runs two members only, fears
that many members become alike too fast if all learn from all, and leaves rings
and other graphs open (§4).

On handwritten digits (`:laptop`) a run takes one to eleven minutes, two at a
time on two CPU cores; a ring does as well as all from all. Fashion-MNIST
(`:reduced`), with batches of 128 and a quarter of the learning rate of
`imagenet_codistill:reduced`, has not been run yet.
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
  """One graph with two members; all graphs with four and eight."""
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

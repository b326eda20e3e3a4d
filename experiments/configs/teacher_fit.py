"""Students of one teacher at several ages (§3.4.1).

  python -m experiments.sweep --config=teacher_fit --seeds=3

Runs `cifar100_offline` with the teacher stopped at a sixteenth, an eighth, a
quarter and a half of its training, and at its end, when it fits its training
set completely; and the student without a teacher. The paper says that an
under-fitted teacher helps and an over-fitted one is worthless (§3.4.1).

It is the same teacher at all ages: the schedule counts steps from the start, so
that a run of half as many steps is, bit for bit, the first half of the other.
Each student trains for the whole of its own schedule.

  python -m experiments.sweep --config=teacher_fit:reduced --seeds=3

A run on Fashion-MNIST takes about a minute on a CPU core.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import cifar100_offline

VARIANTS = cifar100_offline.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`cifar100_offline`."""
  return cifar100_offline.get_config(variant)


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """The teacher's ages, the last first; then no teacher."""
  config = get_config(variant)
  shares = (2,) if variant == 'smoke' else (2, 4, 8, 16)
  return [
    {},
    *({'two_phase.num_steps': config.num_steps // share} for share in shares),
    {
      'codistill.exchange': 'none',
      'codistill.burn_in_steps': config.num_steps,
    },
  ]

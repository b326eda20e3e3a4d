"""A student of a frozen pair, on which images? (§3.4.1, for text).

  python -m experiments.sweep --config=imagenet_two_phase --seeds=3

Two networks that never meet train for `two_phase.num_steps`, in
WORKDIR/ensemble; then a fresh one learns from labels and from the frozen pair's
average, for as many steps. Together they take the 7,038 steps of 90 epochs. The
paper compares codistillation with this on its language model, and says that a
teacher that knows the transfer set well has little to teach there.

So the sweep changes the transfer set. The teachers learn from one half of the
training images (`two_phase.train_split`). The student learns from the same
half, as is usual; from the other half with its labels; from the other half by ψ
alone; or from the first half and, without labels, the other one
(`data.unlabelled_split`). For comparison, one student has no teacher. No
network learns from the images of the evaluation.

  python -m experiments.sweep --config=imagenet_two_phase:reduced --seeds=3

A run on halves of 15,000 images of Fashion-MNIST takes about three minutes on a
CPU core.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import imagenet_sync

VARIANTS = imagenet_sync.VARIANTS
_HALVES = {'reduced': ('train[:15000]', 'train[15000:30000]')}


def get_config(variant: str = '') -> ConfigDict:
  """`imagenet_sync` for half of the 90 epochs, twice, on half of the data."""
  config = imagenet_sync.halve(imagenet_sync.get_config(variant))
  config.two_phase.num_steps = config.num_steps
  config.two_phase.train_split, _ = _halves(variant)
  config.data.train_split, _ = _halves(variant)
  config.codistill.exchange = 'frozen'
  config.codistill.burn_in_steps = 0
  return config


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """The same half, the other, the other without labels, both; no teacher."""
  _, unseen = _halves(variant)
  return [
    {},
    {'data.train_split': unseen},
    {'data.train_split': unseen, 'codistill.task_weight': 0.0},
    {'data.unlabelled_split': unseen},
    {
      'codistill.exchange': 'none',
      'codistill.burn_in_steps': get_config(variant).num_steps,
    },
  ]


def _halves(variant: str) -> tuple[str, str]:
  return _HALVES.get(variant, ('train[:50%]', 'train[50%:]'))

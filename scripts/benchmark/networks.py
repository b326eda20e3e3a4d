"""The networks of the paper, and updates of them on made-up examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from codistill import precision, sharding
from codistill.algorithm import Peer
from codistill.train_state import TrainState, place_state
from experiments import config as configs
from experiments.experiment import Experiment
from scripts import cost


class Network(NamedTuple):
  """A config and changes to it."""

  config: str
  changes: Mapping[str, Any] = {}

  @property
  def dtype(self) -> str:
    """The precision that it computes in."""
    return configs.load_changed(self.config, self.changes).model.dtype

  def build(self, **changes: Any) -> Experiment:
    """An experiment without data, on one device."""
    return cost.make_experiment(self.config, 1, **{**self.changes, **changes})


SMALL = {
  # A quarter of the paper's widths and vocabulary.
  'LSTM': Network(
    'lm_codistill',
    {
      'batch_size': 64,
      'data.vocab_size': 6_000,
      'model.dtype': 'float32',
      'model.lstm.embedding_size': 64,
      'model.lstm.hidden_size': 256,
    },
  ),
  'ResNet-50': Network(
    'imagenet_codistill',
    {
      'batch_size': 16,
      'codistill.teacher_precision': 'float32',
      'data.image_shape': (64, 64, 3),
      'model.dtype': 'float32',
      'model.resnet.batch_norm_group_size': 16,
    },
  ),
  'small ResNet': Network('imagenet_codistill:reduced'),
  'DNN': Network('criteo_codistill:reduced'),
}
# One device's share of the paper's batches: one worker's lanes for the LSTM,
# four workers' images for ResNet-50.
FULL = {
  'LSTM': Network('lm_codistill', {'batch_size': 128}),
  'ResNet-50': Network('imagenet_codistill', {'batch_size': 128}),
  'small ResNet': Network('imagenet_codistill:reduced'),
  'DNN': Network('criteo_codistill'),
}


def resnet(depth: int, width: int, batch_size: int) -> Network:
  """A ResNet in float32 on images of 16×16 and 1,000 classes."""
  return Network(
    'imagenet_codistill',
    {
      'batch_size': batch_size,
      'codistill.teacher_precision': 'float32',
      'data.image_shape': (16, 16, 3),
      'model.dtype': 'float32',
      'model.resnet.batch_norm_group_size': None,
      'model.resnet.depth': depth,
      'model.resnet.width': width,
    },
  )


# By their millions of parameters.
RESNETS = {
  1: resnet(18, 18, batch_size=4),
  25: resnet(50, 64, batch_size=4),
  100: resnet(50, 131, batch_size=4),
}


def start(experiment: Experiment) -> tuple[TrainState, dict[str, Any]]:
  """A member's first state, and a made-up batch, on the mesh."""
  batch = sharding.split_batch(
    experiment.task.made_up_batch(experiment.batch_size, seed=0),
    experiment.mesh,
  )
  return place_state(experiment.init(0), experiment.mesh), batch


def make_updates(
  experiment: Experiment, teachers: Iterable[int]
) -> dict[int, Callable[[], Any]]:
  """Updates of a member, as functions without arguments that keep its state.

  Args:
    experiment: the member's.
    teachers: how many, for each update; 0 for the burn-in update.

  Returns:
    Functions that return an update's metrics, by the number of teachers.
  """
  teachers = list(teachers)
  state, batch = start(experiment)
  # The teachers are equal, but each has its own copy, as reading it costs time.
  peers = [
    Peer(
      number,
      0,
      precision.encode(
        jax.tree.map(jnp.copy, state.variables), experiment.teacher_precision
      ),
    )
    for number in range(1, 1 + max(teachers))
  ]

  def make_update(number: int) -> Callable[[], Any]:
    def update():
      nonlocal state
      if number:
        state, metrics = experiment.updates.codistill(
          state, batch, tuple(peers[:number])
        )
      else:
        state, metrics = experiment.updates.burn_in(state, batch)
      return metrics

    return update

  return {number: make_update(number) for number in teachers}

"""The project's updates beside those of the same networks in PyTorch.

Each network's burn-in update, and its update with one teacher, are timed in
turn with the same in PyTorch, which runs in a process of its own, on the same
examples and the same cores, or the same GPU. The LSTM is also beside PyTorch's
own, which has no layer normalisation. Networks that should be the same must
have equally many parameters. Limit: the time of the same network in PyTorch.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from experiments import config as configs
from experiments.errors import UserError
from scripts.benchmark import networks, turns
from scripts.benchmark.measure import (
  ROOT,
  Limit,
  Measure,
  Measures,
  seconds,
  take_turns,
)
from scripts.benchmark.networks import Network
from scripts.preparing import num_cores

TITLE = 'updates beside PyTorch’s'
ROUNDS = 'rounds of every update, here and in PyTorch'
_MODULE = 'scripts.benchmark.torch_updates'
_DEVICES = {'cpu': 'cpu', 'gpu': 'cuda'}
_UPDATES = {0: 'burn-in', 1: 'one teacher'}
_HERE, _PYTORCH, _NN_LSTM = 'here', 'PyTorch', 'nn.LSTM'

_TEXT = {'model.loss_chunk_tokens': None}
_SHORT_TEXT = {
  **_TEXT,
  'batch_size': 32,
  'data.sequence_length': 35,
  'data.vocab_size': 10_000,
  'model.dtype': 'float32',
  'model.lstm.hidden_size': 256,
}
_IMAGES = {
  'codistill.teacher_precision': 'float32',
  # PyTorch's BatchNorm takes the whole batch.
  'model.resnet.batch_norm_group_size': None,
  'schedule.name': 'constant',
}
_FLOAT32_IMAGES = {**_IMAGES, 'model.dtype': 'float32'}
_RESNET_32 = Network(
  'imagenet_codistill',
  {
    **_FLOAT32_IMAGES,
    'batch_size': 64,
    'data.image_shape': (32, 32, 3),
    'data.num_classes': 10,
    'model.resnet.depth': 32,
    'model.resnet.width': 16,
  },
)
_TRANSFORMER = {'model.name': 'transformer'}
SMALL = {
  'LSTM': Network('lm_codistill', _SHORT_TEXT),
  'Transformer': Network('lm_codistill', {**_SHORT_TEXT, **_TRANSFORMER}),
  'ResNet-32': _RESNET_32,
  'ResNet-50': Network(
    'imagenet_codistill',
    {**_FLOAT32_IMAGES, 'batch_size': 16, 'data.image_shape': (64, 64, 3)},
  ),
  'DNN': networks.SMALL['DNN'],
}
# As in the paper: in bfloat16, except for ResNet-32 and the DNN.
_PAPERS_TEXT = {**_TEXT, 'batch_size': 128}
FULL = {
  'LSTM': Network('lm_codistill', _PAPERS_TEXT),
  'Transformer': Network('lm_codistill', {**_PAPERS_TEXT, **_TRANSFORMER}),
  'ResNet-32': _RESNET_32,
  'ResNet-50': Network('imagenet_codistill', {**_IMAGES, 'batch_size': 128}),
  'DNN': networks.FULL['DNN'],
}


def missing() -> str | None:
  """Why this part cannot be measured and what to do, or None if it can."""
  if importlib.util.find_spec('torch'):
    return None
  return (
    'peers needs PyTorch, which is not installed; get it with '
    '.venv/bin/pip install torch==2.13.0'
  )


class _Subject:
  """A network here, and those that it is compared with.

  Attributes:
    config: with its sizes.
    experiment: without data.
    others: kinds of `torch_updates`, by their names in the table.
    parameters: how many each of them must have, likewise.
  """

  def __init__(self, network: Network):
    """Compiles nothing yet."""
    self.config = configs.load_changed(network.config, network.changes)
    self.experiment = network.build()
    shapes = jax.eval_shape(lambda: self.experiment.init(0)).variables
    number = sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))
    self.others = {_PYTORCH: self.config.model.name}
    self.parameters = {_PYTORCH: number}
    if self.config.model.name == 'lstm':
      # It has as many biases as the normalised gates have here, but no scale
      # and bias of a layer's cell.
      sizes = self.config.model.lstm
      self.others[_NN_LSTM] = _NN_LSTM
      self.parameters[_NN_LSTM] = (
        number - 2 * sizes.hidden_size * sizes.num_layers
      )


def measure(
  rounds: int, shapes: Mapping[str, Network]
) -> Iterator[list[Measure]]:
  """Times updates in turn, here and in PyTorch's process.

  Args:
    rounds: how many; before them all is compiled and warmed up.
    shapes: networks by name.

  Yields:
    All measurements so far, after each round.

  Raises:
    UserError: if PyTorch would not do the same.
    ChildProcessError: if its process ends.
  """
  found, timers = Measures(), {}
  subjects = {name: _Subject(network) for name, network in shapes.items()}
  with _torch(subjects) as other:
    for name, subject in subjects.items():
      updates = networks.make_updates(subject.experiment, _UPDATES)
      for number, update in updates.items():
        timers[name, number, _HERE] = functools.partial(seconds, update)
        for label in subject.others:
          work = f'{name}, {label}, {number}'
          timers[name, number, label] = functools.partial(other.seconds, work)
    for took in take_turns(timers, rounds):
      for (name, number, label), each in took.items():
        update = f'{name}, {_UPDATES[number]}'
        found.note(f'{update}: {label}', 'ms', 1e3 * each)
        if label != _HERE:
          share = 100 * took[name, number, _HERE] / each
          limit = Limit('≤', 100) if label == _PYTORCH else None
          found.note(f'{update}: here beside {label}', '%', share, limit)
      yield found.all()
  for name, subject in subjects.items():
    for label, number in subject.parameters.items():
      found.note(f'{name}: parameters, {label}', 'M', number / 1e6)
  yield found.all()


@contextlib.contextmanager
def _torch(subjects: Mapping[str, _Subject]) -> Iterator[turns.Other]:
  """PyTorch with the same networks, device, cores and examples."""
  backend = jax.default_backend()
  if backend not in _DEVICES:
    raise UserError(
      f'peers compares on CPUs and GPUs, and JAX computes on a {backend} here; '
      'set JAX_PLATFORMS=cpu'
    )
  with tempfile.TemporaryDirectory() as folder:
    told: dict[str, Any] = {
      'networks': [
        (f'{name}, {label}', kind, subject.config.to_dict(), path)
        for name, subject in subjects.items()
        for path in [_write(subject, pathlib.Path(folder) / f'{name}.npz')]
        for label, kind in subject.others.items()
      ],
      'device': _DEVICES[backend],
      'threads': num_cores(),
    }
    line = [sys.executable, '-m', _MODULE, json.dumps(told)]
    with turns.start(line, ROOT) as other:
      _check(other.ready, told['device'], subjects)
      yield other


def _write(subject: _Subject, path: pathlib.Path) -> str:
  """Writes the examples of `networks.make_updates`; returns the path."""
  experiment = subject.experiment
  batch = experiment.task.made_up_batch(experiment.batch_size, seed=0)
  inputs = batch['inputs']
  if not isinstance(inputs, dict):
    inputs = {'inputs': inputs}
  np.savez(path, labels=batch['labels'], **inputs)
  return str(path)


def _check(
  ready: Mapping[str, Any], device: str, subjects: Mapping[str, _Subject]
) -> None:
  """Raises a `UserError` if PyTorch has another device or other networks."""
  if ready['device'] != device:
    raise UserError(
      'JAX computes on a GPU here, and this PyTorch cannot; install one that '
      'can, or set JAX_PLATFORMS=cpu'
    )
  for name, subject in subjects.items():
    for label, wanted in subject.parameters.items():
      has = ready['parameters'][f'{name}, {label}']
      if has != wanted:
        raise UserError(
          f'{name} has {has:,} parameters in {label} instead of {wanted:,}, so '
          f'they cannot be compared; make {_MODULE} like codistill/models'
        )

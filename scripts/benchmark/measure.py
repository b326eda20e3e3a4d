"""What every part of the benchmark shares: numbers, a network, the machine."""

from __future__ import annotations

import os
import pathlib
import platform
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from rich import box
from rich.table import Table

from codistill import losses, optim, record, sharding
from codistill.models import Model, make_resnet
from codistill.train_step import (
  JittedUpdates,
  TrainState,
  init_state,
  make_updates,
)

ROOT = pathlib.Path(__file__).parent.parent.parent
BATCH_SIZE = 16
SHAPE, CLASSES = (16, 16, 3), 1_000
DEPTH, WIDTH = 18, 64


class Measure(NamedTuple):
  """A number that was measured several times."""

  name: str
  unit: str
  values: list[float]


class Measures:
  """All numbers of a part, in the order in which they first came."""

  def __init__(self):
    """None yet."""
    self._found: dict[str, Measure] = {}

  def note(self, name: str, unit: str, value: float) -> None:
    """Adds a value to those of this name."""
    self._found.setdefault(name, Measure(name, unit, [])).values.append(value)

  def all(self) -> list[Measure]:
    """What there is so far."""
    return list(self._found.values())


class Subject(NamedTuple):
  """A ResNet-18 of 11.7 million numbers that learns random images.

  Attributes:
    mesh: of one device.
    model: the network.
    updates: burn-in and codistilling.
    state: before its first update.
    batch: of images, on the mesh.
  """

  mesh: Mesh
  model: Model
  updates: JittedUpdates
  state: TrainState
  batch: dict[str, Any]


def make_subject() -> Subject:
  """Compiles nothing yet."""
  mesh = sharding.make_mesh(1)
  model = make_resnet(
    input_shape=SHAPE,
    num_classes=CLASSES,
    depth=DEPTH,
    width=WIDTH,
    batch_norm_momentum=0.9,
    batch_norm_group_size=None,
    teacher_batch_norm='running',
    remat=False,
    dtype='float32',
    param_dtype='float32',
  )
  optimizer = optim.make_optimizer(
    'sgd',
    'constant',
    {'rate': 0.01},
    momentum=0.9,
    nesterov=False,
    weight_decay=1e-4,
    weight_decay_drop_at_steps=(),
    weight_decay_drop_factor=1.0,
  )
  updates = make_updates(
    model,
    optimizer,
    mesh,
    teacher=model,
    task_loss=losses.task_cross_entropy,
    distill_loss=losses.soft_cross_entropy,
    task_weight=1.0,
    distill_weight=1.0,
    constant_targets=None,
    memory_reset_probability=0.0,
    loss_chunk_tokens=None,
    num_async_workers=1,
    num_microbatches=1,
  )
  key = jax.random.key(0)
  state = sharding.replicate(
    init_state(
      model,
      optimizer,
      batch_size=BATCH_SIZE,
      init_key=key,
      noise_key=key,
      num_async_workers=1,
    ),
    mesh,
  )
  rng = np.random.default_rng(0)
  batch = sharding.split_batch(
    {
      'inputs': rng.normal(size=(BATCH_SIZE, *SHAPE)).astype(np.float32),
      'labels': rng.integers(CLASSES, size=BATCH_SIZE).astype(np.int32),
    },
    mesh,
  )
  return Subject(mesh, model, updates, state, batch)


def machine() -> dict[str, Any]:
  """What the numbers depend on."""
  return {
    'cpu': platform.processor() or platform.machine(),
    'cores': os.cpu_count(),
    'device': jax.devices()[0].device_kind,
    **record.code_version(ROOT),
    **record.package_versions(('jax', 'orbax-checkpoint')),
  }


def table(title: str, measures: Sequence[Measure]) -> Table:
  """A line a number: median, least, greatest."""
  shown = Table(box=box.SIMPLE_HEAD)
  shown.add_column(title)
  for column in ('median', 'least', 'greatest'):
    shown.add_column(column, justify='right')
  shown.add_column('unit')
  for name, unit, values in measures:
    numbers = (statistics.median(values), min(values), max(values))
    shown.add_row(name, *(f'{number:,.3g}' for number in numbers), unit)
  return shown

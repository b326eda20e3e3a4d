"""Numbers, clocks and a network, which all parts of the benchmark share."""

from __future__ import annotations

import functools
import math
import os
import pathlib
import platform
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from codistill import losses, optim, sharding
from codistill.models import Model, make_resnet
from codistill.train_state import Network, TrainState, init_state
from codistill.train_step import JittedUpdates, make_updates
from experiments import record

ROOT = pathlib.Path(__file__).parent.parent.parent
# The least time to measure by the clock.
TIMED_SECONDS = 0.5
Kind = TypeVar('Kind', bound=Hashable)


class Limit(NamedTuple):
  """A bound that a number is to keep: '≤' or '≥', and a value."""

  sign: str
  value: float

  def is_met(self, value: float) -> bool:
    """Whether a number keeps the bound."""
    return value <= self.value if self.sign == '≤' else value >= self.value


class Measure(NamedTuple):
  """A number that was measured several times, with its limit if any."""

  name: str
  unit: str
  values: list[float]
  limit: Limit | None = None


class Measures:
  """All numbers of a part, in the order in which they first came."""

  def __init__(self):
    """Starts empty."""
    self._found: dict[str, Measure] = {}

  def note(
    self, name: str, unit: str, value: float, limit: Limit | None = None
  ) -> None:
    """Adds a value to those of this name."""
    new = Measure(name, unit, [], limit)
    self._found.setdefault(name, new).values.append(value)

  def all(self) -> list[Measure]:
    """All measures so far."""
    return list(self._found.values())


def seconds(function: Callable[[], object], times: int) -> float:
  """Seconds that calls take, until the last one's result is there."""
  began = time.perf_counter()
  results = [function() for _ in range(times)]
  jax.block_until_ready(results[-1])
  return time.perf_counter() - began


def enough(one: float) -> int:
  """How many calls fill `TIMED_SECONDS`, if one takes `one` seconds."""
  return math.ceil(TIMED_SECONDS / one) or 1


def in_turn(
  functions: Mapping[Kind, Callable[[], object]], rounds: int
) -> Iterator[dict[Kind, float]]:
  """`take_turns` for functions, timed with `seconds`."""
  return take_turns(
    {
      kind: functools.partial(seconds, function)
      for kind, function in functions.items()
    },
    rounds,
  )


def take_turns(
  timers: Mapping[Kind, Callable[[int], float]], rounds: int
) -> Iterator[dict[Kind, float]]:
  """Seconds of a call of each kind, round by round.

  Each kind is called once to compile, and once more to see how many calls fill
  half a second.

  Args:
    timers: by name; each makes so many calls, and returns their seconds.
    rounds: how many; each times all kinds, one after the other.
  """
  times = {}
  for kind, timer in timers.items():
    timer(1)
    times[kind] = enough(timer(1))
  for _ in range(rounds):
    yield {
      kind: timer(times[kind]) / times[kind] for kind, timer in timers.items()
    }


class ResNet(NamedTuple):
  """A ResNet, and the random images that it learns from."""

  depth: int = 18
  width: int = 64
  batch_size: int = 16
  image_shape: tuple[int, int, int] = (16, 16, 3)
  num_classes: int = 1_000


class Subject(NamedTuple):
  """A ResNet that learns from random images.

  Attributes:
    mesh: one device.
    model: the network.
    updates: burn-in and codistilling.
    state: the state before the first update.
    batch: images, on the mesh.
  """

  mesh: Mesh
  model: Model
  updates: JittedUpdates
  state: TrainState
  batch: dict[str, Any]


def make_subject(shapes: ResNet) -> Subject:
  """Makes a network and its batch; compiles nothing yet."""
  mesh = sharding.make_mesh(1)
  model = make_resnet(
    input_shape=shapes.image_shape,
    num_classes=shapes.num_classes,
    depth=shapes.depth,
    width=shapes.width,
    batch_norm_momentum=0.9,
    batch_norm_group_size=None,
    teacher_batch_norm='running',
    remat=False,
    dtype='float32',
    param_dtype='float32',
  )
  optimizer = optim.make_optimizer(
    'sgd',
    optax.constant_schedule(0.01),
    momentum=0.9,
    nesterov=False,
    weight_decay=1e-4,
    weight_decay_drop_at_steps=(),
    weight_decay_drop_factor=1.0,
  )
  network = Network(model, optimizer)
  updates = make_updates(
    [network],
    mesh,
    losses.ALGORITHM_1,
    num_async_workers=1,
    num_microbatches=1,
  )
  key = jax.random.key(0)
  state = sharding.replicate(
    init_state(
      network,
      batch_size=shapes.batch_size,
      init_key=key,
      noise_key=key,
      num_async_workers=1,
    ),
    mesh,
  )
  rng = np.random.default_rng(0)
  batch = sharding.split_batch(
    {
      'inputs': rng.standard_normal(
        (shapes.batch_size, *shapes.image_shape), np.float32
      ),
      'labels': rng.integers(
        shapes.num_classes, size=shapes.batch_size, dtype=np.int32
      ),
    },
    mesh,
  )
  return Subject(mesh, model, updates, state, batch)


def machine() -> dict[str, Any]:
  """The machine and the versions that the numbers depend on."""
  return {
    'cpu': platform.processor() or platform.machine(),
    'cores': os.cpu_count(),
    'device': jax.devices()[0].device_kind,
    # These change as other parts write their numbers.
    **record.code_version(ROOT, besides=('experiments/results',)),
    **record.package_versions(('jax', 'orbax-checkpoint')),
  }

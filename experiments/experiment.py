"""All parts of a run, and how its members begin."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from codistill import algorithm, sharding
from codistill.algorithm import Exchange, Member, Report
from codistill.evaluate import Evaluate
from codistill.models import Model
from codistill.rivals import asynchronous, local_sgd
from codistill.train_state import (
  Network,
  TrainState,
  init_state,
  place_state,
)
from codistill.train_step import JittedUpdates
from experiments.errors import check_choice, user_errors
from experiments.faults import Fault
from experiments.tasks import Dataset, Task

# Diversity.partition in the words of `data.partition`.
PARTITIONS = {'own': 'disjoint', 'same': 'shared'}


@dataclasses.dataclass(frozen=True)
class Diversity:
  """Where members differ, each `own` or `same`.

  Attributes:
    initialization: their first weights. Members that average their weights
      share them.
    order: the order of their examples, and their noise.
    partition: disjoint parts of the data, or all of it for each.
  """

  initialization: str
  order: str
  partition: str

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      check_choice(f'diversity.{field.name}', value, PARTITIONS)


@dataclasses.dataclass(frozen=True)
class Experiment:
  """All parts of a run, connected but without state.

  Attributes:
    task: the kind of data.
    seed: of weights, noise and the order of the data.
    diversity: what members do not share.
    num_members: N, of all processes.
    members: numbers of the members that this process trains.
    mesh: their devices.
    networks: of each member, of all processes.
    teachers: numbers of those that may teach a member here.
    updates: burn-in and codistilling; averaging, if there are outer steps.
    outer_steps: when members average their weights, if they do.
    teacher_precision: precision in which the exchange holds peers.
    exchange: between the members.
    evaluate: exact evaluation.
    fault: what goes wrong on purpose.
    dataset: the examples.
    burn_in_steps: n_burn_in.
    num_steps: updates of each member.
    evaluate_soup: whether the members' average weights are evaluated at the
      end.
    average_decay: of the running average of the weights; 0 for none.
    batch_size: global, a member; images, or lanes of text.
    eval_batch_size: likewise.
    num_async_workers: W of asynchronous SGD.
    num_microbatches: parts that a batch is computed in.
    eval_interval_steps: between two evaluations.
    store_predictions: whether to keep those of the last evaluation.
    predictions_interval_steps: between others that are kept; 0 for none.
    checkpoint_interval_steps: between two checkpoints.
  """

  task: Task
  seed: int
  diversity: Diversity
  num_members: int
  members: tuple[int, ...]
  mesh: Mesh
  networks: tuple[Network, ...]
  teachers: tuple[int, ...]
  updates: JittedUpdates
  outer_steps: local_sgd.OuterSteps | None
  teacher_precision: str
  exchange: Exchange
  evaluate: Evaluate
  fault: Fault
  dataset: Dataset
  burn_in_steps: int
  num_steps: int
  evaluate_soup: bool
  average_decay: float
  batch_size: int
  eval_batch_size: int
  num_async_workers: int
  num_microbatches: int
  eval_interval_steps: int
  store_predictions: bool
  predictions_interval_steps: int
  checkpoint_interval_steps: int
  # Names of corrupt examples for `take_corrupt`, by member or 'eval'.
  _corrupt: dict[int | str, list[str]] = dataclasses.field(
    default_factory=dict, repr=False
  )

  @property
  def unit(self) -> str:
    """The unit in which examples are counted."""
    return self.task.unit

  @property
  def examples_per_step(self) -> int:
    """Images or tokens of a member."""
    return self.batch_size * self.task.units_per_row

  def init(self, member: int) -> TrainState:
    """A member's state before its first update, on the host's default device.

    This method and `batches` make members differ. Members that share something
    get that of member 0.
    """
    root = jax.random.key(self.seed)
    weights, noise = (jax.random.fold_in(root, purpose) for purpose in (0, 1))
    # Members whose weights are averaged begin with those of the group's first.
    outer, first = self.outer_steps, member
    if outer is not None:
      first -= member % outer.group_size
    state = init_state(
      self.networks[member],
      batch_size=self.batch_size,
      init_key=jax.random.fold_in(
        weights, _own(first, self.diversity.initialization)
      ),
      noise_key=jax.random.fold_in(noise, _own(member, self.diversity.order)),
      num_async_workers=self.num_async_workers,
    )
    if outer is None:
      return state
    return self.updates.begin(state, is_delayed=outer.delay_steps > 0)

  def abstract(self, member: int) -> TrainState:
    """Shapes of `init`, with the zero carry of each that may teach it."""
    state = jax.eval_shape(lambda: self.init(member))
    carries = {
      peer: jax.eval_shape(
        lambda peer=peer: self.updates.zero_memory(
          self.updates.model_of(peer), self.batch_size
        )
      )
      for peer in self.teachers
    }
    return dataclasses.replace(state, peer_memories=carries)

  def models(self, members: Iterable[int]) -> list[Model]:
    """F of each of some members."""
    return [self.networks[member].model for member in members]

  def batches(self, member: int, start: int) -> Iterator[dict[str, Any]]:
    """A member's stream of batches on its mesh, from batch `start` on."""
    # The order of the data has a seed of its own, apart from the weights'.
    [seed] = np.random.SeedSequence(
      (self.seed, _own(member, self.diversity.order))
    ).generate_state(1)
    rows = sharding.local_rows(self.batch_size, self.mesh)
    workers = self.num_async_workers
    streams = [
      self.dataset.train(
        member=member,
        members=self.num_members,
        partition=PARTITIONS[self.diversity.partition],
        seed=int(seed),
        # Each batch read here holds one for every worker.
        batch_size=workers * self.batch_size,
        start=(start + workers - 1 - worker) // workers,
        rows=worker * self.batch_size + rows,
      )
      for worker in range(workers)
    ]
    return (
      sharding.split_batch(
        self._next(streams[step % workers], member), self.mesh
      )
      for step in itertools.count(start)
    )

  def start(self) -> list[Member]:
    """The members before their first update, on the mesh."""
    return [
      Member(
        member,
        place_state(self.init(member), self.mesh),
        self.batches(member, start=0),
      )
      for member in self.members
    ]

  def reports(self, members: list[Member], start_step: int) -> Iterator[Report]:
    """Trains the members; a report for every update."""
    parts = (members, self.updates, self.exchange)
    steps = (self.burn_in_steps, self.num_steps, start_step)
    reports = (
      algorithm.codistill(*parts, *steps)
      if self.outer_steps is None
      else local_sgd.local_sgd(*parts, self.outer_steps, *steps)
    )
    return self.fault.slowed(reports, lambda: self.exchange.should_stop())

  def average(self, members: list[Member], step: int) -> None:
    """Makes the outer steps, if any, that are due after a step.

    Raises:
      PeerTimeoutError: if a synchronous member has waited too long for a peer.
    """
    if self.outer_steps is not None:
      self.outer_steps.make(members, self.updates, self.exchange, step + 1)

  def carried(self, member: Member) -> Any:
    """A member's memory after training, of its first worker."""
    return asynchronous.carry_of(member.state.memory, self.num_async_workers, 0)

  def eval_batches(self, split: str = 'test') -> Iterator[dict[str, Any]]:
    """Examples of a split, each once; this process's rows of each batch."""
    batch_size = self.eval_batch_size
    batches = self.dataset.eval(
      split,
      batch_size=batch_size,
      rows=sharding.local_rows(batch_size, self.mesh),
    )
    while batch := self._next(batches, 'eval'):
      yield batch

  def take_corrupt(self, stream: int | str) -> list[str]:
    """Names of examples that could not be decoded since the last call.

    Args:
      stream: number of a member, or 'eval'.
    """
    return self._corrupt.pop(stream, [])

  def _next(
    self, batches: Iterator[dict[str, Any]], stream: int | str
  ) -> dict[str, Any] | None:
    """The next batch, without the names of its corrupt examples."""
    with user_errors(*self.task.bad_data):
      batch = next(batches, None)
    if batch and 'corrupt' in batch:
      self._corrupt.setdefault(stream, []).extend(batch.pop('corrupt'))
    return batch


def _own(member: int, source: str) -> int:
  return member if source == 'own' else 0

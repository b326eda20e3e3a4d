"""Algorithm 1 of Anil et al. (2018), line by line.

The generator below is the paper's pseudo-code: two loops over steps, with
a loop over the models in each. It knows no arrays or devices (it imports no
jax): `updates` does the mathematics, `exchange` decides how stale a peer is.
The consumer of the reports logs, evaluates, checkpoints and stops.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable


@dataclasses.dataclass
class Member:
  """One θᵢ of Algorithm 1: its number, its state, its own stream of examples.

  Attributes:
    index: the member's number, 0 ≤ index < N.
    state: what an update reads and returns.
    batches: endless; each `next` is the member's next batch of examples.
    active: a consumer clears it to let the others go on without this member.
  """

  index: int
  state: Any
  batches: Iterator[Any]
  active: bool = True


class Peer(NamedTuple):
  """A stale copy of another member: its number, its updates, its weights."""

  member: int
  step: int
  variables: Any


class Report(NamedTuple):
  """What one member did in one step.

  Attributes:
    member: the member that made the step.
    step: number of its updates so far, from 1.
    metrics: as the update returned them, possibly still being computed.
    peers: its teachers in this step; empty during burn-in.
    ends_round: whether every active member has now reached `step`, that is,
      whether the members' states belong together.
  """

  member: Member
  step: int
  metrics: Any
  peers: tuple[Peer, ...]
  ends_round: bool


def codistill(
  members: Sequence[Member],
  updates: Updates,
  exchange: Exchange,
  burn_in_steps: int,
  num_steps: int,
  start_step: int = 0,
) -> Iterator[Report]:
  """Trains `members` with Algorithm 1; yields a report after every update.

  Args:
    members: θ₁ … θ_N, or those of them that live in this process.
    updates: burn-in and codistilling update.
    exchange: takes what a member offers and hands out its peers.
    burn_in_steps: n_burn_in, updates of each member before ψ is switched on.
    num_steps: updates of each member in all; stands for "not converged".
    start_step: updates that the members have made before (after a resume).

  Yields:
    A `Report` for every update, in the order of the pseudo-code.
  """
  if start_step == 0:
    for member in members:
      exchange.offer(member.index, 0, updates.published(member.state))

  # for n_burn_in steps do
  for step in range(start_step + 1, min(burn_in_steps, num_steps) + 1):
    # for θᵢ in model_set do
    for member, ends_round in _active(members):
      # y, f = get_train_example()
      batch = next(member.batches)
      # θᵢ = θᵢ − η ∇{ φ(y, F(θᵢ, f)) }
      member.state, metrics = updates.burn_in(member.state, batch)
      _offer(exchange, updates, member, step, metrics)
      yield Report(member, step, metrics, (), ends_round)

  # while not converged do
  for step in range(max(burn_in_steps, start_step) + 1, num_steps + 1):
    # for θᵢ in model_set do
    for member, ends_round in _active(members):
      # y, f = get_train_example()
      batch = next(member.batches)
      # θⱼ for j ≠ i: the freshest copies that this member may see (§2.1)
      peers = exchange.freshest(member.index, step)
      # θᵢ = θᵢ − η ∇{ φ(y, F(θᵢ, f)) + ψ(1/(N−1) Σ_{j≠i} F(θⱼ, f), F(θᵢ, f)) }
      member.state, metrics = updates.codistill(member.state, batch, peers)
      _offer(exchange, updates, member, step, metrics)
      yield Report(member, step, metrics, peers, ends_round)


def _active(members: Sequence[Member]) -> Iterator[tuple[Member, bool]]:
  """The members still in the run, each with whether it is the round's last."""
  active = [member for member in members if member.active]
  for position, member in enumerate(active, start=1):
    yield member, position == len(active)


def _offer(
  exchange: Exchange, updates: Updates, member: Member, step: int, metrics: Any
) -> None:
  variables = updates.published(member.state)
  exchange.offer(member.index, step, variables, metrics['task_loss'])


@runtime_checkable
class Updates(Protocol):
  """The two updates of θᵢ, each returning its new state and its metrics."""

  def burn_in(self, state: Any, batch: Any) -> tuple[Any, Any]:
    """One step down ∇φ."""
    ...

  def codistill(
    self, state: Any, batch: Any, peers: tuple[Peer, ...]
  ) -> tuple[Any, Any]:
    """One step down ∇(φ + ψ); the burn-in update if there is no teacher."""
    ...

  def published(self, state: Any) -> Any:
    """The variables of a member that its peers get."""
    ...


@runtime_checkable
class Exchange(Protocol):
  """How members see each other's weights, and how stale those are (§2.1).

  All synchronous exchanges have one rule of visibility: weights published at
  step s (after the publisher's s-th update) may teach a peer from the peer's
  step s + 1 + delay on, in any order of turns. So one process that steps N
  members and N processes with one member each can agree bit for bit. A peer's
  age at my step t is (t − 1) − s: the updates that I had made less those of its
  copy. Without synchrony a peer may be ahead, and its age is negative.

  An exchange is a context manager: at the end it closes what it opened.

  Attributes:
    should_stop: asked while an exchange waits for a peer, if it ever does.
  """

  should_stop: Callable[[], bool] = staticmethod(lambda: False)

  def offer(
    self, member: int, step: int, variables: Any, task_loss: Any = None
  ) -> None:
    """Offers a member's weights; the exchange decides whether to publish.

    Args:
      member: number of the member.
      step: number of its updates so far.
      variables: parameters and batch statistics; None if the caller knows that
        this step is not published. The caller's next update donates their
        buffers: keep copies only.
      task_loss: φ of the last update, a scalar that may not be computed yet;
        None before the first update.
    """
    ...

  def freshest(self, member: int, step: int) -> tuple[Peer, ...]:
    """The newest visible copy of each neighbour that has one.

    Args:
      member: number of the member that learns.
      step: the number of the update that the peers are to teach, from 1.
    """
    ...

  def account(self, member: int) -> Account:
    """What the exchange did for a member since the last call."""
    return Account()

  def withdraw(self, member: int) -> None:
    """Says that a member of this process diverged and will offer no more."""

  def flush(self) -> None:
    """Waits for a limited time until what was offered is published."""

  def publications(self) -> Publications:
    """The copies and the JSON that a resumed run needs."""
    ...

  def restore(self, publications: Publications) -> None:
    """Puts back what `publications` returned."""
    ...

  def __enter__(self) -> Exchange:
    return self

  def __exit__(self, *exception: object) -> None:
    pass


class Publications(NamedTuple):
  """The state of an exchange, as a checkpoint stores it.

  Attributes:
    variables: by member and step.
    notes: all else that the exchange needs back; JSON.
  """

  variables: dict[int, dict[int, Any]]
  notes: dict[str, Any]


class Account(NamedTuple):
  """What an exchange did for a member, for the rows.

  Attributes:
    left_out: why a neighbour did not teach in the last step, by member number:
      `absent`, `earlier` (it has published nothing since this member began),
      `network` or `vocabulary` (it has another than expected), `old`, `worse`.
    failed_loads: attempts to read a publication that failed, since the process
      began.
    stall_seconds: how long `offer` and `freshest` held up the train loop; None
      if that is not measured.
    events: publications, loads and what went wrong with them, in order.
  """

  left_out: Mapping[int, str] = {}
  failed_loads: int = 0
  stall_seconds: float | None = None
  events: tuple[Mapping[str, Any], ...] = ()

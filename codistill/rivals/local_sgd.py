"""Local SGD and DiLoCo: members average their weights every H steps.

The generator below stands beside Algorithm 1 (`codistill.algorithm`), has the
same members, exchanges and reports, and imports no jax either. What differs is
the use of a peer's weights: they are averaged and do not teach.

  for θᵢ in model_set: Θᵢ = θᵢ                      equal weights at first
  for step = 1, 2, … do
    if a multiple of H steps were made d steps ago, at s = step − 1 − d, then
      for θᵢ in model_set do
        Δ = 1/n Σⱼ (Θᵢ − θⱼ(s))            over i and the n − 1 peers it sees
        Θᵢ = Θᵢ − outer optimizer(Δ)
        θᵢ = Θᵢ + (θᵢ − θᵢ(s))             what i has learnt since; 0 if d = 0
    for θᵢ in model_set do
      y, f = get_train_example()
      θᵢ = θᵢ − inner optimizer(∇φ(y, F(θᵢ, f)))
      offer θᵢ, if step is a multiple of H

Local SGD (Stich, 2019) is the outer optimizer SGD with rate 1: Θᵢ is the mean
of the members. DiLoCo (Douillard et al., 2023) is Nesterov's momentum with rate
0.7 and momentum 0.9. Inner optimizers keep their states. With d > 0 training
does not wait for the exchange (Shen et al., 2019; Douillard et al., 2025).

If members see all others, and they wait for each other, then all Θᵢ stay equal.
In other graphs each averages with its neighbours (gossip). With groups of
members, weights are averaged inside a group, and after the burn-in a member
also learns from its counterparts in other groups, as in Algorithm 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from codistill.algorithm import Exchange, Member, Peer, Report, Updates


@runtime_checkable
class OuterUpdates(Updates, Protocol):
  """The updates of Algorithm 1, and those of the outer optimizer."""

  def hold(self, state: Any) -> Any:
    """Keeps θᵢ(s), until the outer step that is d steps away."""
    ...

  def outer(
    self, state: Any, member: int, step: int, peers: tuple[Peer, ...]
  ) -> Any:
    """One outer step; changes nothing if it was made before.

    Args:
      state: the member's.
      member: its number; terms are added in the order of the numbers.
      step: s.
      peers: the peers whose weights are averaged with its own.
    """
    ...


@dataclasses.dataclass
class OuterSteps:
  """When members average, and with whom.

  Attributes:
    interval_steps: H ≥ 1.
    delay_steps: d, 0 ≤ d < H.
    group_size: members in a group; N if there is one group.
  """

  interval_steps: int
  delay_steps: int
  group_size: int
  # The peers of the last outer step, and the step after it, by member.
  _made: dict[int, tuple[int, tuple[Peer, ...]]] = dataclasses.field(
    default_factory=dict, repr=False
  )

  def make(
    self,
    members: Sequence[Member],
    updates: OuterUpdates,
    exchange: Exchange,
    step: int,
  ) -> Mapping[int, tuple[Peer, ...]]:
    """Makes the outer steps that are due before a step, unless they are made.

    So a consumer may ask for them early, for an evaluation.

    Returns:
      The peers that each member's weights were averaged with; {} if no outer
      step is due.
    """
    offered_at = step - 1 - self.delay_steps
    if offered_at < 1 or offered_at % self.interval_steps:
      return {}
    found = {}
    for member in members:
      if not member.active:
        continue
      last, peers = self._made.get(member.index, (0, ()))
      if last != step:
        peers, _ = self.divide(member, exchange.freshest(member.index, step))
        # Δ = 1/n Σⱼ (Θᵢ − θⱼ(s)); Θᵢ = Θᵢ − outer optimizer(Δ)
        # θᵢ = Θᵢ + (θᵢ − θᵢ(s))
        member.state = updates.outer(
          member.state, member.index, offered_at, peers
        )
        self._made[member.index] = (step, peers)
      found[member.index] = peers
    return found

  def divide(
    self, member: Member, peers: tuple[Peer, ...]
  ) -> tuple[tuple[Peer, ...], tuple[Peer, ...]]:
    """Returns the peers of a member's own group, and those of the others."""
    group = member.index // self.group_size
    parted: tuple[list[Peer], list[Peer]] = ([], [])
    for peer in peers:
      parted[peer.member // self.group_size != group].append(peer)
    return tuple(parted[0]), tuple(parted[1])


def local_sgd(
  members: Sequence[Member],
  updates: OuterUpdates,
  exchange: Exchange,
  outer_steps: OuterSteps,
  burn_in_steps: int,
  num_steps: int,
  start_step: int = 0,
) -> Iterator[Report]:
  """Trains `members` as above; yields a report after every inner update.

  Args:
    members: θ₁ … θ_N, or those of them that live in this process.
    updates: inner and outer updates.
    exchange: takes what a member offers and hands out its peers; its intervals
      and delays are those of `outer_steps`.
    outer_steps: when members average, and with whom.
    burn_in_steps: updates before members of other groups teach.
    num_steps: inner updates of each member in all.
    start_step: updates that the members have made before (after a resume).

  Yields:
    A `Report` for every inner update. Its peers are those that the weights were
    averaged with just before, and the teachers.
  """
  if start_step == 0:
    for member in members:
      exchange.offer(member.index, 0, updates.published(member.state))
  for step in range(start_step + 1, num_steps + 1):
    averaged = outer_steps.make(members, updates, exchange, step)
    active = [member for member in members if member.active]
    for member in active:
      batch = next(member.batches)
      teachers: tuple[Peer, ...] = ()
      if step <= burn_in_steps:
        member.state, metrics = updates.burn_in(member.state, batch)
      else:
        peers = exchange.freshest(member.index, step)
        _, teachers = outer_steps.divide(member, peers)
        member.state, metrics = updates.codistill(member.state, batch, teachers)
      # Between two publications an exchange takes the loss alone.
      variables = None
      if step % outer_steps.interval_steps == 0:
        if outer_steps.delay_steps:
          member.state = updates.hold(member.state)
        variables = updates.published(member.state)
      exchange.offer(member.index, step, variables, metrics['task_loss'])
      peers = (*averaged.get(member.index, ()), *teachers)
      yield Report(member, step, metrics, peers, member is active[-1])
  # The outer step of an interval that has ended is made, if late. So a run that
  # ends with a multiple of H steps ends with Θ.
  for late in range(outer_steps.delay_steps + 1):
    outer_steps.make(members, updates, exchange, num_steps + 1 + late)

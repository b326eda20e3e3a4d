"""How members see each other's weights, and how stale those are (§2.1).

The protocol and its rule of visibility are `codistill.algorithm.Exchange`;
members of several processes meet in `codistill.exchange.folder`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from codistill import precision
from codistill.algorithm import Account, Exchange, Peer, Publications
from codistill.exchange.rules import MeanLoss, Rules, TaskLosses
from codistill.exchange.topology import Topology
from codistill.precision import FULL

PyTree = Any


@dataclasses.dataclass
class Copy:
  """What a member has published.

  Attributes:
    variables: parameters and batch statistics, in buffers of their own and in
      the precision that teachers are held in.
    finite_variables: whether all of these are finite; possibly still being
      computed.
    task_loss: the publisher's mean φ since it last published, likewise; None
      if it had made no update.
    incarnation: which life of the publisher it is from.
  """

  variables: PyTree
  finite_variables: jax.Array | bool
  task_loss: MeanLoss | float | None
  incarnation: int = 0

  @property
  def finite(self) -> bool:
    """Whether all of it is finite; waits for the publisher's update."""
    return bool(self.finite_variables) and (
      self.task_loss is None or math.isfinite(float(self.task_loss))
    )


class InMemoryExchange(Exchange):
  """Members of one process, copies in device memory.

  A member publishes a copy every `reload_interval_steps` of its updates, and
  its initial weights. A copy with a parameter or a task loss that is not finite
  is dropped before anyone sees it: a broken member falls silent and grows
  stale.
  """

  def __init__(
    self,
    topology: Topology,
    *,
    reload_interval_steps: int,
    delay_steps: int,
    immediate: bool,
    rules: Rules,
    publish_precision: str = FULL,
    teacher_precision: str = FULL,
  ):
    """Makes an exchange in which nothing has been published.

    Args:
      topology: who learns from whom; redrawn, if it is, when peers are
        reloaded.
      reload_interval_steps: k, updates between two publications, ≥ 1.
      delay_steps: d ≥ 0, by how many more steps each publication is held back.
      immediate: publications are seen at once, so that a member sees the
        update that an earlier member made in the same round: Algorithm 1 as
        literally written, which no set of parallel jobs can do.
      rules: which of the visible copies may teach.
      publish_precision: what a publication is rounded to.
      teacher_precision: what a teacher is held in, after that.

    Raises:
      ValueError: if the interval, the delay or a precision is out of range.
    """
    check_cadence(reload_interval_steps, delay_steps)
    check_precisions(publish_precision, teacher_precision)
    self._topology = topology
    self._interval = reload_interval_steps
    # A publication of step s is visible at step t if s ≤ t − lag.
    self._lag = delay_steps + (0 if immediate else 1)
    self._rules = rules
    self._precisions = (publish_precision, teacher_precision)
    self._losses = TaskLosses()
    self._published: dict[int, dict[int, Copy]] = {
      member: {} for member in range(topology.members)
    }
    self._left_out: dict[int, dict[int, str]] = {}
    # Of the rows: what happened, and which copy each member saw of each peer.
    self._events: dict[int, list[dict[str, Any]]] = {}
    self._seen: dict[tuple[int, int], int] = {}
    self._num_bytes = 0

  def offer(
    self, member: int, step: int, variables: PyTree, task_loss: Any = None
  ) -> None:
    """Publishes a copy if `step` is a multiple of the reload interval."""
    self._losses.add(member, task_loss)
    if step % self._interval:
      return
    published = self._published[member]
    published[step] = make_copy(
      variables, self._losses.publish(member), *self._precisions
    )
    self._num_bytes = self._num_bytes or published_bytes(
      variables, self._precisions[0]
    )
    self._event(member, 'publish', publication=step)
    # Readers ask for this step or a later one from here on: what lies before
    # the newest copy that they may see is never asked for again.
    newest = self._newest(member, step)
    for old in [s for s in published if newest is not None and s < newest]:
      del published[old]

  def freshest(self, member: int, step: int) -> tuple[Peer, ...]:
    """The newest visible copy of each neighbour; those without one left out."""

    def newest(peer: int) -> tuple[int, Copy] | None:
      at = self._newest(peer, step)
      return None if at is None else (at, self._published[peer][at])

    peers, self._left_out[member] = choose_peers(
      member,
      step,
      self._topology.teachers(
        member, reload_number(step, self._lag, self._interval)
      ),
      newest,
      self._rules,
      self._losses,
    )
    for peer in peers:
      if self._seen.get((member, peer.member)) != peer.step:
        self._seen[member, peer.member] = peer.step
        self._event(member, 'load', peer=peer.member, publication=peer.step)
    return peers

  def account(self, member: int) -> Account:
    """Who was left out, and why; what was published and taken up."""
    return Account(
      left_out=self._left_out.pop(member, {}),
      events=tuple(self._events.pop(member, ())),
    )

  def publications(self) -> Publications:
    """The copies that may still be asked for."""
    found = to_publications(
      {
        member: {at: copy for at, copy in copies.items() if copy.finite}
        for member, copies in self._published.items()
      },
      self._losses,
    )
    seen = [[*pair, step] for pair, step in self._seen.items()]
    mine = {'seen': seen, 'num_bytes': self._num_bytes}
    return found._replace(notes={**found.notes, **mine})

  def restore(self, publications: Publications) -> None:
    """Puts back what `publications` returned."""
    copies = from_publications(publications, self._losses)
    self._published = {
      member: copies.get(member, {}) for member in self._published
    }
    self._seen = {
      (member, peer): step for member, peer, step in publications.notes['seen']
    }
    self._num_bytes = publications.notes['num_bytes']

  def _event(self, member: int, event: str, **facts: Any) -> None:
    """Notes what would cross a network, were members apart."""
    self._events.setdefault(member, []).append(
      {'event': event, 'bytes': self._num_bytes, **facts}
    )

  def _newest(self, member: int, step: int) -> int | None:
    """The step of the member's newest copy that is visible at `step`."""
    published = self._published[member]
    for at in sorted(
      (s for s in published if s <= step - self._lag), reverse=True
    ):
      # Waits for the publisher's update, not for the asker's: once an interval.
      if published[at].finite:
        return at
      del published[at]
    return None


class FrozenExchange(Exchange):
  """The same peers for ever: two-phase distillation (§3.4.1), or no peers.

  Without peers it serves synchronous SGD, ensembles and label smoothing.
  """

  def __init__(self, peers: tuple[Peer, ...] = ()):
    """Takes the peers; their buffers must outlive the exchange."""
    self._peers = tuple(peers)

  def offer(
    self, member: int, step: int, variables: PyTree, task_loss: Any = None
  ) -> None:
    """Publishes nothing."""

  def freshest(self, member: int, step: int) -> tuple[Peer, ...]:
    """The frozen peers."""
    return self._peers

  def publications(self) -> Publications:
    """Nothing: the frozen peers come from where the first run got them."""
    return Publications({}, {})

  def restore(self, publications: Publications) -> None:
    """Nothing was stored, nothing comes back."""


# What every exchange of copies does in the same way.


def check_cadence(reload_interval_steps: int, delay_steps: int) -> None:
  """Refuses an interval or a delay that is out of range with a ValueError."""
  if reload_interval_steps < 1:
    raise ValueError(
      f'reload_interval_steps must be at least 1, not {reload_interval_steps}'
    )
  if delay_steps < 0:
    raise ValueError(f'delay_steps must not be negative: {delay_steps}')


def check_precisions(publish_precision: str, teacher_precision: str) -> None:
  """Refuses an unknown precision with a ValueError."""
  precision.check_precision(publish_precision, 'publish_precision')
  precision.check_precision(teacher_precision, 'teacher_precision')


def reload_number(step: int, lag: int, interval: int) -> int:
  """How many reload intervals lie behind a member's update, from 0."""
  return max(0, step - lag) // interval


def published_bytes(variables: PyTree, publish_precision: str) -> int:
  """What a publication takes, uncompressed."""
  return precision.num_bytes(precision.abstract(variables, publish_precision))


def make_copy(
  variables: PyTree,
  task_loss: MeanLoss | None,
  publish_precision: str,
  held_precision: str,
) -> Copy:
  """A copy of a member's weights, in buffers of its own.

  Args:
    variables: the weights.
    task_loss: to be published with them.
    publish_precision: what they are rounded to first.
    held_precision: and what they are held in.
  """
  return Copy(
    *_copy_and_check(variables, publish_precision, held_precision), task_loss
  )


def choose_peers(
  member: int,
  step: int,
  neighbours: tuple[int, ...],
  newest: Callable[[int], tuple[int, Copy] | None],
  rules: Rules,
  losses: TaskLosses,
) -> tuple[tuple[Peer, ...], dict[int, str]]:
  """Those neighbours' copies that may teach.

  Args:
    member: who is to be taught.
    step: in which of its updates, from 1.
    neighbours: whom it learns from now.
    newest: a neighbour's newest visible copy with its step, or None.
    rules: which of these may teach.
    losses: what this process's members published.

  Returns:
    The peers, and why each of the others was left out.
  """
  peers, left_out = [], {}
  for peer in neighbours:
    found = newest(peer)
    if found is None:
      left_out[peer] = 'absent'
      continue
    at, copy = found
    theirs = mine = None
    if rules.max_task_loss_ratio is not None:
      # Fetched for the rule alone: it waits for the update of a publication.
      mine = losses.published(member)
      theirs = None if copy.task_loss is None else float(copy.task_loss)
    objection = rules.objection(step - 1 - at, theirs, mine)
    if objection is None:
      peers.append(Peer(peer, at, copy.variables))
    else:
      left_out[peer] = objection
  return tuple(peers), left_out


def to_publications(
  copies: Mapping[int, Mapping[int, Copy]], losses: TaskLosses
) -> Publications:
  """Copies and losses, as a checkpoint stores them."""
  return Publications(
    {
      member: {at: copy.variables for at, copy in steps.items()}
      for member, steps in copies.items()
    },
    {
      'losses': losses.to_json(),
      'copies': {
        str(member): {
          str(at): {
            'task_loss': None
            if copy.task_loss is None
            else float(copy.task_loss),
            'incarnation': copy.incarnation,
          }
          for at, copy in steps.items()
        }
        for member, steps in copies.items()
      },
    },
  )


def from_publications(
  publications: Publications, losses: TaskLosses
) -> dict[int, dict[int, Copy]]:
  """The copies that `to_publications` was given; `losses` gets its own back."""
  losses.from_json(publications.notes['losses'])
  notes = publications.notes['copies']
  return {
    member: {
      at: Copy(variables, True, **notes[str(member)][str(at)])
      for at, variables in steps.items()
    }
    for member, steps in publications.variables.items()
  }


@functools.partial(jax.jit, static_argnums=(1, 2))
def _copy_and_check(
  variables: PyTree, publish_precision: str, held_precision: str
) -> tuple[PyTree, jax.Array]:
  """A copy in buffers of its own, and whether all of it was finite."""
  held = precision.convert(
    precision.encode(variables, publish_precision),
    variables,
    publish_precision,
    held_precision,
  )
  return jax.tree.map(jnp.copy, held), all_finite(variables)


@jax.jit
def all_finite(tree: PyTree) -> jax.Array:
  """Whether every number in a tree is finite, bool []."""
  leaves = jax.tree.leaves(tree)
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))

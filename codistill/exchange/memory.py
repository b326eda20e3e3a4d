"""How members see each other's weights, and how stale those are (§2.1).

The protocol and its rule of visibility are `codistill.algorithm.Exchange`;
members of several processes meet in `codistill.exchange.folder`.
"""

from __future__ import annotations

from typing import Any

from codistill.algorithm import Account, Exchange, Peer, Publications
from codistill.exchange.copies import (
  Copy,
  check_cadence,
  check_precisions,
  choose_peers,
  from_publications,
  make_copy,
  published_bytes,
  reload_number,
  to_publications,
)
from codistill.exchange.rules import Rules, TaskLosses
from codistill.exchange.topology import Topology
from codistill.precision import FULL

PyTree = Any


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

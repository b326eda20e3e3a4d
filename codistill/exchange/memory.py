"""Exchanges within one process: stale copies, or frozen peers (§2.1).

`codistill.algorithm.Exchange` defines the protocol and its rule of visibility;
`codistill.exchange.folder` connects members of several processes.
"""

from __future__ import annotations

import operator
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
  its initial weights. A copy with a parameter or task loss that is not finite
  is dropped before a peer sees it, so a broken member's last good copy grows
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
    """Makes an exchange without publications.

    Args:
      topology: the graph of members; a random one is redrawn when peers are
        reloaded.
      reload_interval_steps: k, updates between two publications, ≥ 1.
      delay_steps: d ≥ 0, further steps before a publication is visible.
      immediate: publications are visible at once, so that a member sees the
        update that an earlier member made in the same round. This is Algorithm
        1 as literally written, which parallel jobs cannot do.
      rules: decide which of the visible copies may teach.
      publish_precision: precision that publications are rounded to.
      teacher_precision: precision of teachers in memory, after that.

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
    # For the rows: events, and the copy of each peer that each member saw last.
    self._events: dict[int, list[dict[str, Any]]] = {}
    self._seen: dict[tuple[int, int], int] = {}
    # Of a member's publications; networks may differ.
    self._num_bytes: dict[int, int] = {}

  def offer(
    self, member: int, step: int, variables: PyTree, task_loss: Any = None
  ) -> None:
    """Publishes a copy if `step` is a multiple of the reload interval."""
    step = operator.index(step)  # A JAX integer is no key.
    self._losses.add(member, task_loss)
    if step % self._interval:
      return
    published = self._published[member]
    published[step] = make_copy(
      variables, self._losses.publish(member), *self._precisions
    )
    if member not in self._num_bytes:
      self._num_bytes[member] = published_bytes(variables, self._precisions[0])
    self._event(member, 'publish', member, publication=step)
    # Readers ask for this step or a later one from now on, so copies before the
    # newest one visible at this step are never needed again.
    newest = self._newest(member, step)
    for old in [s for s in published if newest is not None and s < newest]:
      del published[old]

  def freshest(self, member: int, step: int) -> tuple[Peer, ...]:
    """Returns the newest visible copy of each neighbour that has one."""
    step = operator.index(step)

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
        facts = {'peer': peer.member, 'publication': peer.step}
        self._event(member, 'load', peer.member, **facts)
    return peers

  def account(self, member: int) -> Account:
    """Returns the peers left out and why, and the publications and loads."""
    return Account(
      left_out=self._left_out.pop(member, {}),
      events=tuple(self._events.pop(member, ())),
    )

  def publications(self) -> Publications:
    """Returns the copies that a member may still ask for."""
    found = to_publications(
      {
        member: {at: copy for at, copy in copies.items() if copy.finite}
        for member, copies in self._published.items()
      },
      self._losses,
    )
    # Of a load whose row is not written yet a resumed run writes one.
    pending = {
      (member, event['peer'])
      for member, events in self._events.items()
      for event in events
      if event['event'] == 'load'
    }
    seen = [
      [*pair, step] for pair, step in self._seen.items() if pair not in pending
    ]
    mine = {'seen': seen, 'bytes_of': [*self._num_bytes.items()]}
    return found._replace(notes={**found.notes, **mine})

  def restore(self, publications: Publications) -> None:
    """Restores a result of `publications`."""
    copies = from_publications(publications, self._losses)
    self._published = {
      member: copies.get(member, {}) for member in self._published
    }
    self._seen = {
      (member, peer): step for member, peer, step in publications.notes['seen']
    }
    # A checkpoint of older code has another note.
    self._num_bytes = dict(publications.notes.get('bytes_of', ()))

  def _event(
    self, member: int, event: str, publisher: int, **facts: Any
  ) -> None:
    """Notes an event that would cross a network if members were apart."""
    num_bytes = self._num_bytes.get(publisher)
    self._events.setdefault(member, []).append(
      {'event': event, 'bytes': num_bytes, **facts}
    )

  def _newest(self, member: int, step: int) -> int | None:
    """Returns the step of the member's newest copy visible at `step`."""
    published = self._published[member]
    for at in sorted(
      (s for s in published if s <= step - self._lag), reverse=True
    ):
      # Once an interval, this waits for the publisher's update.
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
    """Returns the frozen peers."""
    return self._peers

  def publications(self) -> Publications:
    """Returns nothing; a resumed run gets its peers like the first one."""
    return Publications({}, {})

  def restore(self, publications: Publications) -> None:
    """Restores nothing, because nothing was stored."""

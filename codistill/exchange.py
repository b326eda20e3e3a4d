"""How members see each other's weights, and how stale those are (§2.1).

The protocol and its rule of visibility are `codistill.algorithm.Exchange`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from codistill.algorithm import Exchange, Peer

PyTree = Any
# Publications by member number and step, as a checkpoint stores them.
Publications = dict[int, dict[int, PyTree]]


class InMemoryExchange(Exchange):
  """Members of one process, copies in device memory.

  A member publishes a copy every `reload_interval_steps` of its updates, and
  its initial weights. A copy with a parameter or a task loss that is not finite
  is dropped before anyone sees it: a broken member falls silent and grows
  stale.
  """

  def __init__(
    self,
    neighbours: Mapping[int, tuple[int, ...]],
    *,
    reload_interval_steps: int,
    delay_steps: int,
    immediate: bool,
  ):
    """Makes an exchange in which nothing has been published.

    Args:
      neighbours: for each member those it learns from.
      reload_interval_steps: k, updates between two publications, ≥ 1.
      delay_steps: d ≥ 0, by how many more steps each publication is held back.
      immediate: publications are seen at once, so that a member sees the
        update that an earlier member made in the same round: Algorithm 1 as
        literally written, which no set of parallel jobs can do.

    Raises:
      ValueError: if the interval or the delay is out of range.
    """
    if reload_interval_steps < 1:
      raise ValueError(
        f'reload_interval_steps must be at least 1, not {reload_interval_steps}'
      )
    if delay_steps < 0:
      raise ValueError(f'delay_steps must not be negative: {delay_steps}')
    self._neighbours = dict(neighbours)
    self._interval = reload_interval_steps
    # A publication of step s is visible at step t if s ≤ t − lag.
    self._lag = delay_steps + (0 if immediate else 1)
    self._published: dict[int, dict[int, tuple[PyTree, jax.Array | bool]]] = {
      member: {} for member in self._neighbours
    }

  def offer(
    self, member: int, step: int, variables: PyTree, task_loss: Any = None
  ) -> None:
    """Publishes a copy if `step` is a multiple of the reload interval."""
    if step % self._interval:
      return
    published = self._published[member]
    published[step] = _copy_and_check(variables, task_loss)
    # Readers ask for this step or a later one from here on: what lies before
    # the newest copy that they may see is never asked for again.
    newest = self._newest(member, step)
    for old in [s for s in published if newest is not None and s < newest]:
      del published[old]

  def freshest(self, member: int, step: int) -> tuple[Peer, ...]:
    """The newest visible copy of each neighbour; those without one left out."""
    newest = (
      (peer, self._newest(peer, step)) for peer in self._neighbours[member]
    )
    return tuple(
      Peer(peer, at, self._published[peer][at][0])
      for peer, at in newest
      if at is not None
    )

  def publications(self) -> Publications:
    """The copies that may still be asked for."""
    return {
      member: {
        step: variables
        for step, (variables, finite) in published.items()
        if bool(finite)
      }
      for member, published in self._published.items()
    }

  def restore(self, publications: Publications) -> None:
    """Puts back what `publications` returned."""
    for member, published in publications.items():
      self._published[member] = {
        step: (variables, True) for step, variables in published.items()
      }

  def _newest(self, member: int, step: int) -> int | None:
    """The step of the member's newest copy that is visible at `step`."""
    published = self._published[member]
    for at in sorted(
      (s for s in published if s <= step - self._lag), reverse=True
    ):
      # Waits for the publisher's update, not for the asker's: once an interval.
      if bool(published[at][1]):
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
    return {}

  def restore(self, publications: Publications) -> None:
    """Nothing was stored, nothing comes back."""


@jax.jit
def _copy_and_check(
  variables: PyTree, task_loss: Any
) -> tuple[PyTree, jax.Array]:
  """A copy in buffers of its own, and whether all of it is finite."""
  leaves = jax.tree.leaves((variables, task_loss))
  finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
  return jax.tree.map(jnp.copy, variables), finite

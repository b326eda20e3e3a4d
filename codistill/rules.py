"""Which peers may teach: not too old, not far worse than their student.

The paper has no such rule and does not say what happens when a member fails;
by default there is none here either, and the freshest finished copy teaches.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Rules:
  """When a peer is left out, until it is fresh or well again.

  Attributes:
    max_age_steps: the age beyond which it is too old; None: it never is.
    max_task_loss_ratio: its published task loss over its student's own, beyond
      which it is too bad; None: it never is.
  """

  max_age_steps: int | None = None
  max_task_loss_ratio: float | None = None

  def __post_init__(self):
    """Refuses what no peer could satisfy.

    Raises:
      ValueError: if a limit is out of range.
    """
    if self.max_age_steps is not None and self.max_age_steps < 0:
      raise ValueError(
        f'max_age_steps must not be negative: {self.max_age_steps}'
      )
    ratio = self.max_task_loss_ratio
    if ratio is not None and ratio < 1:
      raise ValueError(
        f'max_task_loss_ratio must be at least 1, not {ratio}: members that '
        'are as good as each other would not teach each other'
      )

  def objection(
    self, age: int, task_loss: float | None, my_task_loss: float | None
  ) -> str | None:
    """Why a peer is left out, or None if it may teach.

    Args:
      age: of its copy, in my steps; negative if it is ahead.
      task_loss: φ that it published with its copy, in nats.
      my_task_loss: φ that I published last. A loss that either of us does not
        know counts for nothing.

    Returns:
      'old', 'worse' or None.
    """
    if self.max_age_steps is not None and age > self.max_age_steps:
      return 'old'
    ratio = self.max_task_loss_ratio
    if ratio is not None and None not in (task_loss, my_task_loss):
      return 'worse' if task_loss > ratio * my_task_loss else None
    return None


# The mildest: whatever is there may teach.
ANY_PEER = Rules()


class TaskLosses:
  """The task loss that each member publishes: the mean since it last did.

  The loss of one batch says too little about whether a member is ill. Sums
  stay on the device until they are asked for.
  """

  def __init__(self):
    """Knows no loss yet."""
    self._sums: dict[int, tuple[Any, int]] = {}
    self._published: dict[int, Any] = {}

  def add(self, member: int, task_loss: Any) -> None:
    """Takes note of an update's φ; None counts for nothing."""
    if task_loss is not None:
      total, count = self._sums.get(member, (0.0, 0))
      self._sums[member] = (_add(total, task_loss), count + 1)

  def publish(self, member: int) -> jax.Array | None:
    """The mean φ of the updates since the last call; None without any."""
    if member not in self._sums:
      return None
    total, count = self._sums.pop(member)
    self._published[member] = _divide(total, count)
    return self._published[member]

  def published(self, member: int) -> float | None:
    """What a member published last; waits for it if need be."""
    if member not in self._published:
      return None
    self._published[member] = float(self._published[member])
    return self._published[member]

  def to_json(self) -> dict[str, Any]:
    """All of it, for a checkpoint."""
    return {
      'sums': {
        str(member): [float(total), count]
        for member, (total, count) in self._sums.items()
      },
      'published': {
        str(member): self.published(member) for member in self._published
      },
    }

  def from_json(self, notes: dict[str, Any]) -> None:
    """Puts back what `to_json` returned."""
    self._sums = {
      int(member): (total, count)
      for member, (total, count) in notes['sums'].items()
    }
    self._published = {
      int(member): loss for member, loss in notes['published'].items()
    }


# Jitted, so that the sum stays where the losses are, in float32.
@jax.jit
def _add(total: Any, loss: Any) -> jax.Array:
  return jnp.asarray(total, jnp.float32) + loss


@jax.jit
def _divide(total: Any, count: Any) -> jax.Array:
  return total / count

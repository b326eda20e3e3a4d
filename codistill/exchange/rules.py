"""Which peers may teach: not too old, not far worse than their student.

The paper has no such rule and does not say what happens when a member fails;
by default there is none here either, and the freshest finished copy teaches.
"""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

# Losses that a mean holds before it adds up the older half.
_MOST = 256


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


class MeanLoss:
  """The mean of some updates' φ, computed when it is asked for.

  Until then it holds what the updates returned. The smallest computation on a
  device waits there for the updates, and so would the train loop.
  """

  def __init__(self, total: float, count: int, losses: list[Any]):
    """Takes the sum of `count` losses, and the rest of them."""
    self._total, self._count, self._losses = total, count, losses
    # A publisher's thread and the train loop may both want to know.
    self._lock = threading.Lock()

  def add(self, loss: Any) -> None:
    """Takes another one."""
    with self._lock:
      self._losses.append(loss)
      if len(self._losses) > _MOST:
        self._fold(_MOST // 2)  # Long computed.

  def sum_and_count(self) -> tuple[float, int]:
    """Waits for the updates; both numbers exactly as they go on being added."""
    with self._lock:
      self._fold(len(self._losses))
      return self._total, self._count

  def __float__(self) -> float:
    total, count = self.sum_and_count()
    return total / count

  def _fold(self, number: int) -> None:
    for loss in self._losses[:number]:
      self._total += float(loss)
      self._count += 1
    del self._losses[:number]


class TaskLosses:
  """The task loss that each member publishes: the mean since it last did.

  The loss of one batch says too little about whether a member is ill.
  """

  def __init__(self):
    """Knows no loss yet."""
    self._running: dict[int, MeanLoss] = {}
    self._published: dict[int, MeanLoss] = {}

  def add(self, member: int, task_loss: Any) -> None:
    """Takes note of an update's φ; None counts for nothing."""
    if task_loss is not None:
      self._running.setdefault(member, MeanLoss(0.0, 0, [])).add(task_loss)

  def publish(self, member: int) -> MeanLoss | None:
    """The mean φ of the updates since the last call; None without any."""
    if member not in self._running:
      return None
    self._published[member] = self._running.pop(member)
    return self._published[member]

  def published(self, member: int) -> float | None:
    """What a member published last; waits for it if need be."""
    mean = self._published.get(member)
    return None if mean is None else float(mean)

  def to_json(self) -> dict[str, Any]:
    """All of it, for a checkpoint."""
    return {
      name: {
        str(member): mean.sum_and_count() for member, mean in means.items()
      }
      for name, means in self._parts().items()
    }

  def from_json(self, notes: dict[str, Any]) -> None:
    """Puts back what `to_json` returned."""
    for name, means in self._parts().items():
      means.clear()
      means.update(
        (int(member), MeanLoss(*sum_and_count, []))
        for member, sum_and_count in notes[name].items()
      )

  def _parts(self) -> dict[str, dict[int, MeanLoss]]:
    return {'running': self._running, 'published': self._published}

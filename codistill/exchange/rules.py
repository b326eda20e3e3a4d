"""Rules that leave out peers that are too old or far worse than their student.

The paper has no such rule and does not say what happens when a member fails. By
default there is none here either: the freshest finished copy teaches.
"""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

# Losses that a mean keeps before it adds up the older half.
_MOST = 256


@dataclasses.dataclass(frozen=True)
class Rules:
  """Limits beyond which a peer is left out, until it is within them again.

  Attributes:
    max_age_steps: the greatest age of a peer's copy; None for no limit.
    max_task_loss_ratio: the greatest ratio of a peer's published task loss to
      its student's own; None for no limit. Initial weights, which have no loss
      yet, are beyond any.
  """

  max_age_steps: int | None = None
  max_task_loss_ratio: float | None = None

  def __post_init__(self):
    """Refuses limits that no peer could meet.

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
    """Returns the reason for leaving out a peer, or None if it may teach.

    Args:
      age: age of the peer's copy in the student's steps; negative if the peer
        is ahead.
      task_loss: φ that the peer published with its copy, in nats; None with
        initial weights.
      my_task_loss: φ that the student published last; None before, and then
        losses are not compared.

    Returns:
      'old', 'worse' or None.
    """
    if self.max_age_steps is not None and age > self.max_age_steps:
      return 'old'
    ratio = self.max_task_loss_ratio
    if None not in (ratio, my_task_loss) and (
      task_loss is None or task_loss > ratio * my_task_loss
    ):
      return 'worse'
    return None


# No limits: all peers may teach.
ANY_PEER = Rules()


class MeanLoss:
  """The mean of some updates' φ, computed on demand.

  Until then it keeps the updates' results. On the device, even the smallest
  computation would wait for the updates, and the train loop with it.
  """

  def __init__(self, total: float, count: int, losses: list[Any]):
    """Takes the sum of `count` losses, and further losses."""
    self._total, self._count, self._losses = total, count, losses
    # A publisher's thread and the train loop may both ask for the mean.
    self._lock = threading.Lock()

  def add(self, loss: Any) -> None:
    """Adds a loss."""
    with self._lock:
      self._losses.append(loss)
      if len(self._losses) > _MOST:
        self._fold(_MOST // 2)  # These were computed long ago.

  def sum_and_count(self) -> tuple[float, int]:
    """Waits for the updates; returns the exact sum and count so far."""
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
  """The task loss that each member publishes: the mean since its last one.

  The loss of one batch says too little about a member's health.
  """

  def __init__(self):
    """Starts without a loss."""
    self._running: dict[int, MeanLoss] = {}
    self._published: dict[int, MeanLoss] = {}

  def add(self, member: int, task_loss: Any) -> None:
    """Adds an update's φ; ignores None."""
    if task_loss is not None:
      self._running.setdefault(member, MeanLoss(0.0, 0, [])).add(task_loss)

  def publish(self, member: int) -> MeanLoss | None:
    """Returns the mean φ of the updates since the last call, None if none."""
    if member not in self._running:
      return None
    self._published[member] = self._running.pop(member)
    return self._published[member]

  def published(self, member: int) -> float | None:
    """Returns a member's last published loss; waits for it if necessary."""
    mean = self._published.get(member)
    return None if mean is None else float(mean)

  def to_json(self) -> dict[str, Any]:
    """Returns everything, for a checkpoint."""
    return {
      name: {
        str(member): mean.sum_and_count() for member, mean in means.items()
      }
      for name, means in self._parts().items()
    }

  def from_json(self, notes: dict[str, Any]) -> None:
    """Restores a result of `to_json`."""
    for name, means in self._parts().items():
      means.clear()
      means.update(
        (int(member), MeanLoss(*sum_and_count, []))
        for member, sum_and_count in notes[name].items()
      )

  def _parts(self) -> dict[str, dict[int, MeanLoss]]:
    return {'running': self._running, 'published': self._published}

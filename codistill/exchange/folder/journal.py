"""What happened in an exchange, for the rows and, once, for people."""

from __future__ import annotations

import collections
import logging
import threading
from collections.abc import Iterable
from typing import Any

_LOG = logging.getLogger(__name__)
# Events kept for whoever asks; whoever does not ask need not pay.
_MOST_EVENTS = 1_000


class Journal:
  """Events by member; threads may write and read it."""

  def __init__(self, members: Iterable[int]):
    """Nothing has happened to these members yet."""
    self._lock = threading.Lock()
    self._events: dict[int, collections.deque[dict[str, Any]]] = {
      member: collections.deque(maxlen=_MOST_EVENTS) for member in members
    }
    self._warned: set[tuple[Any, ...]] = set()

  def note(
    self, member: int, event: str, message: str | None = None, **facts: Any
  ) -> None:
    """Notes an event for the rows; of its kind and peer only one is said."""
    with self._lock:
      # What is wrong, not where: a message begins with a path or a name.
      what = tuple((message or '').split()[1:4])
      kind = (member, event, facts.get('peer'), what)
      if message is not None and kind not in self._warned:
        self._warned.add(kind)
        _LOG.warning(message)
        facts['message'] = message
      self._events[member].append({'event': event, **facts})

  def take(self, member: int) -> tuple[dict[str, Any], ...]:
    """What happened to a member since it was last asked for, in order."""
    with self._lock:
      events = tuple(self._events[member])
      self._events[member].clear()
    return events

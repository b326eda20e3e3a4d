"""Events of an exchange, for the rows; each kind is logged once."""

from __future__ import annotations

import collections
import logging
import threading
from collections.abc import Iterable
from typing import Any

_LOG = logging.getLogger(__name__)
# Limits memory if the events are never taken.
_MOST_EVENTS = 1_000


class Journal:
  """Events by member; threads may write and read it."""

  def __init__(self, members: Iterable[int]):
    """Starts without events."""
    self._lock = threading.Lock()
    self._events: dict[int, collections.deque[dict[str, Any]]] = {
      member: collections.deque(maxlen=_MOST_EVENTS) for member in members
    }
    self._warned: set[tuple[Any, ...]] = set()

  def note(
    self, member: int, event: str, message: str | None = None, **facts: Any
  ) -> None:
    """Notes an event for the rows; logs one of each kind and peer."""
    with self._lock:
      # The kind of fault without its place: messages begin with a path or name.
      what = tuple((message or '').split()[1:4])
      kind = (member, event, facts.get('peer'), what)
      if message is not None and kind not in self._warned:
        self._warned.add(kind)
        _LOG.warning(message)
        facts['message'] = message
      self._events[member].append({'event': event, **facts})

  def take(self, member: int) -> tuple[dict[str, Any], ...]:
    """Returns a member's events since the last call, in order."""
    with self._lock:
      events = tuple(self._events[member])
      self._events[member].clear()
    return events

"""Codistillation (Anil et al., ICLR 2018): the method, free of any config.

The names below are what a training loop of one's own needs (docs/own_loop.md,
docs/api.md). Each is imported when it is first used, because Algorithm 1 and
what reads a folder of publications need no jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from codistill.algorithm import Exchange, Peer
  from codistill.exchange.folder.exchange import CheckpointExchange
  from codistill.exchange.folder.settings import Settings
  from codistill.exchange.memory import InMemoryExchange
  from codistill.exchange.rules import Rules
  from codistill.exchange.topology import make_topology
  from codistill.losses import average_of_peers, soft_cross_entropy

__all__ = [
  'CheckpointExchange',
  'Exchange',
  'InMemoryExchange',
  'Peer',
  'Rules',
  'Settings',
  'average_of_peers',
  'make_topology',
  'soft_cross_entropy',
]

_MODULES = {
  'CheckpointExchange': 'codistill.exchange.folder.exchange',
  'Exchange': 'codistill.algorithm',
  'InMemoryExchange': 'codistill.exchange.memory',
  'Peer': 'codistill.algorithm',
  'Rules': 'codistill.exchange.rules',
  'Settings': 'codistill.exchange.folder.settings',
  'average_of_peers': 'codistill.losses',
  'make_topology': 'codistill.exchange.topology',
  'soft_cross_entropy': 'codistill.losses',
}


def __getattr__(name: str) -> Any:
  """Imports one of the names above."""
  if name not in _MODULES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
  """Those names, too, for completion."""
  return sorted({*globals(), *__all__})

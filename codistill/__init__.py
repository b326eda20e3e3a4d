"""Codistillation (Anil et al., ICLR 2018): the method, free of any config.

The names below are what a training loop of one's own needs (docs/own_loop.md,
docs/api.md). Each is imported when it is first used, because Algorithm 1 and
what reads a folder of publications need no jax.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
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

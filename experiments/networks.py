"""The networks of a config's members: one for all, or a name for each.

`codistill.member_models` names them. A name is that of a section in `networks`,
which says how the network differs from the config's own `model`, `optimizer`
and `schedule`; or it is a `model.name`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from experiments.errors import UserError, nearest

# The sections of a config that a network may change.
SECTIONS = ('model', 'optimizer', 'schedule')
# Keys in them that are for the losses of all members.
_COMMON = ('loss_chunk_tokens', 'memory_reset_probability')


def of_members(config: ConfigDict) -> tuple[tuple[str, ConfigDict], ...]:
  """The name of each member's network, and the config as it reads it.

  Raises:
    UserError: for a list of another length, an unknown name, or a network that
      sets what it cannot have of its own.
  """
  members, names = config.codistill.members, config.codistill.member_models
  if not names:
    return ((config.model.name, config),) * members
  if len(names) != members:
    raise UserError(
      f'codistill.member_models is {tuple(names)}, and codistill.members is '
      f'{members}; name one network for each member'
    )
  found = {
    name: config_of(config, name, 'codistill.member_models')
    for name in dict.fromkeys(names)
  }
  return tuple((name, found[name]) for name in names)


def config_of(config: ConfigDict, name: str, key: str) -> ConfigDict:
  """A config as one of its networks reads it.

  Args:
    config: the config.
    name: of the network.
    key: where it is named, for messages.

  Raises:
    UserError: as `of_members`.
  """
  kinds = (
    k for k, sizes in config.model.items() if isinstance(sizes, ConfigDict)
  )
  known = {*config.networks, *kinds}
  if name not in known:
    raise UserError(
      f'{key} names {name!r}; it can be {", ".join(sorted(known))}'
      f'{nearest(str(name), known)}'
    )
  own = config.copy_and_resolve_references()
  if name not in config.networks:
    own.model.name = name
    return own
  changes = config.networks[name]
  for section, keys in changes.items():
    if section not in SECTIONS:
      raise UserError(
        f'networks.{name} sets {section}, which all members share; it can set '
        f'{", ".join(SECTIONS)}'
      )
    for shared in set(_COMMON) & {*keys}:
      raise UserError(
        f'networks.{name} sets {section}.{shared}, which all members share; '
        f'set it in the section {section} of the config'
      )
  keys = dict(items_of(own))
  for unknown in (key for key, _ in items_of(changes) if key not in keys):
    raise UserError(
      f'networks.{name} sets {unknown}, and the config has no such key'
      f'{nearest(unknown, keys)}'
    )
  try:
    own.update(changes)
  except TypeError as error:
    raise UserError(f'networks.{name}: {error.args[0]}') from error
  return own


def items_of(config: ConfigDict, prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Dotted keys with their values, sections included."""
  for key, value in config.items():
    yield prefix + key, value
    if isinstance(value, ConfigDict):
      yield from items_of(value, f'{prefix}{key}.')


def value_of(changes: Any, name: str, key: str) -> Any:
  """What a network says about a key of the config; None for nothing.

  Args:
    changes: the section `networks`, of a config or of a run.json.
    name: of the network.
    key: dotted, such as 'model.resnet.depth'.
  """
  if key.partition('.')[0] not in SECTIONS:
    return None
  if name not in changes:
    return name if key == 'model.name' else None
  found = changes[name]
  for part in key.split('.'):
    if part not in found:
      return None
    found = found[part]
  return found

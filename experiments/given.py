"""Keys that a user sets: what follows from them, and whether they are read.

`config.check_keys` refuses keys that a config does not have. This module
refuses keys that other choices leave unread, such as the depth of a network
that is not trained, or a folder for an exchange that is not used.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from data.images import sets as image_sets
from data.text.corpus import open_corpus
from experiments import networks
from experiments.errors import UserError, user_errors

# Nested: a ConfigDict, or the config of a run.json.
Config = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Condition:
  """A condition under which a key is read.

  Attributes:
    key: the other key, which decides; dotted.
    holds: tests its value.
    wanted: the values that pass, in words.
  """

  key: str
  holds: Callable[[Any], bool]
  wanted: str

  def complaint(self, view: View, key: str) -> str | None:
    """Why `key` changes nothing, and what to do; None if it is read."""
    value = view.value(self.key)
    # An unknown choice is refused first, with an error of its own.
    known = _CHOICES.get(self.key, (value,))
    if value not in known or self.holds(value):
      return None
    return (
      f'--config.{key} changes nothing where {self.key} is {value!r}: leave it '
      f'out, or set {self.key} to {self.wanted}'
    )


@dataclasses.dataclass(frozen=True)
class View:
  """A config as one of the networks that it trains reads it.

  Attributes:
    config: the config.
    network: its name; None if the network is the config's own.
  """

  config: Config
  network: str | None

  def value(self, key: str) -> Any:
    """The value of a dotted key; None if there is none."""
    own = self.own(key)
    return _value(self.config, key) if own is None else own

  def own(self, key: str) -> Any:
    """What only this network has for a key; None if it has the config's."""
    if self.network is None:
      return None
    changes = _value(self.config, 'networks') or {}
    return networks.value_of(changes, self.network, key)


def _views(config: Config) -> list[View]:
  """The views of a config by the networks of its members and first phase."""
  names = list(_value(config, 'codistill.member_models') or ()) or [None]
  view = View(config, None)
  if not any(one.complaint(view, _FIRST) for one in _TWO_PHASES):
    # None for that of `model`.
    names.append(view.value(_FIRST) or None)
  return [View(config, name) for name in dict.fromkeys(names)]


def _value(config: Config, key: str) -> Any:
  """The value of a dotted key; None if there is none."""
  for name in key.split('.'):
    if not isinstance(config, (Mapping, ConfigDict)) or name not in config:
      return None
    config = config[name]
  return config


def _is(key: str, *values: Any) -> Condition:
  *others, last = (str(value) for value in values)
  wanted = f'{", ".join(others)} or {last}' if others else last
  return Condition(key, lambda value: value in values, wanted)


def _is_not(key: str, value: Any, wanted: str) -> Condition:
  return Condition(key, lambda found: found != value, wanted)


EXCHANGES = ('memory', 'checkpoints', 'frozen', 'none')
_EXCHANGE = 'codistill.exchange'
METHODS = ('codistillation', 'local_sgd', 'diloco')
_CHOICES = {_EXCHANGE: EXCHANGES, 'codistill.method': METHODS}
_LIVE = _is(_EXCHANGE, 'memory', 'checkpoints')
_FOLDER = _is(_EXCHANGE, 'checkpoints')
_METHOD = 'codistill.method'
_CODISTILLED = _is(_METHOD, 'codistillation')
_AVERAGED = _is(_METHOD, 'local_sgd', 'diloco')
_OUTER = _is(_METHOD, 'diloco')
_FAULTY = _is_not('fault.kind', 'none', 'rate, noise, death or slow')
_FIRST = 'two_phase.model'
_TAUGHT = _is_not(_EXCHANGE, 'none', 'memory or checkpoints')
_TWO_PHASES = (
  _is(_EXCHANGE, 'frozen'),
  _is('codistill.frozen_dir', None),
)
_MOVED = _is('data.augmentation', 'shift', 'shift_flip')
_WITHOUT_MEMORY = (
  'click_dnn',
  'click_regression',
  'dnn',
  'resnet',
  'transformer',
  'wide_resnet',
)
_READ_WHERE: dict[str, tuple[Condition, ...]] = {
  'codistill.topology': (_LIVE,),
  'codistill.num_random_neighbours': (
    _LIVE,
    _is('codistill.topology', 'random'),
  ),
  'codistill.publish_precision': (_LIVE,),
  'codistill.teacher_precision': (_LIVE,),
  'codistill.distill_top_k': (_is('codistill.distill_loss', 'top_k_kl'),),
  'codistill.temperature_scaling': (
    _is_not('codistill.temperature', 1, 'another value'),
  ),
  'codistill.peer_average': (_is('codistill.teacher', 'peers'),),
  'codistill.publish_average': (
    _LIVE,
    _CODISTILLED,
    Condition('average_decay', bool, 'more than 0'),
  ),
  'codistill.reload_interval_steps': (_LIVE,),
  'codistill.delay_steps': (_LIVE,),
  'codistill.immediate': (_LIVE, _CODISTILLED),
  'codistill.group_size': (_AVERAGED,),
  'codistill.outer_learning_rate': (_OUTER,),
  'codistill.outer_momentum': (_OUTER,),
  'codistill.outer_nesterov': (_OUTER,),
  'codistill.publish_differences': (_AVERAGED,),
  'codistill.max_age_steps': (_LIVE,),
  'codistill.max_task_loss_ratio': (_LIVE,),
  'codistill.frozen_dir': _TWO_PHASES[:1],
  'codistill.exchange_dir': (_FOLDER,),
  'codistill.synchronous': (_FOLDER,),
  'codistill.keep_publications': (_FOLDER,),
  'codistill.keep_s': (_FOLDER,),
  'codistill.poll_interval_s': (_FOLDER,),
  'data.padding': (_MOVED,),
  'data.synthetic_rows': (
    _is('data.name', 'synthetic'),
    _is('data.path', None),
  ),
  'fault.member': (_FAULTY,),
  'fault.step': (_FAULTY,),
  'fault.rate_factor': (_is('fault.kind', 'rate'),),
  'fault.slow_factor': (_is('fault.kind', 'slow'),),
  'model.memory_reset_probability': (
    Condition(
      'model.name',
      lambda name: name not in _WITHOUT_MEMORY,
      'lstm',
    ),
  ),
  # The network of a finished run is as that run had it.
  'model.resnet.teacher_batch_norm': (
    _TAUGHT,
    _is('codistill.frozen_dir', None),
  ),
  'optimizer.sgd.weight_decay_drop_factor': (
    Condition('optimizer.sgd.weight_decay_drop_at_steps', bool, 'some steps'),
  ),
  'two_phase.num_steps': _TWO_PHASES,
  'two_phase.members': _TWO_PHASES,
  'two_phase.model': _TWO_PHASES,
  'two_phase.train_split': _TWO_PHASES,
}
# Keys of ψ, and the weights of both losses.
_OF_TEACHERS = tuple(
  f'codistill.{key}'
  for key in (
    'distill_loss',
    'distill_top_k',
    'distill_weight',
    'distill_schedule',
    'task_weight',
    'task_schedule',
    'temperature',
    'temperature_scaling',
    'peer_average',
  )
)

# Keys that members of one group do not read either.
_OF_GROUPS = ('codistill.burn_in_steps', 'diversity.initialization')


def literal(text: str) -> Any:
  """The number, truth value or tuple in a flag, or else the text."""
  if text.lower() in ('true', 'false'):
    return text.lower() == 'true'
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError):
    return text


def following(config: ConfigDict, given: Collection[str]) -> dict[str, Any]:
  """Values that follow from the data that a user chose.

  The name of a set of images sets the facts about it. A folder of text means
  prepared text, with the vocabulary of its manifest.

  Args:
    config: the config, with the given keys set.
    given: the given keys, dotted.

  Returns:
    Values by dotted key, without the given ones.

  Raises:
    UserError: if there is no prepared text in a folder.
  """
  data, found = config.data, {}
  if 'data.name' in given:
    found |= image_sets.facts_of(data.name)
  if 'data.data_dir' in given and data.data_dir and 'vocab_size' in data:
    found['name'] = 'prepared'
    with user_errors(ValueError, OSError):
      found['vocab_size'] = open_corpus(data.data_dir).vocab_size
  return {
    f'data.{key}': value
    for key, value in found.items()
    if key in data and f'data.{key}' not in given
  }


def follow(config: ConfigDict, given: Collection[str]) -> None:
  """Sets the values of `following`; arguments and errors as there."""
  config.update_from_flattened_dict(following(config, given))


def unread(config: Config, given: Iterable[str]) -> dict[str, str]:
  """The given keys that nothing reads.

  Args:
    config: the config, with the given keys set.
    given: the given keys, dotted.

  Returns:
    For each of them, a sentence that says what to do.
  """
  found, views = {}, _views(config)
  for key in given:
    complaints = {view.network: _complaint(view, key) for view in views}
    if all(complaints.values()):
      # The network that a key is of knows best.
      of = key.removeprefix('networks.').partition('.')[0]
      found[key] = complaints.get(of) or next(iter(complaints.values()))
  return found


def check_read(config: Config, given: Iterable[str]) -> None:
  """Raises a `UserError` for the first key that nothing reads.

  That is also one that the config itself has for a member's network, which has
  chosen another model, optimizer or schedule.
  """
  given = tuple(given)
  for complaint in unread(config, given).values():
    raise UserError(complaint)
  changes = _value(config, 'networks') or {}
  for view in _views(config):
    for section, keys in changes.get(view.network, {}).items():
      name = f'{section}.name'
      chosen = view.value(name)
      others = {*keys} & {*(_value(config, section) or ())} - {'name', chosen}
      for other in sorted(others):
        # The config could not know what was given.
        if isinstance(keys[other], ConfigDict) and name not in given:
          raise UserError(
            f'networks.{view.network} sets {section}.{other}, and its {name} '
            f'is {chosen!r}: leave it out, or set networks.{view.network}.'
            f'{name} to {other}'
          )


def _complaint(view: View, key: str) -> str | None:
  """Why a view does not read a key; None if it does."""
  read = key
  if key.startswith('networks.'):
    name, _, read = key.removeprefix('networks.').partition('.')
    if name != view.network:
      return (
        f'--config.{key} changes nothing where no member has the network '
        f'{name!r}: leave it out, or name it in codistill.member_models'
      )
  elif view.own(key) is not None:
    return (
      f'--config.{key} changes nothing where each network has its own: set '
      f'{_own_key(view, key)}'
    )
  for condition in _conditions(view, read):
    if complaint := condition.complaint(view, key):
      return complaint
  return None


def _own_key(view: View, key: str) -> str:
  """The key to set instead, of the network that a view is of."""
  if view.network in (_value(view.config, 'networks') or {}):
    return f'networks.{view.network}.{key}'
  return 'codistill.member_models'


def _conditions(view: View, key: str) -> Iterator[Condition]:
  yield from _READ_WHERE.get(key, ())
  if key in _OF_TEACHERS and view.value('codistill.teacher') == 'peers':
    yield _TAUGHT
  if key in (*_OF_TEACHERS, *_OF_GROUPS) and view.value(
    'codistill.group_size'
  ) in (None, view.value('codistill.members')):
    # With groups, members of other groups teach.
    yield _CODISTILLED
  if key == 'data.name' and view.value(key) == 'synthetic':
    # A path names a log of one's own and overrides the name.
    yield _is('data.path', None)
  section, _, rest = key.partition('.')
  choice, _, keyword = rest.partition('.')
  # An unknown choice is refused first, with an error of its own.
  chosen = view.value(f'{section}.name')
  if keyword and view.value(f'{section}.{chosen}') is not None:
    yield _is(f'{section}.name', choice)

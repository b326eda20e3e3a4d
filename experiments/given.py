"""Keys that are set by hand: what follows from them, and whether it is read.

One that a config does not have is a typo, and `config.check_keys` finds it. One
that it has, and that the choices made elsewhere leave unread, is refused as
well: the depth of a network that is not trained, a folder that nobody meets in.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from data.images import sets as image_sets
from data.text.corpus import open_corpus
from experiments.errors import UserError, user_errors

# Nested, by dotted keys: a ConfigDict, or what a run.json has of one.
Config = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Condition:
  """What must hold for a key to be read.

  Attributes:
    key: dotted; the other key, that decides.
    holds: of its value.
    wanted: the values that it holds for, in words.
  """

  key: str
  holds: Callable[[Any], bool]
  wanted: str

  def complaint(self, config: Config, key: str) -> str | None:
    """Why `key` changes nothing, and what to do; None if it is read."""
    value = _value(config, self.key)
    # What is no choice at all is refused as such, and first.
    known = _CHOICES.get(self.key, (value,))
    if value not in known or self.holds(value):
      return None
    return (
      f'--config.{key} changes nothing where {self.key} is {value!r}: leave it '
      f'out, or set {self.key} to {self.wanted}'
    )


def _value(config: Config, key: str) -> Any:
  """Of a dotted key; None if there is none."""
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
_CHOICES = {_EXCHANGE: EXCHANGES}
_LIVE = _is(_EXCHANGE, 'memory', 'checkpoints')
_FOLDER = _is(_EXCHANGE, 'checkpoints')
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
    Condition('average_decay', bool, 'more than 0'),
  ),
  'codistill.reload_interval_steps': (_LIVE,),
  'codistill.delay_steps': (_LIVE,),
  'codistill.immediate': (_LIVE,),
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
  'fault.member': (_is_not('fault.kind', 'none', 'rate or noise'),),
  'fault.step': (_is_not('fault.kind', 'none', 'rate or noise'),),
  'fault.rate_factor': (_is('fault.kind', 'rate'),),
  'model.memory_reset_probability': (
    Condition(
      'model.name',
      lambda name: name not in _WITHOUT_MEMORY,
      'lstm or transformer',
    ),
  ),
  'model.resnet.teacher_batch_norm': (_TAUGHT,),
  'optimizer.sgd.weight_decay_drop_factor': (
    Condition('optimizer.sgd.weight_decay_drop_at_steps', bool, 'some steps'),
  ),
  'two_phase.num_steps': _TWO_PHASES,
  'two_phase.members': _TWO_PHASES,
  'two_phase.model': _TWO_PHASES,
  'two_phase.train_split': _TWO_PHASES,
}
# ψ and the weights of the losses that it is added to.
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


def literal(text: str) -> Any:
  """A number, a truth or a tuple as flags have them, or else the text."""
  if text.lower() in ('true', 'false'):
    return text.lower() == 'true'
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError):
    return text


def following(config: ConfigDict, given: Collection[str]) -> dict[str, Any]:
  """Keys that follow from the data, where these were given.

  Of a set of images what is known of it; a folder of text is a prepared one,
  and has the vocabulary that its manifest says.

  Args:
    config: with keys as they were given.
    given: which were, dotted.

  Returns:
    Dotted keys with their values, without those that were given.

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
  """Sets what follows; arguments and errors as above."""
  config.update_from_flattened_dict(following(config, given))


def unread(config: Config, given: Iterable[str]) -> dict[str, str]:
  """Keys that nothing reads.

  Args:
    config: with keys as they were given.
    given: which were, dotted.

  Returns:
    Those of them that change nothing, and what to do: a sentence.
  """
  found = {}
  for key in given:
    for condition in _conditions(config, key):
      if complaint := condition.complaint(config, key):
        found.setdefault(key, complaint)
  return found


def check_read(config: Config, given: Iterable[str]) -> None:
  """Raises a `UserError` for the first key that nothing reads."""
  for complaint in unread(config, given).values():
    raise UserError(complaint)


def _conditions(config: Config, key: str) -> Iterator[Condition]:
  yield from _READ_WHERE.get(key, ())
  if key in _OF_TEACHERS and _value(config, 'codistill.teacher') == 'peers':
    yield _TAUGHT
  if key == 'data.name' and _value(config, key) == 'synthetic':
    # A path is a log of one's own, and counts before the name.
    yield _is('data.path', None)
  section, _, rest = key.partition('.')
  choice, _, keyword = rest.partition('.')
  # What is no choice at all is refused as such, and first.
  chosen = _value(config, f'{section}.name')
  if keyword and _value(config, f'{section}.{chosen}') is not None:
    # The network of a first phase is trained, too.
    first = not any(one.complaint(config, key) for one in _TWO_PHASES)
    if not (first and key.startswith(f'model.{_value(config, _FIRST)}.')):
      yield _is(f'{section}.name', choice)

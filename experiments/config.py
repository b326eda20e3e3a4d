"""Configs by name: `NAME[:variant]` → a ConfigDict, or who it might have been.

Files in `experiments/configs` are experiments, but for `base`; the first line
of their docstring describes them.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments import given
from experiments.errors import UserError, check_least
from experiments.paths import PATH_KEYS, local_path, path_or_url
from experiments.results import MACHINE_KEYS, recipe_of

CONFIGS = pathlib.Path(__file__).parent / 'configs'
# Added to the seed of a first phase: with a teacher's own a student would start
# from that teacher's initial weights, and read in its order.
_TEACHERS_SEED = 1_000_000


def names() -> list[str]:
  """The experiments that there are."""
  return sorted(
    path.stem
    for path in CONFIGS.glob('*.py')
    if path.stem not in ('__init__', 'base')
  )


def split_name(name_and_variant: str) -> tuple[str, str]:
  """'imagenet_sync:laptop' → ('imagenet_sync', 'laptop').

  Raises:
    UserError: if there is no such experiment, or no such variant of it.
  """
  name, _, variant = name_and_variant.partition(':')
  if name not in names():
    raise UserError(
      f'there is no config {name!r}{_nearest(name, names())}; '
      'python -m experiments.run --list shows what there is'
    )
  variants = variants_of(name)
  if variant not in variants:
    raise UserError(
      f'config {name} has no variant {variant!r}; it has '
      f'{", ".join(v for v in variants if v)}, or none for the paper’s scale'
    )
  return name, variant


def variants_of(name: str) -> tuple[str, ...]:
  """The variants of an experiment; '' is the paper's scale."""
  return importlib.import_module(f'experiments.configs.{name}').VARIANTS


def load(name_and_variant: str) -> ConfigDict:
  """The config of that name; errors as `split_name`."""
  name, variant = split_name(name_and_variant)
  module = importlib.import_module(f'experiments.configs.{name}')
  return module.get_config(variant)


def load_changed(
  name_and_variant: str, changes: Mapping[str, Any]
) -> ConfigDict:
  """The config of that name, changed.

  Args:
    name_and_variant: of the config; errors as `split_name`.
    changes: dotted keys, and what to set them to.

  Raises:
    UserError: besides, if there is no such key, or a value is of another type.
  """
  config = load(name_and_variant)
  check_keys(config, changes)
  try:
    config.update_from_flattened_dict(changes)
  except TypeError as error:
    raise UserError(str(error)) from error
  given.follow(config, changes)
  return config


def points(name_and_variant: str) -> list[dict[str, Any]]:
  """The points of an experiment's `sweep()`; one without a change if none.

  Args:
    name_and_variant: of the config; errors as `split_name`.

  Returns:
    The keys that each point sets, dotted, with their values.
  """
  name, variant = split_name(name_and_variant)
  module = importlib.import_module(f'experiments.configs.{name}')
  return module.sweep(variant) if hasattr(module, 'sweep') else [{}]


def recorded_point(
  name_and_variant: str, config: Mapping[str, Any]
) -> dict[str, Any] | None:
  """Which point of an experiment the config of a recorded run is.

  Args:
    name_and_variant: of the config; errors as `split_name`.
    config: as `run.json` has it. Not compared are keys that its code did not
      have yet, or that nothing reads, `results.MACHINE_KEYS` and the seed.

  Returns:
    What the point sets: of `points`, or {}; None if it is none of them.
  """
  found = dict(_leaves(ConfigDict(recipe_of(config))))
  for point, wanted, changed in _recipes(name_and_variant):
    other = [key for key in found if wanted.get(key, _leaves) != found[key]]
    if len(given.unread(changed, other)) == len(other):
      return dict(point)
  return None


@functools.cache
def _recipes(
  name_and_variant: str,
) -> list[tuple[dict[str, Any], dict[str, Any], ConfigDict]]:
  """The points of an experiment, none first, with their recipe and config."""
  found = []
  for point in ({}, *points(name_and_variant)):
    config = load_changed(name_and_variant, point)
    recipe = json.loads(json.dumps(recipe_of(config.to_dict())))
    found.append((point, dict(_leaves(ConfigDict(recipe))), config))
  return found


def expand_paths(config: ConfigDict) -> None:
  """Makes the paths of a config absolute, with ~ expanded.

  Raises:
    argparse.ArgumentTypeError: for a URL.
  """
  for section, key in PATH_KEYS:
    path = config.get(section, {}).get(key)
    if path:
      kind = path_or_url if key == 'data_dir' else local_path
      config[section][key] = str(kind(path))


def first_phase(config: ConfigDict) -> ConfigDict:
  """The config of the ensemble that a second phase learns from (§3.4.1).

  Args:
    config: of the second phase.

  Raises:
    UserError: if it says nothing of a first phase, or what its data has not.
  """
  if not config.two_phase.num_steps:
    raise UserError(
      'codistill.exchange is frozen: say whom to learn from with '
      '--config.codistill.frozen_dir=WORKDIR of a finished run, or how long an '
      'ensemble is to train first with --config.two_phase.num_steps=N'
    )
  first = config.copy_and_resolve_references()
  first.seed += _TEACHERS_SEED
  first.num_steps = config.two_phase.num_steps
  first.codistill.members = config.two_phase.members
  first.codistill.burn_in_steps = config.two_phase.num_steps
  first.codistill.exchange = 'none'
  # A ramp would end after the first phase.
  for key in ('task_schedule', 'distill_schedule'):
    first.codistill[key] = 'constant'
  if config.two_phase.model is not None:
    first.model.name = config.two_phase.model
  split = config.two_phase.train_split
  if 'train_split' in first.data:
    first.data.train_split = split or first.data.train_split
    first.data.unlabelled_split = None
  elif split is not None:
    raise UserError(
      f'two_phase.train_split is {split!r}, and only images have splits to '
      'choose from; leave it out'
    )
  return first


def overrides(base: ConfigDict, config: ConfigDict) -> dict[str, Any]:
  """What a config has otherwise than its base: dotted keys with values.

  Of other data that is their name or folder, and not what follows from it.
  """
  before, after = dict(_leaves(base)), dict(_leaves(config))

  def changed() -> dict[str, Any]:
    return {
      key: value
      for key, value in after.items()
      if key not in before or before[key] != value
    }

  which = {'data.data_dir', 'data.name', 'data.path'} & changed().keys()
  before |= given.following(config, which)
  return changed()


def check_keys(config: ConfigDict, keys: Iterable[str]) -> None:
  """Refuses keys that a config does not have.

  Args:
    config: the config.
    keys: dotted, e.g. 'codistill.members'.

  Raises:
    UserError: with the nearest keys.
  """
  known = {key for key, _ in _items(config)}
  for key in keys:
    if key not in known:
      raise UserError(f'the config has no key {key!r}{_nearest(key, known)}')


def check_elements(base: ConfigDict, config: ConfigDict) -> None:
  """Refuses a tuple whose elements' type is another than the base's.

  Flags check the types of everything but these.

  Args:
    base: the config before overrides.
    config: the config with them.

  Raises:
    UserError: with the key.
  """
  overridden = dict(_items(config))
  for key, default in _items(base):
    if not (isinstance(default, tuple) and default):
      continue
    kind = type(default[0])
    allowed = (int, float) if kind is float else kind
    for element in overridden[key]:
      if not isinstance(element, allowed):
        raise UserError(
          f'--config.{key} takes elements of type {kind.__name__}, '
          f'not {element!r}'
        )


def listing() -> str:
  """A line an experiment, with its variants."""
  lines = []
  for name in names():
    tree = ast.parse((CONFIGS / f'{name}.py').read_text(encoding='utf-8'))
    summary = (ast.get_docstring(tree) or '').partition('\n')[0]
    variants = ', '.join(f':{v}' for v in variants_of(name) if v)
    lines.append(f'{name}\n  {summary}\n  variants: {variants}')
  return '\n'.join(lines)


def _items(config: ConfigDict, prefix: str = '') -> Iterable[tuple[str, Any]]:
  """Dotted keys with their values, sections included."""
  for key, value in config.items():
    yield prefix + key, value
    if isinstance(value, ConfigDict):
      yield from _items(value, f'{prefix}{key}.')


def _leaves(config: ConfigDict) -> Iterable[tuple[str, Any]]:
  return (
    (key, value)
    for key, value in _items(config)
    if not isinstance(value, ConfigDict)
  )


def _nearest(word: str, words: Iterable[str]) -> str:
  near = difflib.get_close_matches(word, sorted(words), cutoff=0.5)
  return f'; did you mean {" or ".join(near)}?' if near else ''


# What a member does by itself, so that its peers may do otherwise.
_OWN_KEYS = (
  'codistill.max_age_steps',
  'codistill.max_task_loss_ratio',
  'codistill.poll_interval_s',
  'codistill.publish_precision',
  'codistill.teacher_precision',
  'data.eval_split',
  'eval_interval_steps',
)


# Keys that older code did not have, with the value of what it did.
_ADDED = {
  'average_decay': 0.0,
  'codistill.publish_average': False,
  'codistill.distill_top_k': 16,
  'codistill.task_schedule': 'constant',
  'codistill.distill_schedule': 'constant',
  'codistill.temperature': 1.0,
  'codistill.temperature_scaling': True,
  'codistill.peer_average': 'probabilities',
}


def in_common(config: ConfigDict) -> dict[str, Any]:
  """What members that exchange weights must have in common, as plain values."""
  plain = config.copy_and_resolve_references()
  # Without a common path nobody would know that data are the same.
  free = {*MACHINE_KEYS, *_OWN_KEYS} - {'data.path'}
  if config.codistill.synchronous:
    # What publishers keep follows from it.
    free.remove('checkpoint_interval_steps')
  with plain.unlocked():
    for key in sorted(free):
      section, _, name = key.rpartition('.')
      holder = plain[section] if section else plain
      if name in holder:
        del holder[name]
    for key, before in _ADDED.items():
      section, _, name = key.rpartition('.')
      holder = plain[section] if section else plain
      if holder[name] == before:
        del holder[name]
  return plain.to_dict()


def check_numbers(config: ConfigDict) -> None:
  """Refuses counts of steps, members and examples with a `UserError`."""
  check_least(
    {
      'seed': (config.seed, 0),
      'batch_size': (config.batch_size, 1),
      'eval_batch_size': (config.eval_batch_size, 1),
      'codistill.members': (config.codistill.members, 1),
      'codistill.burn_in_steps': (config.codistill.burn_in_steps, 0),
      'codistill.lease_timeout_s': (config.codistill.lease_timeout_s, 1),
      'num_steps': (config.num_steps, 1),
      'num_async_workers': (config.num_async_workers, 1),
      'num_microbatches': (config.num_microbatches, 1),
      'two_phase.members': (config.two_phase.members, 1),
      'two_phase.num_steps': (config.two_phase.num_steps, 0),
      'eval_interval_steps': (config.eval_interval_steps, 1),
      'predictions_interval_steps': (config.predictions_interval_steps, 0),
      'checkpoint_interval_steps': (config.checkpoint_interval_steps, 1),
    }
  )
  if not 0 <= config.average_decay < 1:
    raise UserError(
      f'average_decay is {config.average_decay}; it must be 0, for no average, '
      'or between 0 and 1'
    )
  chance = config.model.memory_reset_probability
  if not 0 <= chance <= 1:
    raise UserError(
      f'model.memory_reset_probability is {chance}; it must be in [0, 1]'
    )
  often = config.predictions_interval_steps
  if often % config.eval_interval_steps:
    raise UserError(
      f'predictions_interval_steps is {often}; it must be a multiple of '
      f'eval_interval_steps, {config.eval_interval_steps}: predictions are '
      'those of an evaluation'
    )
  if often and not config.store_predictions:
    raise UserError(
      f'predictions_interval_steps is {often}, and store_predictions False; '
      'set that to True, or the interval to 0'
    )

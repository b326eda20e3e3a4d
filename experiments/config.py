"""Loads, changes, compares and checks configs."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict, FieldReference, config_flags

from experiments import config_file, given, networks
from experiments.configs.base import get_base
from experiments.errors import UserError, check_least, nearest, user_errors
from experiments.paths import PATH_KEYS, local_path, path_or_url
from experiments.results import MACHINE_KEYS, recipe_of

# Added to the seed of a first phase. With the same seed a student would start
# from its teacher's initial weights and read the data in its order.
_TEACHERS_SEED = 1_000_000


# What configs add to the base: their data, and what they choose among.
_OPEN = re.compile(r'(data|networks|optimizer|schedule)\.|model\.(name$|\w+\.)')


def load(reference: str) -> ConfigDict:
  """Loads the config that `--config` names.

  Args:
    reference: as for `config_file.find`.

  Raises:
    UserError: as `config_file.find`; also if it is no ConfigDict or lacks a key
      of the base config.
  """
  file = config_file.find(reference)
  config = file.get_config()
  if not isinstance(config, ConfigDict):
    raise UserError(
      f'get_config() of {file.path} returns {type(config).__name__}; it must '
      'return a ConfigDict'
    )
  found, known = dict(networks.items_of(config)), _base_keys()
  if missing := [key for key in known if key not in found]:
    raise UserError(
      f'the config of {file.path} has no key {missing[0]}; start from '
      'another config, or from get_base() of experiments.configs.base'
    )
  for key in sorted({*found} - {*known}):
    # What a config keeps for itself is no slip, unless it looks like one.
    first = key.partition('.')[0]
    slip = first in known or difflib.get_close_matches(first, known, cutoff=0.8)
    if slip and not (_OPEN.match(key) or isinstance(found[key], ConfigDict)):
      raise UserError(
        f'the config of {file.path} has a key {key!r}, which nothing reads'
        f'{nearest(key, known)}'
      )
  return config


@functools.cache
def _base_keys() -> tuple[str, ...]:
  """The keys that every config has."""
  return tuple(key for key, _ in networks.items_of(get_base()))


def load_changed(reference: str, changes: Mapping[str, Any]) -> ConfigDict:
  """Loads a config and changes some of its keys.

  Args:
    reference: as for `load`.
    changes: new values by dotted key.

  Raises:
    UserError: as `load`; also for an unknown key or a value of another type.
  """
  config = load(reference)
  check_keys(config, changes)
  try:
    config.update_from_flattened_dict(changes)
  except TypeError as error:
    raise UserError(str(error)) from error
  expand_paths(config)
  given.follow(config, changes)
  return config


def is_placeholder(config: ConfigDict, key: str) -> bool:
  """Whether a key takes None, too, whose text a flag can have."""
  *sections, name = key.split('.')
  for section in sections:
    config = config[section]
  found = dict(config.items(preserve_field_references=True))[name]
  # These are references as well: one is, or was, the other.
  return isinstance(found, FieldReference) and name not in (
    'num_steps',
    'burn_in_steps',
  )


def load_as_run(
  reference: str, changes: Mapping[str, Any], texts: Mapping[str, str]
) -> ConfigDict:
  """Loads a config as a run has it whose command sets these keys.

  Args:
    reference: as for `load`.
    changes: new values by dotted key.
    texts: of further flags, what is after the =, by dotted key. Those that
      experiments.run refuses change nothing.

  Raises:
    UserError: as `load_changed`.
  """
  config = load_changed(reference, changes)
  for key, text in texts.items():
    if text == 'None' and is_placeholder(config, key):
      config.update_from_flattened_dict({key: None})
      continue
    argv, values = ['', f'--config.{key}={text}'], flags.FlagValues()
    with contextlib.suppress(flags.Error, ValueError, TypeError):
      config_flags.DEFINE_config_dict(
        'config', config, flag_values=values, lock_config=False, sys_argv=argv
      )
      values(argv)
  expand_paths(config)
  given.follow(config, {**changes, **texts})
  return config


def points(reference: str) -> list[dict[str, Any]]:
  """The points of a config's `sweep()`; without one, a single empty point.

  Args:
    reference: as for `load`.

  Returns:
    The values that each point sets, by dotted key.

  Raises:
    UserError: as `load`; also for a key that the config does not have.
  """
  found = config_file.find(reference).points()
  config = load(reference)
  for point in found:
    check_keys(config, point)
  return found


def recorded_point(
  reference: str, config: Mapping[str, Any]
) -> dict[str, Any] | None:
  """Finds the point of an experiment that a recorded run belongs to.

  Args:
    reference: as for `load`.
    config: from `run.json`. The comparison ignores keys that its code did not
      have yet, keys that nothing reads, `results.MACHINE_KEYS` and the seed.

  Returns:
    The values that the point sets, {} for the config as it is; None if it is
    none of `points`.
  """
  found = dict(_leaves(ConfigDict(recipe_of(config))))
  for point, wanted, changed in _recipes(reference):
    other = [key for key in found if wanted.get(key, _leaves) != found[key]]
    if len(given.unread(changed, other)) == len(other):
      return dict(point)
  return None


@functools.cache
def _recipes(
  reference: str,
) -> list[tuple[dict[str, Any], dict[str, Any], ConfigDict]]:
  """{} and the points of an experiment, with their recipes and configs."""
  found = []
  for point in ({}, *points(reference)):
    config = load_changed(reference, point)
    recipe = json.loads(json.dumps(recipe_of(config.to_dict())))
    found.append((point, dict(_leaves(ConfigDict(recipe))), config))
  return found


def expand_paths(config: ConfigDict) -> None:
  """Makes the paths of a config absolute, with ~ expanded.

  Raises:
    UserError: for a URL.
  """
  for section, key in PATH_KEYS:
    path = config.get(section, {}).get(key)
    if path:
      may_be_url = key in ('data_dir', 'exchange_dir')
      kind = path_or_url if may_be_url else local_path
      with user_errors(argparse.ArgumentTypeError):
        config[section][key] = str(kind(path))


def first_phase(config: ConfigDict) -> ConfigDict:
  """The config of the ensemble that a second phase learns from (§3.4.1).

  Args:
    config: of the second phase.

  Raises:
    UserError: if it has no first phase, or sets a split of data without splits.
  """
  if not config.two_phase.num_steps:
    raise UserError(
      'codistill.exchange is frozen, but there is no teacher; name a finished '
      'run with --config.codistill.frozen_dir=WORKDIR, or train an ensemble '
      'first with --config.two_phase.num_steps=N'
    )
  first = config.copy_and_resolve_references()
  first.seed += _TEACHERS_SEED
  first.num_steps = config.two_phase.num_steps
  first.codistill.members = config.two_phase.members
  first.codistill.burn_in_steps = config.two_phase.num_steps
  first.codistill.exchange = 'none'
  # A fault strikes the students; a teacher that had died would be missing.
  first.fault.kind = 'none'
  # A ramp would end after the first phase.
  for key in ('task_schedule', 'distill_schedule'):
    first.codistill[key] = 'constant'
  first.codistill.member_models = ()
  if config.two_phase.model is not None:
    first = networks.config_of(first, config.two_phase.model, 'two_phase.model')
  schedule = first.schedule.get(first.schedule.name, {})
  if 'num_steps' in schedule:
    # A longer phase would end at a rate of 0; a shorter one is the beginning of
    # the student's schedule.
    schedule.num_steps = max(schedule.num_steps, first.num_steps)
  split = config.two_phase.train_split
  if 'train_split' in first.data:
    first.data.train_split = split or first.data.train_split
    first.data.unlabelled_split = None
  elif split is not None:
    raise UserError(
      f'two_phase.train_split is {split!r}, but only images have splits to '
      'choose from; leave it out'
    )
  return first


def is_first_phase(config: Mapping[str, Any]) -> bool:
  """Whether `first_phase` made the config of a run.json."""
  return (
    config['seed'] >= _TEACHERS_SEED
    and config['codistill']['exchange'] == 'none'
    and config.get('two_phase', {}).get('num_steps', 0) > 0
  )


def overrides(base: ConfigDict, config: ConfigDict) -> dict[str, Any]:
  """The values in which a config differs from its base, by dotted key.

  Values that follow from the name or folder of the data are left out.
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
  known = {key for key, _ in networks.items_of(config)}
  for key in keys:
    if key not in known:
      raise UserError(f'the config has no key {key!r}{nearest(key, known)}')


def check_elements(base: ConfigDict, config: ConfigDict) -> None:
  """Refuses tuples with elements of another type than the base's.

  Flags check all other types.

  Args:
    base: the config before overrides.
    config: the config with them.

  Raises:
    UserError: with the key.
  """
  overridden = dict(networks.items_of(config))
  for key, default in networks.items_of(base):
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


def _leaves(config: ConfigDict) -> Iterable[tuple[str, Any]]:
  return (
    (key, value)
    for key, value in networks.items_of(config)
    if not isinstance(value, ConfigDict)
  )


# Keys in which members that exchange weights may differ.
_OWN_KEYS = (
  'codistill.max_age_steps',
  'codistill.max_task_loss_ratio',
  'codistill.poll_interval_s',
  'codistill.publish_precision',
  'codistill.teacher_precision',
  'data.eval_split',
  'eval_batch_size',
  'eval_interval_steps',
  'eval_metrics',
)


# Keys that older code did not have, with the values that match what it did.
_ADDED = {
  'average_decay': 0.0,
  'evaluate_soup': False,
  'codistill.publish_average': False,
  'codistill.distill_top_k': 16,
  'codistill.task_schedule': 'constant',
  'codistill.distill_schedule': 'constant',
  'codistill.temperature': 1.0,
  'codistill.temperature_scaling': True,
  'codistill.peer_average': 'probabilities',
  'codistill.member_models': (),
  'networks': ConfigDict(),
  'codistill.method': 'codistillation',
  'codistill.group_size': None,
  'codistill.outer_learning_rate': 0.7,
  'codistill.outer_momentum': 0.9,
  'codistill.outer_nesterov': True,
  'codistill.publish_differences': False,
  'fault.slow_factor': 10.0,
}


def in_common(config: ConfigDict) -> dict[str, Any]:
  """The keys that members must share to exchange weights, as plain values."""
  plain = config.copy_and_resolve_references()
  # Only a common path shows that the data are the same.
  free = {*MACHINE_KEYS, *_OWN_KEYS} - {'data.path'}
  if config.codistill.synchronous:
    # It decides which publications are kept.
    free.remove('checkpoint_interval_steps')
  if config.codistill.publish_differences:
    # All must add up the same numbers.
    free -= {'codistill.publish_precision', 'codistill.teacher_precision'}
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
  """Refuses numbers that are out of range with a `UserError`."""
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
      'model.loss_chunk_tokens': (config.model.loss_chunk_tokens or 0, 0),
      'checkpoint_interval_steps': (config.checkpoint_interval_steps, 1),
    }
  )
  # JAX's keys have 32 bits; those of a first phase have another seed.
  if config.seed >= (most := 2**32 - _TEACHERS_SEED):
    raise UserError(f'seed is {config.seed}; it must be less than {most}')
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
      f'eval_interval_steps, {config.eval_interval_steps}, because evaluations '
      'make the predictions'
    )
  if often and not config.store_predictions:
    raise UserError(
      f'predictions_interval_steps is {often}, but store_predictions is False; '
      'set store_predictions to True, or the interval to 0'
    )

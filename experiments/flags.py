"""The command line of `experiments.run`: flags, and the run they ask for."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import re
import sys

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments import config as config_lib
from experiments import config_file, given
from experiments.config_file import ConfigFile
from experiments.errors import UserError, user_errors
from experiments.paths import ROOT, local_path


class _ConfigParser(flags.ArgumentParser):
  """A config by what names it."""

  def parse(self, argument: str) -> ConfigDict:
    return config_lib.load(argument).lock()


LIST = flags.DEFINE_bool('list', False, 'List the configs.')
try:
  _CONFIG = config_flags.DEFINE_config_file(
    'config',
    help_string='NAME[:variant], which --list shows; or one of your own: '
    'path/to/file.py[:variant], package.module[:variant].',
  )
except flags.CantOpenFlagFileError as error:  # It reads --flagfile at once.
  sys.exit(f'experiments.run: {error}')
# Not the path of a file alone.
flags.FLAGS['config'].parser = _ConfigParser()
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Where the run lies; runs/<name>-<variant> by default.'
)
_MEMBER = flags.DEFINE_string(
  'member', 'all', 'Which member this process trains: all, or its number.'
)
_OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'Begin anew, and remove the run in the workdir.'
)
_ALLOW_CODE_CHANGE = flags.DEFINE_bool(
  'allow_code_change', False, 'Resume a run that other code made.'
)
_DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'One of several processes: a world of jax.distributed.'
)
_COORDINATOR_ADDRESS = flags.DEFINE_string(
  'coordinator_address', None, 'HOST:PORT of process 0; implies --distributed.'
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'How many processes there are of this member.'
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'Which of them this is, from 0.'
)
_WATCHERS = (
  flags.DEFINE_bool(
    'tensorboard', False, 'Write TensorBoard event files, too.'
  ),
  flags.DEFINE_bool(
    'wandb', False, 'Log to Weights & Biases, too (docs/watching.md).'
  ),
)
_PROFILE = flags.DEFINE_string(
  'profile', None, 'FIRST:LAST, steps to trace with JAX’s profiler.'
)


@dataclasses.dataclass(frozen=True)
class World:
  """The processes of a member; all None if the cluster knows them.

  Attributes:
    coordinator_address: 'host:port' of process 0.
    num_processes: how many there are.
    process_id: which of them this is.
  """

  coordinator_address: str | None
  num_processes: int | None
  process_id: int | None


@dataclasses.dataclass(frozen=True)
class Request:
  """A run as the command asks for it.

  Attributes:
    file: of the config, with the variant that is meant.
    label: what the console calls the run.
    config: with the keys that the command changes.
    workdir: where the run lies; absolute.
    member: the one member that this process trains, or None for all.
    world: the processes of this member, or None if this is the only one.
    overwrite: do not go on with what the workdir holds.
    allow_code_change: go on although other code made the run.
    watchers: names of what else sees the rows.
    profile: steps to trace, if any.
  """

  file: ConfigFile
  label: str
  config: ConfigDict
  workdir: pathlib.Path
  member: int | None
  world: World | None
  overwrite: bool
  allow_code_change: bool
  watchers: tuple[str, ...]
  profile: range | None


def parse_flags(argv: list[str]) -> list[str]:
  """Flags of absl with configs by name; what they cannot be is a `UserError`.

  Args:
    argv: the command.

  Returns:
    What is left of it after the flags.

  Raises:
    UserError: unknown config, variant, key or flag, or a value of a wrong type.
  """
  try:
    argv = flags.FLAGS.read_flags_from_files(argv)
  except flags.Error as error:
    raise UserError(str(error).partition('\n')[0]) from error
  argv = [_dashes(argument) for argument in argv]
  name, keys = None, []
  for position, argument in enumerate(argv):
    flag, equals, value = argument.partition('=')
    if flag == '--config':
      if not equals:
        if position + 1 == len(argv):
          raise UserError('--config needs a name; --list shows what there is')
        value = argv[position + 1]
      name = value
    elif match := re.match(r'--(?:no)?config\.(.+)', flag):
      keys.append(match[1])
  if keys and name is None:
    raise UserError('--config.… changes a config: name it with --config=NAME')
  if name is not None:
    base = config_lib.load(name)
    config_lib.check_keys(base, keys)
    # Their flags take no None.
    nones = {
      f'--config.{key}=None': key
      for key in keys
      if config_lib.is_placeholder(base, key)
    }
    last = {argument.partition('=')[0]: argument for argument in argv}
    unset = [nones[flag] for flag in last.values() if flag in nones]
    argv = [argument for argument in argv if argument not in nones]
  try:
    rest = flags.FLAGS(argv)
  except flags.Error as error:
    raise UserError(str(error).partition('\n')[0]) from error
  if len(rest) > 1:
    raise UserError(f'what is {rest[1]!r}? flags begin with --')
  if name is not None:
    config_lib.check_elements(base, _CONFIG.value)
    config = _CONFIG.value
    config.update_from_flattened_dict(dict.fromkeys(unset))
    if _MEMBER.value != 'all' and config.codistill.exchange == 'memory':
      # Alone in a process, it meets its peers in a folder.
      config.codistill.exchange = 'checkpoints'
    config_lib.expand_paths(config)
    given.follow(config, keys)
    given.check_read(config, keys)
    # For the default workdir and the provenance.
    rest.append(name)
  return rest


def make_request(reference: str) -> Request:
  """The run that parsed flags ask for.

  Args:
    reference: of the config, as `config_file.find` reads it.

  Raises:
    UserError: if flags do not fit together.
  """
  file = config_file.find(reference)
  label, default = file.label, file.stem
  config = _CONFIG.value
  member = _parse_member(_MEMBER.value)
  if member is not None:
    label += f' member {member}'
    default += '-members'
  with user_errors(argparse.ArgumentTypeError):
    workdir = local_path(_WORKDIR.value or str(ROOT / 'runs' / default))
  return Request(
    file=file,
    label=label,
    config=config,
    workdir=workdir,
    member=member,
    world=_world(),
    overwrite=_OVERWRITE.value,
    allow_code_change=_ALLOW_CODE_CHANGE.value,
    watchers=tuple(flag.name for flag in _WATCHERS if flag.value),
    profile=_parse_profile(_PROFILE.value),
  )


def _dashes(argument: str) -> str:
  """Flags of absl have underscores; people type --allow-code-change."""
  if re.match(r'-\w', argument):
    argument = f'-{argument}'
  flag, equals, value = argument.partition('=')
  if not flag.startswith('--') or flag.startswith('--config.'):
    return argument
  return f'{flag.replace("-", "_").replace("__", "--", 1)}{equals}{value}'


def _parse_member(text: str) -> int | None:
  if text == 'all':
    return None
  try:
    return int(text)
  except ValueError as error:
    raise UserError(
      f'--member is all or the number of a member, not {text!r}'
    ) from error


def _parse_profile(text: str | None) -> range | None:
  if text is None:
    return None
  match = re.fullmatch(r'(\d+):(\d+)', text)
  if not match or not 1 <= int(match[1]) <= int(match[2]):
    raise UserError(
      f'--profile is {text!r}; it takes FIRST:LAST, the first and last step '
      'to trace, such as 20:25'
    )
  return range(int(match[1]), int(match[2]) + 1)


def _world() -> World | None:
  explicit = {
    '--coordinator-address': _COORDINATOR_ADDRESS.value,
    '--num-processes': _NUM_PROCESSES.value,
    '--process-id': _PROCESS_ID.value,
  }
  missing = [flag for flag, value in explicit.items() if value is None]
  if len(missing) == len(explicit) and not _DISTRIBUTED.value:
    return None
  if missing and len(missing) < len(explicit):
    raise UserError(
      f'{" and ".join(missing)} is missing: the three go together; or use '
      '--distributed alone, where Slurm and others tell them'
    )
  return World(*explicit.values())

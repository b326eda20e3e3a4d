r"""Runs an experiment, or goes on with one, or shows one that is finished.

  python -m experiments.run --list
  python -m experiments.run --config=NAME[:variant] [--workdir=DIR]
    [--member=all|I] [--config.any.key=value] [--tensorboard]
    [--overwrite] [--allow-code-change]
    [--distributed | --coordinator-address=HOST:PORT --num-processes=P
    --process-id=K]

With --distributed this is one of several processes of a member, found from
Slurm, Open MPI, Kubernetes or Cloud TPU; or say where process 0 is, how many
there are, and which this is.

The same command again resumes. Exit status: 0 done, 1 an error or a member
that diverged, 2 a command that makes no sense, 3 another process of this member
ended first, 128 + n stopped by signal n.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import logging as python_logging
import os
import pathlib
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from rich.console import Console

from codistill import hosts
from codistill.algorithm import Exchange
from codistill.exchange.folder.lease import (
  Lease,
  LeaseHeldError,
  LeaseLostError,
)
from codistill.exchange.folder.waiter import PeerTimeoutError
from experiments import config as config_lib
from experiments import record
from experiments.build import build
from experiments.errors import UserError, user_errors
from experiments.progress import RunProgress
from experiments.stored import fit_of, load_teachers
from experiments.summary import results_table
from experiments.tensorboard import TensorBoard
from experiments.train import Trainer
from experiments.workdir import Workdir, follow_workdir, open_workdir

ROOT = pathlib.Path(__file__).parent.parent
# Added to the seed of a first phase: with a teacher's own a student would start
# from that teacher's initial weights, and read in its order.
TEACHERS_SEED = 1_000_000
# Others of this member say why it ended.
LOST_OTHERS = 3
PACKAGES = (
  'flax',
  'grain',
  'jax',
  'jaxlib',
  'ml_collections',
  'numpy',
  'opencv-python-headless',
  'optax',
  'orbax-checkpoint',
  'scikit-learn',
  'tensorflow-datasets',
)

_CONFIG = config_flags.DEFINE_config_file(
  'config', help_string='NAME[:variant]; --list shows what there is.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Where the run lies; runs/<name>-<variant> by default.'
)
_MEMBER = flags.DEFINE_string(
  'member', 'all', 'Which member this process trains: all, or its number.'
)
_LIST = flags.DEFINE_bool('list', False, 'List the configs.')
_OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'Begin anew, whatever the workdir holds.'
)
_ALLOW_CODE_CHANGE = flags.DEFINE_bool(
  'allow_code_change', False, 'Resume a run that another commit made.'
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
_TENSORBOARD = flags.DEFINE_bool(
  'tensorboard', False, 'Write TensorBoard event files, too.'
)


def parse_flags(argv: list[str]) -> list[str]:
  """Flags of absl with configs by name; what they cannot be is a `UserError`.

  Args:
    argv: the command.

  Returns:
    What is left of it after the flags.

  Raises:
    UserError: unknown config, variant, key or flag, or a value of a wrong type.
  """
  argv = [_dashes(argument) for argument in argv]
  name, keys = None, []
  for position, argument in enumerate(argv):
    flag, equals, value = argument.partition('=')
    if flag == '--config':
      if not equals:
        if position + 1 == len(argv):
          raise UserError('--config needs a name; --list shows what there is')
        value = argv[position + 1]
      config_lib.split_name(value)
      path, colon, variant = value.partition(':')
      path = f'{config_lib.CONFIGS / path}.py{colon}{variant}'
      name = value
      argv[position + (not equals)] = f'--config={path}' if equals else path
    elif flag.startswith('--config.'):
      keys.append(flag.removeprefix('--config.'))
  if keys and name is None:
    raise UserError('--config.… changes a config: name it with --config=NAME')
  if name is not None:
    base = config_lib.load(name)
    config_lib.check_keys(base, keys)
  try:
    rest = flags.FLAGS(argv)
  except flags.Error as error:
    raise UserError(str(error).partition('\n')[0]) from error
  if len(rest) > 1:
    raise UserError(f'what is {rest[1]!r}? flags begin with --')
  if name is not None:
    config_lib.check_elements(base, _CONFIG.value)
    config_lib.follow_name(_CONFIG.value, keys)
    # For the default workdir and the provenance.
    rest.append(name)
  return rest


def _dashes(argument: str) -> str:
  """Flags of absl have underscores; people type --allow-code-change."""
  flag, equals, value = argument.partition('=')
  if not flag.startswith('--') or flag.startswith('--config.'):
    return argument
  return f'{flag.replace("-", "_").replace("__", "--", 1)}{equals}{value}'


def run(name_and_variant: str, console: Console, stop: list[int]) -> int:
  """Does what the flags say.

  Args:
    name_and_variant: of the config.
    console: where to say things.
    stop: gets the number of a signal when it is time to stop.

  Returns:
    The exit status.
  """
  name, variant = config_lib.split_name(name_and_variant)
  label = f'{name}:{variant}' if variant else name
  config = _CONFIG.value
  member = _parse_member(_MEMBER.value)
  default = '-'.join(filter(None, (name, variant)))
  if member is not None:
    label += f' member {member}'
    default += '-members'
    if config.codistill.exchange == 'memory':
      # Alone in a process, it meets its peers in a folder.
      config.codistill.exchange = 'checkpoints'
  path = pathlib.Path(_WORKDIR.value or ROOT / 'runs' / default)
  path = path.expanduser().absolute()  # Orbax takes no other.
  _join_processes(config.codistill)
  frozen = config.codistill.frozen_dir
  if config.codistill.exchange == 'frozen' and frozen is None:
    frozen = path / 'ensemble'
    status = _train(
      name,
      variant,
      f'{label}, the ensemble',
      _first_phase(config),
      frozen,
      None,
      console,
      stop,
    )
    if status:
      return status
  taught, known = {}, {}
  if config.codistill.exchange == 'frozen':
    frozen = pathlib.Path(frozen).expanduser().absolute()
    teachers, teacher = load_teachers(frozen, config.data)
    taught = {'teachers': teachers, 'teacher': teacher}
    known = {'teachers': fit_of(frozen)}
  return _train(
    name, variant, label, config, path, member, console, stop, taught, known
  )


def _first_phase(config: ConfigDict) -> ConfigDict:
  """The config of the ensemble that the second phase learns from."""
  if not config.two_phase.num_steps:
    raise UserError(
      'codistill.exchange is frozen: say whom to learn from with '
      '--config.codistill.frozen_dir=WORKDIR of a finished run, or how long an '
      'ensemble is to train first with --config.two_phase.num_steps=N'
    )
  first = config.copy_and_resolve_references()
  first.seed += TEACHERS_SEED
  first.num_steps = config.two_phase.num_steps
  first.codistill.members = config.two_phase.members
  first.codistill.burn_in_steps = config.two_phase.num_steps
  first.codistill.exchange = 'none'
  # Not in the first phase, which is then the same for students that differ in
  # these.
  first.codistill.task_weight = first.codistill.distill_weight = 1.0
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


def _train(
  name: str,
  variant: str,
  label: str,
  config: ConfigDict,
  path: pathlib.Path,
  member: int | None,
  console: Console,
  stop: list[int],
  taught: Mapping[str, Any] | None = None,
  known: Mapping[str, Any] | None = None,
) -> int:
  """One run in one workdir, from its beginning or its last checkpoint.

  With `taught` to build it from, and `known` for its provenance.
  """
  workdir = _open(path, _provenance(name, variant, config, member), member)
  if not hosts.is_first():
    console = Console(quiet=True)
  if workdir.finished:
    console.print(f'{label} is finished; --overwrite runs it again.')
    return _conclude(label, workdir, console)
  # Everything that can be refused is refused before the first file is written.
  experiment = build(
    config, member, exchange_folder=path / 'exchange', **(taught or {})
  )
  with contextlib.ExitStack() as stack:
    lease = hosts.first_then_others(
      lambda: _begin(workdir, experiment.exchange, stack)
    )
    facts = {
      name: getattr(experiment.dataset, name, None)
      for name in ('fingerprint', 'best_log_loss')
    }
    if any(facts.values()):
      found = {name: it for name, it in facts.items() if it is not None}
      workdir.write_run(data=found)
    if known:
      workdir.write_run(**known)
    if facts['best_log_loss'] is not None:
      console.print(
        'A synthetic log: in the mean no model can do better than '
        f'{facts["best_log_loss"]:.4f} nats on all of its held-out rows.'
      )
    trainer = stack.enter_context(
      contextlib.closing(Trainer(experiment, workdir))
    )
    if _TENSORBOARD.value and hosts.is_first():
      tensorboard = TensorBoard(workdir.tensorboard, trainer.start_step)
      trainer.observers.append(stack.enter_context(tensorboard).write)
    if trainer.start_step:
      console.print(f'{label} goes on from step {trainer.start_step:,}.')
    progress = stack.enter_context(
      RunProgress(
        console,
        label,
        members=experiment.members,
        num_steps=experiment.num_steps,
        start_step=trainer.start_step,
        unit=experiment.unit,
      )
    )
    try:
      stopped_at = trainer.train(
        progress, lambda: (lease and lease.check()) or bool(stop)
      )
    except PeerTimeoutError:
      workdir.write_run(status='interrupted')
      raise
    status = 'diverged' if workdir.run.get('diverged') else 'done'
    # While nobody else can begin here.
    workdir.write_run(status=status if stopped_at is None else 'interrupted')
  if stopped_at is not None:
    console.print(
      f'Stopped at step {stopped_at:,} of {experiment.num_steps:,}; '
      'the same command goes on from there.'
    )
    # Another process of this member may have got the signal.
    return 128 + (stop[0] if stop else signal.SIGTERM)
  return _conclude(label, workdir, console)


def _join_processes(codistill: ConfigDict) -> None:
  """Forms one world with this member's other processes, if there are any."""
  explicit = {
    '--coordinator-address': _COORDINATOR_ADDRESS.value,
    '--num-processes': _NUM_PROCESSES.value,
    '--process-id': _PROCESS_ID.value,
  }
  missing = [flag for flag, value in explicit.items() if value is None]
  if len(missing) == len(explicit) and not _DISTRIBUTED.value:
    return
  if missing and len(missing) < len(explicit):
    raise UserError(
      f'{" and ".join(missing)} is missing: the three go together; or use '
      '--distributed alone, where Slurm and others tell them'
    )
  try:
    hosts.start(
      *explicit.values(),
      start_timeout_s=codistill.wait_timeout_s,
      heartbeat_timeout_s=codistill.lease_timeout_s,
    )
  except (RuntimeError, ValueError) as error:
    reason = ' '.join(str(error).split())[:200]
    raise UserError(
      f'this member’s processes did not find each other ({reason}); see that '
      'all of them run and reach process 0, and that its port is free'
    ) from error


def _open(path: pathlib.Path, run: record.Row, member: int | None) -> Workdir:
  """The workdir: opened by the first process, for all of a member."""

  def open_() -> Workdir:
    return open_workdir(
      path,
      run,
      member=member,
      overwrite=_OVERWRITE.value,
      allow_code_change=_ALLOW_CODE_CHANGE.value,
    )

  workdir = hosts.first_then_others(
    lambda: open_() if hosts.is_first() else None
  )
  found, resumes = hosts.tell(workdir and [workdir.run, workdir.resumes])
  return workdir or follow_workdir(path, found, member=member, resumes=resumes)


def _begin(
  workdir: Workdir, exchange: Exchange, stack: contextlib.ExitStack
) -> Lease | None:
  """Takes the leases, and begins to write."""
  lease = stack.enter_context(workdir.alone())
  try:
    with user_errors(LeaseHeldError):
      stack.enter_context(exchange)
  except OSError as error:
    if _disk_full(error):
      raise
    raise UserError(
      f'cannot write to the exchange folder ({error}); make it writable, or '
      'set codistill.exchange_dir to another one'
    ) from error
  workdir.begin()
  if not workdir.resumes:
    exchange.forget()
  return lease


def _conclude(label: str, workdir: Workdir, console: Console) -> int:
  """Shows the result and where it lies; 1 if a member diverged."""
  diverged = workdir.run.get('diverged', {})
  if not hosts.is_first():
    return 1 if diverged else 0
  if not workdir.record.rows_path.exists():
    raise UserError(
      f'{workdir.record.rows_path} is gone; --overwrite runs it again'
    )
  rows = record.read_rows(workdir.record.rows_path)
  console.print(results_table([(label, rows)]))
  console.print(
    f'rows {_shown(workdir.record.rows_path)}, '
    f'provenance {_shown(workdir.record.run_path)}, '
    f'checkpoints {_shown(workdir.checkpoints)}',
    soft_wrap=True,
    highlight=False,
    markup=False,  # Brackets in a path are brackets.
  )
  for member, at in diverged.items():
    _complain(
      f'member {member} diverged at step {at["step"]} '
      f'({_losses(at)}); try a lower learning rate'
    )
  return 1 if diverged else 0


def _losses(at: dict[str, object]) -> str:
  return ', '.join(
    f'{name.replace("_", " ")} {value}'
    for name, value in at.items()
    if name != 'step'
  )


def _shown(path: pathlib.Path) -> pathlib.Path:
  """As short as it can be typed from here."""
  here = pathlib.Path.cwd()
  return path.relative_to(here) if path.is_relative_to(here) else path


def _parse_member(text: str) -> int | None:
  if text == 'all':
    return None
  try:
    return int(text)
  except ValueError as error:
    raise UserError(
      f'--member is all or the number of a member, not {text!r}'
    ) from error


def _provenance(name, variant, config, member):
  plain = config.to_dict()
  devices = jax.devices()
  return {
    'schema': record.SCHEMA_VERSION,
    'experiment': name,
    'variant': variant,
    'member': member,
    'status': 'running',
    'seed': config.seed,
    'config': plain,
    # Against the named config at this commit: which point of a sweep it is.
    'overrides': config_lib.overrides(
      config_lib.load(':'.join(filter(None, (name, variant)))), config
    ),
    'config_hash': record.config_hash(plain),
    **record.code_version(ROOT),
    'packages': record.package_versions(PACKAGES),
    'device': {
      'platform': devices[0].platform,
      'kind': devices[0].device_kind,
      'count': config.num_devices or len(devices),
      'processes': jax.process_count(),
    },
    'argv': sys.argv,
    'started': datetime.datetime.now(datetime.UTC).isoformat(
      timespec='seconds'
    ),
  }


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[list[int]]:
  """Yields a list that gets the first signal to stop; a second one kills.

  SIGUSR2 is what submitit has Slurm send before it takes a job away.
  """
  received: list[int] = []

  def receive(number, frame):
    del frame
    received.append(number)
    for other in before:
      signal.signal(other, signal.SIG_DFL)
    # Not through a console or file object, which may be in the middle of a
    # write at this moment.
    os.write(2, 'Stopping after this step, with a checkpoint …\n'.encode())

  before = {
    number: signal.signal(number, receive)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
  }
  try:
    yield received
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _complain(sentence: str) -> None:
  print(f'experiments.run: {sentence}', file=sys.stderr)


def _disk_full(error: BaseException | None) -> bool:
  """Whether a full disk is behind an error, however wrapped."""
  while error is not None:
    if getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT):
      return True
    if os.strerror(errno.ENOSPC) in str(error):
      return True
    error = error.__cause__ or error.__context__
  return False


def main(argv: list[str]) -> int:
  """Runs the command; errors that a user can cause end in one sentence."""
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update('jax_compilation_cache_dir', str(ROOT / '.cache/jax'))
  if not flags.FLAGS['verbosity'].present:
    # Orbax tells a lot, and tells what it raises once more from each thread
    # and each of its tasks.
    logging.set_verbosity(logging.FATAL)
    python_logging.getLogger('asyncio').setLevel(python_logging.CRITICAL)
    warnings.filterwarnings(
      'ignore', 'coroutine .* was never awaited', RuntimeWarning
    )
  if _LIST.value:
    print(config_lib.listing())
    return 0
  try:
    if len(argv) < 2:
      raise UserError('--config=NAME is missing; --list shows what there is')
    with _stop_on_signals() as stop:
      status = run(argv[1], Console(), stop)
    hosts.leave()
    return status
  except UserError as error:
    _complain(str(error))
    hosts.leave()
    return 2
  except hosts.OtherProcessError as error:
    _complain(f'process 0 of this member cannot go on: {error}')
    hosts.leave()
    return 2
  except LeaseLostError as error:
    _complain(str(error))
    return 1
  except PeerTimeoutError as error:
    _complain(f'{error}; the same command goes on from the last checkpoint')
    return 1
  except Exception as error:
    reason = hosts.lost(error)
    if reason:
      _complain(
        f'another process of this member has ended, and its log says why; '
        f'process {jax.process_index()} ends, too ({reason}); the same '
        'commands go on from the last checkpoint'
      )
      return LOST_OTHERS
    if not _disk_full(error):
      raise
    _complain(
      'the disk is full; free some space and run the same command again: it '
      'goes on from its last checkpoint'
    )
    return 1


def _main_of_process(argv: list[str]) -> int:
  """`main`, and then an end without Orbax's threads.

  When a checkpoint could not be written, they would keep the process for
  minutes and complain at length; so they do of a publication that could not be
  read, which has been said already.
  """
  show = sys.unraisablehook

  def show_others(unraisable):
    if 'Event loop is closed' not in str(unraisable.exc_value):
      show(unraisable)

  sys.unraisablehook = show_others
  try:
    status = main(argv)
  except Exception:
    if not hosts.are_several():
      raise
    # At its end JAX would wait for the others for minutes, and they for this.
    traceback.print_exc()
    status = 1
  if status:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
  return status


def _parse_or_exit(argv: list[str]) -> list[str]:
  try:
    return parse_flags(argv)
  except UserError as error:
    _complain(str(error))
    sys.exit(2)


if __name__ == '__main__':
  app.run(_main_of_process, flags_parser=_parse_or_exit)

r"""Runs an experiment, or goes on with one, or shows one that is finished.

  python -m experiments.run --list
  python -m experiments.run --config=CONFIG [--workdir=DIR]
    [--member=all|I] [--config.any.key=value] [--tensorboard] [--wandb]
    [--profile=FIRST:LAST] [--overwrite] [--allow-code-change]
    [--distributed | --coordinator-address=HOST:PORT --num-processes=P
    --process-id=K]

CONFIG is NAME[:variant], as --list shows them, or one of your own:
path/to/my_config.py[:variant] or package.module[:variant] (docs/extend.md).

With --distributed this is one of several processes of a member, found from
Slurm, Open MPI, Kubernetes or Cloud TPU; or say where process 0 is, how many
there are, and which this is.

The same command again resumes. Exit status: 0 done, 1 an error or a member
that diverged, 2 a command that makes no sense, 3 another process of this member
ended first, 128 + n stopped by signal n.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gc
import logging as python_logging
import os
import pathlib
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import jax
from absl import app, logging
from absl.flags import FLAGS, adopt_module_key_flags
from rich.console import Console

from codistill import hosts
from codistill.algorithm import Exchange, Peer
from codistill.exchange.folder import lease as lease_lib
from codistill.exchange.folder.lease import Lease, LeaseHeldError
from codistill.exchange.folder.waiter import PeerTimeoutError
from codistill.models import Model
from experiments import config as config_lib
from experiments import config_file, flags, metrics, record, watchers
from experiments.build import build
from experiments.ending import (
  LOST_OTHERS,
  REFUSED,
  RunConsole,
  complain,
  ending_of,
  handling,
  is_disk_full,
  stop_on_signals,
)
from experiments.errors import LoneError, UserError, user_errors
from experiments.experiment import Experiment
from experiments.flags import Request, World, make_request, parse_flags
from experiments.objective import why_untaught
from experiments.paths import FIRST_PHASE, ROOT
from experiments.processes import say
from experiments.profile import Profile
from experiments.programs import keep_programs
from experiments.progress import RunProgress
from experiments.runs import fit_of, identity_of
from experiments.stored import load_teachers
from experiments.summary import results_table
from experiments.tasks import Dataset
from experiments.train import Trainer
from experiments.workdir import (
  Workdir,
  follow_workdir,
  is_running,
  open_workdir,
)

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

# Seconds of waiting for other processes without a word, and of JAX's patience
# beyond ours.
_SILENT_S = 10
_LATER_S = 60
# So that --help shows them as this command's.
adopt_module_key_flags(flags)


class Teachers(NamedTuple):
  """Whom members of a run learn from besides each other (§3.4.1).

  Attributes:
    peers: members of a finished run.
    models: their networks, by number.
    fit: how well they know what they learnt from, as `fit_of`.
    identity: of that run, as `identity_of`.
  """

  peers: tuple[Peer, ...] = ()
  models: Mapping[int, Model] = {}
  fit: record.Row | None = None
  identity: record.Row | None = None


def run(request: Request, console: Console, stop: list[int]) -> int:
  """Does what the command asks for.

  Args:
    request: the run.
    console: where to say things.
    stop: gets the number of a signal when it is time to stop.

  Returns:
    The exit status.
  """
  codistill = request.config.codistill
  if request.world is not None:
    _join(
      request.world,
      console,
      start_timeout_s=codistill.wait_timeout_s,
      heartbeat_timeout_s=codistill.lease_timeout_s,
    )
  with user_errors(ValueError):
    hosts.devices()
  if codistill.exchange != 'frozen':
    return _train(request, Teachers(), console, stop)
  frozen = codistill.frozen_dir
  if frozen is None:
    frozen = request.workdir / FIRST_PHASE
    ensemble = dataclasses.replace(
      request,
      label=f'{request.label}, the ensemble',
      config=config_lib.first_phase(request.config),
      workdir=frozen,
      member=None,
      profile=None,
    )
    student = _check_student(request)
    if student.finished:
      return _train(request, Teachers(), console, stop)
    # An old student would pass for that of the new teachers.
    old = student if request.overwrite else None
    status = _train(ensemble, Teachers(), console, stop, old)
    # The first process is the last to end; then the others may look.
    hosts.tell(None)
    if status:
      return status
  frozen = pathlib.Path(frozen)
  peers, models = load_teachers(frozen, request.config.data)
  teachers = hosts.all_or_none(
    lambda: Teachers(peers, models, fit_of(frozen), identity_of(frozen))
  )
  return _train(request, teachers, console, stop)


def _check_student(request: Request) -> Workdir:
  """Refuses what would be refused when its teachers are trained.

  Returns:
    Its folder, in which nothing has been changed.
  """
  workdir = _open(request)
  teachers = request.workdir / FIRST_PHASE

  def check() -> None:
    if 'taught_by' in workdir.run and not workdir.finished:
      if not (teachers / 'run.json').exists():
        raise UserError(
          f'{workdir.path} has learnt from {teachers}, which is gone; put it '
          'back, choose another --workdir, or --overwrite to begin anew'
        )
      workdir.check_teachers(identity_of(teachers))
    if hosts.is_first() and is_running(workdir.path, workdir.record.suffix):
      raise UserError(
        f'another process is at work on {workdir.path}; stop it, or choose '
        'another --workdir'
      )
    build(request.config, request.member)
    _check_profile(request.profile, request.config.num_steps)

  hosts.all_or_none(check)
  return workdir


def _join(
  world: World,
  console: Console,
  *,
  start_timeout_s: float,
  heartbeat_timeout_s: float,
) -> None:
  """Forms one world with this member's other processes."""

  def tell() -> None:
    say(
      console,
      'Waiting for the other processes of this member, up to '
      f'{start_timeout_s:g} seconds …',
    )

  def give_up() -> None:
    complain(f'{fact} in {start_timeout_s:g} seconds; {remedy}')
    sys.stderr.flush()
    os._exit(LOST_OTHERS)

  fact = 'this member’s processes did not find each other'
  remedy = (
    'see that all of them run and reach process 0, and that its port is free'
  )
  timers = [
    threading.Timer(_SILENT_S, tell),
    threading.Timer(start_timeout_s, give_up),
  ]
  for timer in timers:
    timer.start()
  try:
    # JAX's own end of the wait is an abort with a C++ stack, and Python's
    # handlers of signals would wait, too.
    with handling(signal.SIG_DFL):
      hosts.start(
        *dataclasses.astuple(world),
        start_timeout_s=start_timeout_s + _LATER_S,
        heartbeat_timeout_s=heartbeat_timeout_s,
      )
  except (RuntimeError, ValueError) as error:
    reason = ' '.join(str(error).split())[:200]
    raise UserError(f'{fact} ({reason}); {remedy}') from error
  finally:
    for timer in timers:
      timer.cancel()


# Long, because what is opened here, one in the other, is closed at its end.
def _train(
  request: Request,
  teachers: Teachers,
  console: Console,
  stop: list[int],
  old: Workdir | None = None,
) -> int:
  """One run in one workdir, from its beginning or its last checkpoint.

  A run in `old`, if any, is removed when this one begins.
  """
  label = request.label
  workdir = _open(request)
  if not hosts.is_first():
    console = Console(quiet=True)
  if workdir.finished:
    nothing = ' Nothing is profiled.' if request.profile else ''
    say(console, f'{label} is finished; --overwrite runs it again.{nothing}')
    return _conclude(label, workdir, console)
  devices = hosts.devices()
  count = request.config.num_devices or len(devices)
  say(console, f'{label} on {count} × {devices[0].device_kind}')
  if why := why_untaught(request.config):
    say(console, f'No member will have a teacher: {why}.')
  if why := record.why_unknown(ROOT):
    say(
      console,
      'The commit of this code is unknown, and its rows cannot say what made '
      f'them ({why}).',
    )
  # Everything that can be refused is refused before the first file is written,
  # and what one process lacks, such as its host's data, is told to all.
  experiment, watcher_types = hosts.all_or_none(
    lambda: _prepare(request, workdir, teachers)
  )
  data = _describe_data(experiment.dataset, workdir)
  with contextlib.ExitStack() as stack:
    lease = hosts.first_then_others(
      lambda: _begin(workdir, experiment.exchange, stack, old)
    )
    known = 'data' in workdir.run
    if data:
      workdir.write_run(data=data)
    if 'best_log_loss' in data:
      console.print(
        'A synthetic log: in the mean no model can do better than '
        f'{data["best_log_loss"]:.4f} nats on all of its held-out rows.'
      )
    # Those of a run that is gone on with are known.
    if teachers.peers and 'teachers' not in workdir.run:
      workdir.write_run(teachers=teachers.fit, taught_by=teachers.identity)
    try:
      # Again, because members that begin together see each other's only now.
      _check_data(workdir, data.get('fingerprint'))
      trainer = stack.enter_context(
        contextlib.closing(Trainer(experiment, workdir))
      )
      trainer.observers += hosts.all_or_none(
        lambda: [
          stack.enter_context(kind(workdir, trainer.start_step, console)).write
          for kind in watcher_types
          if hosts.is_first()
        ]
      )
    except UserError:
      if workdir.resumes:
        # It did not; what wrote the checkpoints may.
        workdir.run['resumed'].pop()
      if not known:
        workdir.run.pop('data', None)  # Nothing was learnt from them.
      workdir.write_run(status='interrupted')
      raise
    if trainer.start_step:
      why = ''.join(f'{sentence}; ' for sentence in trainer.passed_over)
      say(console, f'{why}{label} goes on from step {trainer.start_step:,}.')
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
    if request.profile and hosts.is_first():
      profile = Profile(
        request.profile, workdir.profile, trainer.start_step, progress.say
      )
      trainer.watch = stack.enter_context(profile).watch
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


def _prepare(
  request: Request, workdir: Workdir, teachers: Teachers
) -> tuple[Experiment, list[type[watchers.Watcher]]]:
  """The experiment, and what else sees its rows."""
  experiment = build(
    request.config,
    request.member,
    exchange_folder=request.workdir / 'exchange',
    teachers=teachers.peers,
    models=teachers.models,
  )
  if teachers.identity:
    workdir.check_teachers(teachers.identity)
  kinds = [watchers.load(name) for name in request.watchers]
  _check_profile(request.profile, experiment.num_steps)
  return experiment, kinds


def _check_profile(steps: range | None, num_steps: int) -> None:
  if steps and steps[-1] > num_steps:
    raise UserError(
      f'--profile={steps[0]}:{steps[-1]} goes beyond the run, which has '
      f'{num_steps:,} steps; name earlier ones'
    )


def _open(request: Request) -> Workdir:
  """The workdir: opened by the first process, for all of a member."""
  path, member = request.workdir, request.member
  run = _provenance(request)

  def open_() -> Workdir:
    return open_workdir(
      path,
      run,
      member=member,
      overwrite=request.overwrite,
      allow_code_change=request.allow_code_change,
    )

  workdir = hosts.all_or_none(lambda: open_() if hosts.is_first() else None)
  found, resumes = hosts.tell(workdir and [workdir.run, workdir.resumes])
  return workdir or follow_workdir(path, found, member=member, resumes=resumes)


def _begin(
  workdir: Workdir,
  exchange: Exchange,
  stack: contextlib.ExitStack,
  old: Workdir | None,
) -> Lease | None:
  """Takes the leases, and begins to write."""
  lease = stack.enter_context(workdir.alone())
  try:
    with user_errors(LeaseHeldError):
      stack.enter_context(exchange)
  # A bucket needs a package of its own.
  except (OSError, ImportError) as error:
    if is_disk_full(error):
      raise
    raise UserError(
      f'cannot write to the exchange folder ({error}); make it writable, or '
      'set codistill.exchange_dir to another one'
    ) from error
  if old is not None:
    with old.alone():
      old.remove_run()
  workdir.begin()
  return lease


def _describe_data(dataset: Dataset, workdir: Workdir) -> record.Row:
  """Which data it is, of a kind whose name alone does not say.

  Raises:
    UserError: if another of its members or processes, or the run that is gone
      on with, has other data.
  """
  facts = {
    name: getattr(dataset, name, None)
    for name in ('fingerprint', 'best_log_loss')
  }
  fingerprint = facts['fingerprint']
  if hosts.any_says(hosts.tell(fingerprint) != fingerprint):
    raise UserError(
      'the processes of this member have different data; give all of them the '
      'same'
    )
  _check_data(workdir, fingerprint)
  return {name: fact for name, fact in facts.items() if fact is not None}


def _check_data(workdir: Workdir, fingerprint: str | None) -> None:
  """`Workdir.check_data`, by the first process for all of a member."""
  hosts.all_or_none(
    lambda: hosts.is_first() and workdir.check_data(fingerprint)
  )


def _conclude(label: str, workdir: Workdir, console: Console) -> int:
  """Shows the result and where it lies; 1 if a member diverged."""
  diverged = workdir.run.get('diverged', {})
  if not hosts.is_first():
    return 1 if diverged else 0
  if not workdir.record.rows_path.exists():
    raise UserError(
      f'{workdir.record.rows_path} is gone; --overwrite runs it again'
    )
  with user_errors(ValueError):
    rows = record.read_rows(workdir.record.rows_path)
  if not diverged and not any(row['kind'] == 'final' for row in rows):
    raise UserError(
      f'{workdir.record.rows_path} ends before the run did; put back a copy, '
      'or --overwrite runs it again'
    )
  console.print(results_table([(label, rows)]))
  say(
    console,
    f'rows {_shown(workdir.record.rows_path)}, '
    f'provenance {_shown(workdir.record.run_path)}, '
    f'checkpoints {_shown(workdir.checkpoints)}',
  )
  for member, at in diverged.items():
    complain(
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


def _provenance(request: Request) -> record.Row:
  """What makes the rows, before the first of them."""
  file, config = request.file, request.config
  plain = config.to_dict()
  devices = hosts.devices()
  return {
    'schema': record.SCHEMA_VERSION,
    'experiment': file.name,
    'variant': file.variant,
    # Of one that no commit has.
    'config_file': file.outside,
    'member': request.member,
    'status': 'running',
    'seed': config.seed,
    'config': plain,
    # Against the named config at this commit: which point of a sweep it is.
    'overrides': config_lib.overrides(file.get_config(), config),
    'config_hash': record.config_hash(plain),
    **record.code_version(ROOT),
    'code': record.code_hash(ROOT, *metrics.files(config.eval_metrics)),
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


def main(argv: list[str]) -> int:
  """Runs the command; errors that a user can cause end in one sentence."""
  keep_programs()
  if not FLAGS['verbosity'].present:
    # Orbax tells a lot, and tells what it raises once more from each thread
    # and each of its tasks.
    logging.set_verbosity(logging.FATAL)
    python_logging.getLogger('asyncio').setLevel(python_logging.CRITICAL)
    # These say that there is a GPU that JAX cannot use, and what is waited for.
    for name in ('jax._src.xla_bridge', lease_lib.__name__):
      python_logging.getLogger(name).setLevel('WARNING')
    warnings.filterwarnings(
      'ignore', 'coroutine .* was never awaited', RuntimeWarning
    )
  try:
    if flags.LIST.value:
      Console().print(config_file.listing())
      return 0
    if len(argv) < 2:
      raise UserError('--config=NAME is missing; --list shows what there is')
    with stop_on_signals() as stop:
      status = run(make_request(argv[1]), RunConsole(stop), stop)
    hosts.leave()
    return status
  except Exception as error:
    ending = ending_of(error)
    if ending is not None:
      complain(ending.sentence)
    refused = ending is not None and ending.status == REFUSED
    if hosts.all_end(error) or (refused and not isinstance(error, LoneError)):
      hosts.leave()  # The others end, too.
    if ending is None:
      raise
    return ending.status


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
    gc.collect()  # Else Python complains of semaphores that nobody unlinked.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
  return status


def _parse_or_exit(argv: list[str]) -> list[str]:
  try:
    return parse_flags(argv)
  except UserError as error:
    complain(str(error))
    sys.exit(REFUSED)


if __name__ == '__main__':
  app.run(_main_of_process, flags_parser=_parse_or_exit)

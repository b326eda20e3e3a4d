r"""Starts all members of a run as separate jobs, and restarts those that die.

  python -m scripts.launch --config=CONFIG [--workdir=DIR] [--members=N]
    [--launcher=local|print|slurm|jobset] [--config.any.key=value …]
    [--allow-code-change] [--tensorboard] [--wandb]
    [--devices-per-member=K] [--processes-per-member=P] [--max-restarts=R]
    [--slurm KEY=VALUE …] [--jobset KEY=VALUE …]

local: one process a member on this machine, `python -m experiments.run …
--member=I`, or P processes that are a world of jax.distributed. Their output
goes to DIR/log-I.txt, and that of further processes of a member to
DIR/log-I.K.txt. On NVIDIA GPUs each member gets K of the GPUs in
CUDA_VISIBLE_DEVICES, by default an equal part. If there are too few, members
share them evenly, and their memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION is
set. On a CPU each member gets K virtual devices. On TPUs a process takes a
whole host, so use one member a host: docs/clusters.md.

A member that dies is started again, R times at most, after 1, 2, 4, … seconds,
and goes on from its checkpoint; the others do not notice. When one of its P
processes dies, the others have ten seconds to end. A member is not started
again if it diverged, if somebody else stopped it with a signal, or if it was
refused (experiments.run ends with 2: other code, keys that make no sense). If
one is refused before any has made a step, the command is wrong, and all are
stopped. Later the others go on without it.

Ctrl-C makes each member write a checkpoint and stop; a second Ctrl-C kills
them. The same command resumes; members that are done only say so. If this
process is killed, the members go on, and the same command says so until they
are done.

print prints the commands, one a line, with the environment that they would get
here; for hosts of one kind run it with CUDA_VISIBLE_DEVICES=, so that each host
uses its own devices. slurm submits an array of one job a member (--slurm
time=120, nodes=2, … with submitit's names); jobset prints a manifest for
Kubernetes.

The exit status is 0 if all are done, 1 if a member died or diverged, 2 if a
member was refused or the command makes no sense, 128 + n if signal n stopped
it.
"""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console

from experiments import config as config_lib
from experiments import config_file
from experiments.errors import UserError, user_errors
from experiments.paths import PATH_KEYS, local_path, path_or_url
from experiments.processes import (
  ROOT,
  given_keys,
  parameters,
  say,
  stop_signals,
)
from experiments.slurm import LISTS, submit
from scripts import jobset
from scripts.launch import devices
from scripts.launch.local import (
  Picture,
  alone,
  members_at_work,
  run_locally,
  still_at_work,
)
from scripts.launch.member import Member, Process

_MAX_RESTARTS = 3
# Columns of the output if it is not a terminal.
_PLAIN_WIDTH = 160
_MEMBERS = 'codistill.members'


class Plan(NamedTuple):
  """What to start.

  Attributes:
    label: what the run is called: NAME[:variant].
    name: the same, as folders have it.
    config: what names the config in a command.
    workdir: of all members.
    members: how many.
    num_steps: of each.
    extra: keys and flags for each.
  """

  label: str
  name: str
  config: str
  workdir: pathlib.Path
  members: int
  num_steps: int
  extra: tuple[str, ...]

  def command(self, *more: str, python: str = sys.executable) -> list[str]:
    """A member's command, if `more` says which member."""
    return [
      python,
      '-m',
      'experiments.run',
      f'--config={self.config}',
      f'--workdir={self.workdir}',
      f'--config.{_MEMBERS}={self.members}',
      *self.extra,
      *more,
    ]

  def processes(
    self, member: int, additions: Sequence[Mapping[str, str]]
  ) -> list[Process]:
    """A member's processes on this machine, with a port of their own.

    Args:
      member: its index.
      additions: to the environment of each process.
    """
    world = []
    if len(additions) > 1:
      world = [
        f'--coordinator-address=127.0.0.1:{_free_port()}',
        f'--num-processes={len(additions)}',
      ]
    return [
      Process(
        self.command(
          f'--member={member}',
          *world,
          *([f'--process-id={k}'] if world else []),
        ),
        self.workdir / (f'log-{member}.{k}.txt' if k else f'log-{member}.txt'),
        {**os.environ, **addition},
      )
      for k, addition in enumerate(additions)
    ]


def _free_port() -> int:
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


def make_plan(arguments: argparse.Namespace) -> Plan:
  """Makes the plan that the arguments ask for.

  Raises:
    UserError: for unknown configs, variants and keys, and for numbers that make
      no sense.
  """
  if '--overwrite' in arguments.extra:
    raise UserError(
      '--overwrite would begin anew at each restart of a member; leave it out, '
      'and choose another --workdir or remove the old one'
    )
  given = given_keys(arguments.extra)
  base = config_lib.load(arguments.config)
  config_lib.check_keys(base, given)
  if arguments.members is not None and _MEMBERS in given:
    raise UserError(f'--members=N is --config.{_MEMBERS}=N; give one of them')
  members = str(
    arguments.members or given.get(_MEMBERS) or base.codistill.members
  )
  if not members.isdecimal() or int(members) < 1:
    raise UserError(
      f'--config.{_MEMBERS} is a number, 1 or more, not {members!r}'
    )
  exchange, frozen = (
    given.get(f'codistill.{key}') or base.codistill[key]
    for key in ('exchange', 'frozen_dir')
  )
  if exchange == 'frozen' and not frozen and int(members) > 1:
    raise UserError(
      f'each of {members} members would train the teachers of the first phase '
      'in one folder; make the teacher first, with experiments.run, and set '
      '--config.codistill.frozen_dir to its folder'
    )
  steps = given.get('num_steps', '')
  file = config_file.find(arguments.config)
  if arguments.workdir is not None and not arguments.workdir.strip():
    raise UserError('--workdir is empty; name a folder, or leave it out')
  with user_errors(argparse.ArgumentTypeError):
    workdir = local_path(
      arguments.workdir or str(ROOT / 'runs' / f'{file.stem}-members')
    )
  if workdir.exists() and not workdir.is_dir():
    raise UserError(f'{workdir} is a file; choose another --workdir')
  return Plan(
    file.label,
    file.stem,
    file.argument,
    workdir,
    int(members),
    # Only for progress, because experiments.run checks values.
    int(steps) if steps.isdecimal() else base.num_steps,
    tuple(
      _absolute(argument)
      for argument in arguments.extra
      if not argument.startswith(f'--config.{_MEMBERS}=')
    ),
  )


def _absolute(argument: str) -> str:
  """Makes a path absolute: it is meant from here, not from the repository."""
  name, _, value = argument.partition('=')
  paths = [f'--config.{section}.{key}' for section, key in PATH_KEYS]
  if name not in paths or value in ('', 'None'):
    return argument
  with user_errors(argparse.ArgumentTypeError):
    return f'{name}={path_or_url(value)}'


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='scripts.launch',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    '--config',
    required=True,
    metavar='CONFIG',
    help='NAME[:variant], as python -m experiments.run --list shows them, or a '
    'path/to/file.py[:variant] or package.module[:variant] of your own',
  )
  parser.add_argument(
    '--workdir',
    metavar='DIR',
    help='folder of all members (default: runs/NAME-variant-members)',
  )
  parser.add_argument(
    '--launcher', choices=('local', 'print', 'slurm', 'jobset'), default='local'
  )
  for flag, metavar, text in (
    ('members', 'N', "number of members (default: the config's)"),
    ('devices-per-member', 'K', 'GPUs, or CPU devices, of each member'),
    ('processes-per-member', 'P', 'for local and print (default: 1)'),
    ('max-restarts', 'R', f'of a member, for local (default: {_MAX_RESTARTS})'),
  ):
    parser.add_argument(f'--{flag}', type=int, metavar=metavar, help=text)
  for engine, text in (
    ('slurm', "submitit's names; time, in minutes, is required"),
    ('jobset', 'see docs/clusters.md'),
  ):
    parser.add_argument(
      f'--{engine}',
      action='append',
      default=[],
      metavar='KEY=VALUE',
      help=f'for --launcher={engine}, repeatable: {text}',
    )
  arguments, arguments.extra = parser.parse_known_args(argv)
  return arguments


def _check(arguments: argparse.Namespace) -> None:
  """Refuses numbers that make no sense, or are for other launchers."""
  for flag, least, launchers in (
    ('members', 1, None),
    ('devices_per_member', 1, ('local', 'print')),
    ('processes_per_member', 1, ('local', 'print')),
    ('max_restarts', 0, ('local',)),
  ):
    value = getattr(arguments, flag)
    name = f'--{flag.replace("_", "-")}'
    if value is None:
      continue
    if value < least:
      raise UserError(f'{name} must be at least {least}')
    if launchers and arguments.launcher not in launchers:
      raise UserError(
        f'{name} is for --launcher={" or ".join(launchers)}; leave it out for '
        f'{arguments.launcher}'
      )


def _launch(arguments: argparse.Namespace, console: Console) -> int:
  _check(arguments)
  launcher = arguments.launcher
  slurm = parameters('slurm', launcher, arguments.slurm, LISTS)
  pods = parameters('jobset', launcher, arguments.jobset)
  plan = make_plan(arguments)
  if launcher == 'slurm':
    return _submit(plan, slurm, console)
  if launcher == 'jobset':
    print(_manifest(plan, pods), end='')
    return 0
  gpus = devices.nvidia_gpus(os.environ)
  assigned = devices.assign(
    gpus,
    plan.members,
    arguments.devices_per_member,
    arguments.processes_per_member or 1,
    os.environ,
  )
  if launcher == 'print':
    _print(plan, assigned)
    return 0
  at_work = members_at_work(plan.workdir, plan.members)
  if at_work:
    raise still_at_work(plan.workdir, at_work)
  with alone(plan.workdir):
    return _run(plan, arguments, gpus, assigned, console)


def _run(
  plan: Plan,
  arguments: argparse.Namespace,
  gpus: Sequence[str],
  assigned: Sequence[Sequence[Mapping[str, str]]],
  console: Console,
) -> int:
  """Runs all members as processes of this machine, to the end."""
  say(
    console,
    f'{plan.members} members of {plan.label} {devices.describe(gpus, assigned)}'
    f'; logs: {plan.workdir}/log-I.txt',
  )
  max_restarts = arguments.max_restarts
  members = [
    Member(
      index,
      plan.workdir,
      functools.partial(plan.processes, index, additions),
      _MAX_RESTARTS if max_restarts is None else max_restarts,
    )
    for index, additions in enumerate(assigned)
  ]
  picture = Picture(plan.label, members, plan.workdir, plan.num_steps)
  with stop_signals() as stop:
    status = run_locally(picture, members, console, stop)
  if status == 0:
    say(
      console,
      f'the members and their ensemble: python -m scripts.evaluate '
      f'{shlex.quote(str(plan.workdir))}',
    )
  return status


def _print(plan: Plan, assigned: Sequence[Sequence[Mapping[str, str]]]) -> None:
  """Prints a command a line, for a shell in the repository."""
  for member, additions in enumerate(assigned):
    for process, addition in zip(
      plan.processes(member, additions), additions, strict=True
    ):
      words = [f'{key}={shlex.quote(value)}' for key, value in addition.items()]
      print(*words, shlex.join(process.command))


def _submit(plan: Plan, slurm: Mapping[str, Any], console: Console) -> int:
  at_work = members_at_work(plan.workdir, plan.members)
  left = [member for member in range(plan.members) if member not in at_work]
  if not left:
    raise still_at_work(plan.workdir, at_work)
  commands = [plan.command(f'--member={member}') for member in left]
  # All at once, because members that wait for their turn have no peers.
  ids = submit(commands, len(left), plan.workdir, slurm)
  for member, job in zip(left, ids, strict=True):
    say(console, f'member {member}: job {job}')
  for member in at_work:
    say(console, f'member {member}: still at work, and not submitted')
  say(console, 'Before you submit again, check that none of them is queued.')
  say(console, f'watch: python -m scripts.status {plan.workdir} --watch 30')
  return 0


def _manifest(plan: Plan, pods: Mapping[str, Any]) -> str:
  return jobset.manifest(
    name=plan.name,
    members=plan.members,
    command=plan.command(python='python'),
    parameters=pods,
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; errors that a user can cause end in one sentence."""
  arguments = _parse(argv)
  console = Console()
  if not console.is_terminal:
    console.width = _PLAIN_WIDTH
  try:
    return _launch(arguments, console)
  except (UserError, OSError) as error:
    print(f'scripts.launch: {error}', file=sys.stderr)
    return 2


if __name__ == '__main__':
  sys.exit(main())

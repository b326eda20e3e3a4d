"""Runs as processes of this machine: arguments, start, last words, signals.

What `experiments.sweep` and `scripts.launch` share.
"""

from __future__ import annotations

import contextlib
import pathlib
import re
import signal
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence

from rich.console import Console

from experiments.errors import UserError
from experiments.paths import ROOT

# Flags of experiments.run that make sense for many runs at once.
_FLAGS = ('--allow-code-change', '--tensorboard', '--wandb')
_EXCEPTION = re.compile(r'[\w.]*(Error|Exception|Interrupt)\b')
# As C++ logs what it aborts for.
_FATAL = re.compile(r'F\d{4} [\d:.]+ +\d+ \S+\] ')
# What Python's tracker of resources says of every process that is killed.
_NOISE = re.compile(r'.*resource_tracker: |Extension modules: ')
_MOST_LETTERS = 300


def given_keys(extra: Sequence[str]) -> dict[str, str]:
  """The keys among arguments that are given to many runs.

  Args:
    extra: `--config.key=value` and flags of experiments.run.

  Returns:
    Dotted keys with their values as text.

  Raises:
    UserError: for anything else.
  """
  given = {}
  for argument in extra:
    key, equals, value = argument.partition('=')
    if argument in _FLAGS:
      continue
    if not key.startswith('--config.') or not equals:
      raise UserError(
        f'what is {argument!r}? a key is set with --config.key=value'
      )
    given[key.removeprefix('--config.')] = value
  return given


def parameters(
  engine: str, launcher: str, given: Sequence[str], lists: Collection[str] = ()
) -> dict[str, str | list[str]]:
  """The parameters of a launcher's engine, from KEY=VALUE texts.

  Args:
    engine: slurm or jobset.
    launcher: that the command asks for.
    given: what follows each --slurm or --jobset.
    lists: keys that may be given again, and have a list of texts.

  Raises:
    UserError: for a text of another form, another launcher, or a repeated key.
  """
  found = {}
  for text in given:
    key, equals, value = text.partition('=')
    if not equals or launcher != engine:
      raise UserError(
        f'--{engine} {text}: give it as KEY=VALUE, and with --launcher={engine}'
      )
    if key in lists:
      found.setdefault(key, []).append(value)
    elif key in found:
      raise UserError(f'--{engine} {key} is there twice; give it once')
    else:
      found[key] = value
  return found


def start(
  command: Sequence[str], log: pathlib.Path, environment: Mapping[str, str]
) -> subprocess.Popen:
  """Starts a command in the repository, and appends what it says to a log.

  Args:
    command: with its arguments.
    log: a file; its folder is made.
    environment: all of it.
  """
  log.parent.mkdir(parents=True, exist_ok=True)
  with open(log, 'ab') as file:
    return subprocess.Popen(
      command,
      cwd=ROOT,
      env=environment,
      stdin=subprocess.DEVNULL,
      stdout=file,
      stderr=subprocess.STDOUT,
      # The parent gets Ctrl-C and passes it on once.
      start_new_session=True,
    )


def last_words(log: pathlib.Path, status: int, since: int = 0) -> str:
  """Why a run failed: its sentence, else its exception, else its last line.

  A killed process leaves no message, so its last line is not the reason.

  Args:
    log: what it said.
    status: as `subprocess` has it.
    since: where in the log it began, in bytes.
  """
  with open(log, 'rb') as file:
    file.seek(since)
    text = file.read().decode(errors='replace')
  lines = [
    line
    for line in text.splitlines()
    if line.strip() and not _NOISE.match(line)
  ]
  said = [line for line in lines if line.startswith('experiments.run: ')]
  raised = [line for line in lines if _EXCEPTION.match(line)]
  raised += [_FATAL.sub('', line) for line in lines if _FATAL.match(line)]
  died = f'killed by signal {-status}' if status < 0 else ''
  if status == -signal.SIGKILL and not (said or raised):
    words = 'it is what the kernel does, too, where memory is short'
  else:
    words = (said or raised or lines or ['nothing'])[-1]
  words = words.strip().removeprefix('experiments.run: ')
  if len(words) > _MOST_LETTERS:
    words = f'{words[:_MOST_LETTERS]} …'
  return f'{"; ".join(filter(None, (died, words)))} (all of it: {log})'


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
  """Yields a list of the signals to stop that came."""
  received: list[int] = []
  before = {
    number: signal.signal(number, lambda number, _: received.append(number))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # What nohup and the shell's & have us ignore stays ignored.
    if signal.getsignal(number) is not signal.SIG_IGN
  }
  try:
    yield received
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def say(console: Console, line: str) -> None:
  """A line that stays, as it is: no markup, and not folded."""
  console.print(line.rstrip(), highlight=False, markup=False, soft_wrap=True)

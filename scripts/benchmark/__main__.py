r"""Measures what training costs on this machine, and compares it with limits.

  python -m scripts.benchmark [WHAT …] [--full] [--rounds=5] [--minutes=M]
    [--json=FILE]

step: time and FLOPs of four networks' updates, with zero to three teachers;
model: examples or tokens a second, FLOP/s, and their share of the best FLOP/s;
input: images, text, clicks and waiting;
  images: images a second a core: read, decoded, augmented, batched;
  text: how fast lanes of tokens are read;
  clicks: how fast a click log is prepared, and read in shuffled batches;
  waiting: the share of a step's time in which training waits for input;
exchange: weights through a folder: stall of the loop, bytes, seconds;
publication: its bytes, files and seconds, by size and precision;
memory: of one member and of two, with the loss plain and in chunks;
loss: memory and time of φ and ψ over a vocabulary, plain and in chunks;
scale: growth with members, devices, the validation set and the corpus;
start: from the command to the first step, compiled before and not;
lstm: the gradient of a layer's recurrence, our own and JAX's;
convolution: a ResNet's convolutions, as XLA's and as products;
teacher: an update's time and memory, by precision of the teacher;
together: members updated one by one, and by one program for all;
peers: updates beside those of the same networks in PyTorch;
lanes: the language model's tokens a second, by lanes and chunks of the loss;
gpu: lanes and peers, in the paper's shapes, on a GPU.

Without WHAT it measures everything, and peers if PyTorch is installed. Shapes
are small unless --full, or gpu, is given. Alternatives are measured in turn, so
that other load on this machine affects them alike; compiling and warming up do
not count. After M minutes no other round or part is begun; what has begun is
finished. It prints the median, least and greatest of each number, and the
limit. It writes only FILE: each part when it is done or cut short, in place of
FILE's old one.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import math
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence

import jax
from absl import logging
from rich.console import Console

from experiments import record
from experiments.errors import UserError
from experiments.paths import local_path
from scripts.benchmark import peers, report
from scripts.benchmark.measure import Measure, machine

# Each is a module; in this order.
PARTS = {
  name: importlib.import_module(f'scripts.benchmark.{name}')
  for name in (
    *('step', 'model', 'images', 'text', 'clicks', 'waiting', 'exchange'),
    *('publication', 'memory', 'loss', 'scale', 'start', 'lstm'),
    *('convolution', 'teacher', 'together', 'peers', 'lanes'),
  )
}
_GROUPS = {
  'input': ('images', 'text', 'clicks', 'waiting'),
  'gpu': ('lanes', 'peers'),
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; errors that a user can cause end in one sentence."""
  parser = argparse.ArgumentParser(
    prog='scripts.benchmark',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  # `choices` would refuse an empty list.
  parser.add_argument('what', nargs='*', metavar='WHAT')
  parser.add_argument('--full', action='store_true')
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--minutes', type=float, default=math.inf)
  parser.add_argument('--json', type=local_path, metavar='FILE')
  arguments = parser.parse_args(argv)
  if arguments.rounds < 1:
    parser.error('--rounds must be at least 1')
  if not arguments.minutes > 0:
    parser.error('--minutes must be more than 0')
  arguments.full |= 'gpu' in arguments.what
  stop = time.monotonic() + 60 * arguments.minutes
  known = [*PARTS, *_GROUPS]
  if unknown := set(arguments.what) - set(known):
    parser.error(
      f'there is no {", ".join(sorted(unknown))}; WHAT can be '
      f'{", ".join(known)}'
    )
  names = [
    name for what in arguments.what for name in _GROUPS.get(what, (what,))
  ]
  if 'peers' in (names or PARTS):
    # JAX would take three quarters of a GPU's memory, and PyTorch needs some.
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  logging.set_verbosity(logging.FATAL)
  with tempfile.TemporaryDirectory() as programs:
    # Parts and processes share their compiled programs.
    if jax.config.jax_compilation_cache_dir is None:
      os.environ['JAX_COMPILATION_CACHE_DIR'] = programs
      jax.config.update('jax_compilation_cache_dir', programs)
    return _measure_all(names, arguments, stop)


def _measure_all(
  names: Sequence[str], arguments: argparse.Namespace, stop: float
) -> int:
  """Measures parts, or all, one after another; returns the exit status."""
  # First, because FILE may be a file of the project, which makes it dirty.
  where = machine()
  try:
    if arguments.json:
      # An unusable file must fail before minutes of measuring.
      _check(arguments.json)
    if 'gpu' in arguments.what and jax.default_backend() != 'gpu':
      raise UserError(
        'gpu measures the paper’s shapes on a GPU, and JAX computes on a '
        f'{jax.default_backend()} here; install jax[cuda13] where there is '
        'one, or name parts'
      )
    for name in _possible(names):
      if time.monotonic() > stop:
        print(f'Left out, because the minutes are over: {name}')
        continue
      measures, cut = _measure(name, arguments.rounds, arguments.full, stop)
      if arguments.json:
        packages = ['torch'] if name == 'peers' else []
        report.add(
          arguments.json,
          name,
          measures,
          arguments.full,
          cut,
          where | record.package_versions(packages),
        )
  except (UserError, OSError, ValueError) as error:
    print(f'scripts.benchmark: {error}', file=sys.stderr)
    return 1
  return 0


def _possible(names: Sequence[str]) -> list[str]:
  """These parts, each once; without names, all that can be measured here.

  Raises:
    UserError: if one of the names cannot.
  """
  wanted = dict.fromkeys(names or PARTS)
  missing = peers.missing()
  if missing and 'peers' in wanted:
    if names:
      raise UserError(missing)
    print(f'Left out: {missing}')
    del wanted['peers']
  return list(wanted)


def _measure(
  name: str, rounds: int, full: bool, stop: float
) -> tuple[list[Measure], bool]:
  """Measures one part, and prints progress and a table.

  Args:
    name: of the part.
    rounds: how many.
    full: whether shapes are.
    stop: when no other round is begun.

  Returns:
    All measurements, and whether some were left out.
  """
  part, console = PARTS[name], Console()
  console.print(f'{name}: compiling and warming up …')
  measures: list[Measure] = []
  cut = False
  shapes = part.FULL if full else part.SMALL
  with contextlib.closing(part.measure(rounds, shapes)) as measuring:
    for number, so_far in enumerate(measuring, start=1):
      measures = so_far
      if number <= rounds:
        console.print(f'{name}: {number} of {rounds} {part.ROUNDS}')
      # After the last round only what needs no other one is left.
      if cut := number < rounds and time.monotonic() > stop:
        console.print(f'{name}: cut short, because the minutes are over')
        break
  console.print(report.table(f'{name}: {part.TITLE}', measures))
  return measures, cut


def _check(path: pathlib.Path) -> None:
  """Refuses a file that cannot be added to."""
  if path.exists():
    report.read(path)
  elif not path.parent.is_dir():
    raise UserError(f'{path.parent} is not a folder; make it, or name another')


if __name__ == '__main__':
  sys.exit(main())

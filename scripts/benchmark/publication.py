"""The size of a publication, and the time to write and to read it.

ResNets of 1, 25 and 100 million parameters, freshly initialised, are published
in each precision to a temporary folder, and loaded again with checksums; a
round is one publication of each kind.
"""

from __future__ import annotations

import functools
import pathlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from etils import epath

from codistill import precision
from codistill.exchange.folder import publication
from codistill.exchange.folder.publication import Notes
from codistill.models import make_resnet
from scripts.benchmark.measure import Measure, Measures

TITLE = 'a publication'
ROUNDS = 'rounds of a publication of each kind'
# Depth and width of a ResNet, by its millions of parameters.
SMALL = FULL = {1: (18, 18), 25: (50, 64), 100: (50, 131)}


def measure(
  rounds: int, shapes: Mapping[int, tuple[int, int]]
) -> Iterator[list[Measure]]:
  """Writes and loads publications in turn.

  Args:
    rounds: how many; an uncounted one goes first.
    shapes: depth and width by millions of parameters.

  Yields:
    All measurements so far, after each round.
  """
  found = Measures()
  networks = {size: _variables(*shape) for size, shape in shapes.items()}
  with tempfile.TemporaryDirectory() as name:
    folder = epath.Path(name)
    for number in range(rounds + 1):
      for size, variables in networks.items():
        for kind in precision.PRECISIONS:
          measured = _publish(folder / '0', variables, kind)
          for quantity, (value, unit) in measured.items():
            if number:
              found.note(f'{size} M, {kind}: {quantity}', unit, value)
      if number:
        yield found.all()
  yield found.all()


def _variables(depth: int, width: int) -> Any:
  model = make_resnet(
    input_shape=(32, 32, 3),
    num_classes=1_000,
    depth=depth,
    width=width,
    batch_norm_momentum=0.9,
    batch_norm_group_size=None,
    teacher_batch_norm='running',
    remat=False,
    dtype='float32',
    param_dtype='float32',
  )
  return model.init(jax.random.key(0))


def _publish(
  folder: epath.Path, variables: Any, kind: str
) -> dict[str, tuple[float, str]]:
  encoded = jax.jit(functools.partial(precision.encode, precision=kind))(
    variables
  )
  jax.block_until_ready(encoded)
  num_bytes = precision.num_bytes(encoded)
  notes = Notes(
    member=0,
    step=0,
    incarnation=1,
    wall_time=time.time(),
    task_loss=None,
    config_hash='',
    precision=kind,
    num_bytes=num_bytes,
  )
  began = time.perf_counter()
  publication.write(folder, encoded, notes)
  written = time.perf_counter()
  publication.load(folder / '0', variables)
  loaded = time.perf_counter()
  files = [p for p in pathlib.Path(folder / '0').rglob('*') if p.is_file()]
  on_disk = sum(path.stat().st_size for path in files)
  return {
    'numbers': (sum(l.size for l in jax.tree.leaves(variables)) / 1e6, 'M'),
    'bytes': (num_bytes / 1e6, 'MB'),
    'on disk': (on_disk / 1e6, 'MB'),
    'files': (len(files), ''),
    'to write': (written - began, 's'),
    'to load': (loaded - written, 's'),
  }

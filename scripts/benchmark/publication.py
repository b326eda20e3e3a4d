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
from scripts.benchmark.measure import Measure, Measures
from scripts.benchmark.networks import RESNETS, Network

TITLE = 'a publication'
ROUNDS = 'rounds of a publication of each kind'
SMALL = FULL = RESNETS


def measure(
  rounds: int, shapes: Mapping[int, Network]
) -> Iterator[list[Measure]]:
  """Writes and loads publications in turn.

  Args:
    rounds: how many; an uncounted one goes first.
    shapes: networks by millions of parameters.

  Yields:
    All measurements so far, after each round.
  """
  found = Measures()
  networks = {
    size: network.build().networks[0].model.init(jax.random.key(0))
    for size, network in shapes.items()
  }
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
  described = publication.describe(folder / '0')
  publication.load(folder / '0', variables, described)
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

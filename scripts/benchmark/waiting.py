"""How long training waits for its input, as a share of a step's time.

Algorithm 1's own loop (`codistill.algorithm`) reads real pipelines: JPEGs that
one process for each member decodes, lanes of the built-in corpus, and the
synthetic click log. Each update begins with `next(batches)`, which returns a
batch that is on its way to the device. Waiting is the time in those calls that
ended after the previous update had: at most so long was the device idle. Limit:
1 %.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from experiments import config as configs
from experiments.build import build
from experiments.experiment import Experiment
from scripts.benchmark import images, networks
from scripts.benchmark.loop import Loop
from scripts.benchmark.measure import Limit, Measure, Measures, enough
from scripts.benchmark.networks import Network

TITLE = 'waiting for input'
ROUNDS = 'rounds of some steps of each kind'
_AIM = Limit('≤', 1)


class Shapes(NamedTuple):
  """Shapes of a round.

  Attributes:
    networks: networks with data, by name; 'images' gets a folder of JPEGs.
    steps: the fewest steps of all members; more until they take half a second.
    skipped: steps before them, in which pipelines fill up.
    photographs: their number, height and width.
  """

  networks: Mapping[str, Network]
  steps: int
  skipped: int
  photographs: tuple[int, int, int]


_JPEGS = {'data.num_workers': 1}
_RESNET = networks.SMALL['ResNet-50']
SMALL = Shapes(
  {
    'images': _RESNET._replace(changes={**_RESNET.changes, **_JPEGS}),
    'text': Network('lm_codistill:laptop'),
    'clicks': Network('criteo_codistill:laptop'),
  },
  steps=3,
  skipped=2,
  photographs=(32, *images.FULL.size),
)
FULL = SMALL._replace(
  networks={
    'images': networks.FULL['ResNet-50'],
    'text': Network('lm_codistill:narrow'),
    'clicks': Network('criteo_codistill:reduced'),
  },
  steps=50,
  photographs=(64, *images.FULL.size),
)


def measure(rounds: int, shapes: Shapes) -> Iterator[list[Measure]]:
  """Trains on each kind of data in turn.

  Args:
    rounds: how many, each of some steps; uncounted ones go first and compile.
    shapes: of a round.

  Yields:
    All measurements so far, after each round.
  """
  found = Measures()
  with tempfile.TemporaryDirectory() as folder:
    images.write(
      folder,
      images.photographs(np.random.default_rng(0), *shapes.photographs),
    )
    loops = {
      name: Loop(_build(network, folder if name == 'images' else None))
      for name, network in shapes.networks.items()
    }
    steps = {}
    for name, loop in loops.items():
      loop.take(shapes.skipped)
      seconds, _ = loop.take(1)
      steps[name] = max(shapes.steps, enough(seconds))
    for _ in range(rounds):
      for name, loop in loops.items():
        loop.take(shapes.skipped)
        seconds, waited = loop.take(steps[name])
        found.note(f'{name}: a step', 'ms', 1e3 * seconds / steps[name])
        share = 100 * waited / seconds
        found.note(f'{name}: waiting', '% of a step', share, _AIM)
      yield found.all()


def _build(network: Network, folder: str | None) -> Experiment:
  """Builds an experiment without burn-in, with a folder of JPEGs if given."""
  changes = {'num_devices': 1, 'codistill.burn_in_steps': 0}
  if folder is not None:
    changes['data.data_dir'] = folder
  config = configs.load_changed(network.config, {**network.changes, **changes})
  return build(config, None)

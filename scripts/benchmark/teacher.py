"""The cost of a teacher for its student, in each precision.

One member trains a ResNet-18 (11.7 million parameters, batches of 16 random
images of 16×16) with a peer's weights in float32, bfloat16 and int8, and
without a peer, ten updates of each kind in turn.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from codistill import precision
from codistill.algorithm import Peer
from scripts.benchmark.measure import Measure, Measures, ResNet, make_subject

TITLE = 'ResNet-18, an update'
ROUNDS = 'rounds of ten updates of each kind'
SMALL = FULL = ResNet()
_UPDATES = 10
_ALONE = 'without a teacher'


def measure(rounds: int, shapes: ResNet) -> Iterator[list[Measure]]:
  """Times updates in turn.

  Args:
    rounds: how many; an uncounted one goes first and compiles.
    shapes: of the network.

  Yields:
    All measurements so far, after each round.
  """
  _, _, updates, state, batch = make_subject(shapes)
  copies = {
    name: jax.jit(functools.partial(precision.encode, precision=name))(
      # Each update donates the state.
      jax.tree.map(jnp.copy, state.variables)
    )
    for name in precision.PRECISIONS
  }
  kinds = {_ALONE: ()} | {
    f'teacher in {name}': (Peer(1, 0, copy),) for name, copy in copies.items()
  }
  found = Measures()
  for number in range(rounds + 1):
    seconds = {}
    for kind, peers in kinds.items():
      began = time.perf_counter()
      for _ in range(_UPDATES):
        if peers:
          state, metrics = updates.codistill(state, batch, peers)
        else:
          state, metrics = updates.burn_in(state, batch)
      jax.block_until_ready((state, metrics))
      seconds[kind] = (time.perf_counter() - began) / _UPDATES
    if not number:
      continue
    for kind, each in seconds.items():
      found.note(f'time, {kind}', 'ms', 1e3 * each)
    full = seconds[f'teacher in {precision.FULL}']
    for name in precision.PRECISIONS[1:]:
      found.note(
        f'time, {name} beside float32',
        '%',
        100 * seconds[f'teacher in {name}'] / full,
      )
    yield found.all()
  for name, copy in copies.items():
    held = precision.num_bytes(copy)
    found.note(f'published and held, {name}', 'MB', held / 1e6)
  for kind, peers in kinds.items():
    models = tuple(updates.model_of(peer.member) for peer in peers)
    compiled = (
      updates.descends[state.network]
      .lower(
        state,
        batch,
        tuple(peer.variables for peer in peers),
        ((),) * len(peers),
        bool(peers),
        models,
      )
      .compile()
    )
    analysis = compiled.memory_analysis()
    if analysis is not None:
      # Donated arguments share their memory with outputs.
      total = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
      )
      found.note(f'memory, {kind}', 'MB', total / 1e6)
      found.note(
        f'of it while it runs, {kind}', 'MB', analysis.temp_size_in_bytes / 1e6
      )
  yield found.all()

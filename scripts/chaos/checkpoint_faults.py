"""Faults of checkpoints: damaged ones, and ones that cannot be removed."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import random
import time
from collections.abc import Iterator, Mapping
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from codistill import sharding
from codistill.algorithm import Publications
from codistill.storage import step_folders
from codistill.storage.checkpoint import Checkpoints, Restored
from codistill.train_state import TrainState
from scripts.chaos.exchanges import files_of, weights
from scripts.chaos.outcome import Result, expect
from scripts.chaos.publication_faults import Spoil

_NOTHING = Publications({}, {})


def damaged(
  folder: pathlib.Path, ways: Mapping[str, Spoil], chance: random.Random
) -> Result:
  """Each file of the newest checkpoint is damaged in turn."""
  checkpoints = Checkpoints(folder)
  for step in (1, 2):
    checkpoints.save(step, {0: _state(step)}, _NOTHING, {})
  files = files_of(folder / '2')
  passed_over, seconds = 0, []
  for path in files:
    whole = path.read_bytes()
    for spoil in ways.values():
      path.write_bytes(spoil(whole, chance))
      began = time.monotonic()
      passed_over += _restore(checkpoints).step == 1
      seconds.append(time.monotonic() - began)
    path.write_bytes(whole)
  (folder / '2/state/_METADATA').unlink()
  expect(_restore(checkpoints).step == 1, 'one without metadata was read')
  checkpoints.save(2, {0: _state(2)}, _NOTHING, {})
  expect(_restore(checkpoints).step == 2, 'step 2 was not saved again')
  tried = len(files) * len(ways)
  return Result(
    f'each of {len(files)} files of a checkpoint in turn: {", ".join(ways)}',
    f'{passed_over} of {tried} passed over for the checkpoint before, '
    f'{tried - passed_over} read right without that file',
    f'read within {max(seconds):.1f} s; written again when its step came again',
  )


def busy(folder: pathlib.Path, steps: int = 20) -> Result:
  """Files of old checkpoints cannot be removed."""
  checkpoints = Checkpoints(folder)

  def save(step: int) -> str:
    return checkpoints.save(step, {0: _state(step)}, _NOTHING, {})

  with _busy('_METADATA'):
    said = [save(step) for step in range(1, steps + 1)]
    # They do not keep a run from starting, either.
    checkpoints = Checkpoints(folder)
    _restore(checkpoints)
  expect(sum(map(bool, said)) == 1, f'not one warning, but {said}')
  left = len(list(folder.glob('.*')))
  expect(left == steps - 2, f'{left} of {steps - 2} old ones are out of sight')
  save(steps + 1)
  there = sorted(step_folders.finished(epath.Path(folder)))
  expect(there == [steps, steps + 1], f'{there} are kept')
  expect(not list(folder.glob('.*')), 'some files were never removed')
  expect(_restore(checkpoints).step == steps + 1, 'the newest is not read')
  return Result(
    f'a file that is busy in each checkpoint, for {steps} checkpoints',
    'nothing: one warning, and the old ones were hidden',
    'all removed at the next checkpoint',
  )


def _state(step: int) -> TrainState:
  """Weights and an optimizer's state that no other step has."""
  state = TrainState(
    step=jnp.int32(step),
    variables=weights(0, step),
    opt_state=weights(1, step),
    memory={},
    peer_memories={},
    key=jnp.zeros(2, jnp.uint32),
    past=(),
  )
  return sharding.replicate(state, sharding.make_mesh(1))


def _restore(checkpoints: Checkpoints) -> Restored:
  """Restores the newest checkpoint that is whole; checks its numbers."""
  abstract = jax.eval_shape(lambda state: state, _state(0))
  mesh = sharding.make_mesh(1)
  found = checkpoints.restore(lambda member: abstract, mesh, 'float32')
  expect(found is not None, 'no checkpoint is left')
  same = jax.tree.map(np.array_equal, found.states[0], _state(found.step))
  expect(jax.tree.all(same), f'step {found.step} has wrong numbers')
  return found


@contextlib.contextmanager
def _busy(name: str) -> Iterator[None]:
  """Makes files of that name impossible to remove, like open ones on NFS."""
  real = os.unlink

  def unlink(path, *arguments, **keywords):
    if os.fspath(path).endswith(name):
      raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
    real(path, *arguments, **keywords)

  with mock.patch.object(os, 'unlink', unlink):
    yield

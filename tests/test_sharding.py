"""Arrays land where they should, and what does not divide is refused."""

import jax
import numpy as np
import pytest

from codistill import sharding


def test_batches_are_split_and_weights_are_copied():
  mesh = sharding.make_mesh(None)
  assert mesh.size == len(jax.devices()) == 8
  batch = sharding.split_batch({'inputs': np.zeros((16, 3))}, mesh)
  weights = sharding.replicate({'kernel': np.zeros((16, 3))}, mesh)
  shapes = [
    {shard.data.shape for shard in array.addressable_shards}
    for array in (batch['inputs'], weights['kernel'])
  ]
  assert shapes == [{(2, 3)}, {(16, 3)}]


def test_a_mesh_of_some_devices():
  assert sharding.make_mesh(3).size == 3


@pytest.mark.parametrize('number', [0, 9])
def test_devices_that_are_not_there_are_refused(number):
  with pytest.raises(ValueError, match=f'{number}, but there are 8 devices'):
    sharding.make_mesh(number)


@pytest.mark.parametrize('batch_size', [0, 12])
def test_a_batch_that_does_not_divide_is_refused(batch_size):
  with pytest.raises(ValueError, match='not divisible by 8 devices'):
    sharding.check_batch_size(batch_size, sharding.make_mesh(8), 'batch_size')

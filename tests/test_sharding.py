"""Arrays go where they should; sizes that do not divide are refused."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding

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


@pytest.mark.parametrize('number', [0, 9])
def test_devices_that_are_not_there_are_refused(number):
  assert sharding.make_mesh(3).size == 3
  with pytest.raises(ValueError, match=f'{number}, but there are 8 devices'):
    sharding.make_mesh(number)


@pytest.mark.parametrize('batch_size', [0, 12])
def test_a_batch_that_does_not_divide_is_refused(batch_size):
  with pytest.raises(ValueError, match='not divisible by 8 devices'):
    sharding.check_batch_size(batch_size, sharding.make_mesh(8), 'batch_size')


def batch(rows):
  """Examples that tell their number."""
  return {
    'inputs': 10.0 * rows[:, None] + np.arange(3),
    'labels': rows.astype(np.int32),
  }


def of_devices(devices):
  """A member's mesh with devices in another order."""
  return Mesh(np.array(devices), (sharding.DATA_AXIS,))


def test_a_process_with_all_devices_feeds_all_rows_in_order():
  devices = jax.devices()
  for some in (devices[:1], devices[:2], devices, devices[::-1]):
    rows = sharding.local_rows(16, of_devices(some))
    np.testing.assert_array_equal(rows, np.arange(16))
    assert np.issubdtype(rows.dtype, np.integer)


@pytest.mark.parametrize('process', [0, 1])
def test_two_processes_feed_a_half_each(process, monkeypatch):
  """Each is one of two processes that take turns on 8 devices."""
  mesh = sharding.make_mesh(8)
  every = NamedSharding.addressable_devices_indices_map

  def mine(self, shape):
    parts = every(self, shape)
    # Their order is not specified.
    return {d: parts[d] for d in reversed(parts) if d.id // 2 % 2 == process}

  monkeypatch.setattr(NamedSharding, 'addressable_devices_indices_map', mine)
  # It has devices 0, 1, 4, 5 (the other 2, 3, 6, 7), with two rows each.
  first = [0, 1, 2, 3, 8, 9, 10, 11]
  expected = [row + 4 * process for row in first]
  np.testing.assert_array_equal(sharding.local_rows(16, mesh), expected)


@pytest.mark.parametrize('order', [1, -1], ids=['forward', 'backward'])
def test_each_device_gets_its_rows_and_together_they_are_the_batch(order):
  mesh = of_devices(jax.devices()[::order])
  whole = batch(np.arange(16))
  found = sharding.split_batch(batch(sharding.local_rows(16, mesh)), mesh)
  assert found.keys() == whole.keys()
  for key, array in found.items():
    assert array.shape == whole[key].shape
    assert array.sharding.is_equivalent_to(sharding.split(mesh), array.ndim)
    np.testing.assert_array_equal(array, whole[key])
    # A mean over it is over all of it.
    assert jax.jit(jax.numpy.mean)(array) == whole[key].mean()
    for place, device in enumerate(mesh.devices):
      [shard] = [s for s in array.addressable_shards if s.device == device]
      rows = whole[key][2 * place : 2 * place + 2]
      np.testing.assert_array_equal(shard.data, rows)


@pytest.mark.parametrize('num_devices', [1, 4])
def test_microbatches_take_from_every_device_and_come_back(num_devices):
  mesh = sharding.make_mesh(num_devices)
  batch = sharding.split_batch({'x': np.arange(16)}, mesh)
  divide = jax.jit(lambda tree: sharding.to_microbatches(tree, 2, mesh))
  parts = divide(batch)['x']
  assert parts.shape == (2, 8)
  for shard in parts.addressable_shards:
    whole = batch['x'].addressable_shards
    [rows] = [one.data for one in whole if one.device == shard.device]
    np.testing.assert_array_equal(np.ravel(shard.data), rows)
  back = jax.jit(lambda tree: sharding.from_microbatches(tree, mesh))
  np.testing.assert_array_equal(back({'x': parts})['x'], np.arange(16))

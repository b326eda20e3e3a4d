"""Rounded teachers: the size of their errors, and the arrays that stay."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from codistill import precision, sharding
from codistill.precision import PRECISIONS, Quantized

KEY = jax.random.key(0)


# It has a kernel with channels that differ by orders of magnitude, and vectors.
TREE = {
  'params': {
    'kernel': jax.random.normal(KEY, (3, 3, 16, 4))
    * jnp.array([1e-3, 1.0, 0.0, 50.0]),
    'bias': jax.random.normal(KEY, (4,)),
  },
  'batch_stats': {'mean': jax.random.normal(KEY, (4,)) * 1e4},
}


@functools.cache
def encoded(name):
  return precision.encode(TREE, name)


@functools.cache
def decoded(name):
  return precision.decode(encoded(name), TREE)


def assert_same(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize('name', PRECISIONS)
def test_vectors_stay_bit_for_bit_and_types_come_back(name):
  back = decoded(name)
  kinds = [
    jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (back, TREE)
  ]
  assert kinds[0] == kinds[1]
  assert_same(back['params']['bias'], TREE['params']['bias'])
  assert_same(back['batch_stats'], TREE['batch_stats'])
  # Rounding a second time changes nothing.
  twice = precision.decode(precision.encode(back, name), TREE)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
  jax.tree.map(close, back, twice)


@pytest.mark.parametrize(
  # Half a unit in the last place: of 8 bits of mantissa relative to each
  # number; of 127 steps relative to its channel's largest.
  ('name', 'relative', 'of_channel'),
  [('float32', 0, 0), ('bfloat16', 2**-8, 0), ('int8', 0, 0.5001 / 127)],
)
def test_weights_are_off_by_half_a_step_at_most(name, relative, of_channel):
  kernel = np.asarray(TREE['params']['kernel'])
  error = np.abs(np.asarray(decoded(name)['params']['kernel']) - kernel)
  largest = np.abs(kernel).max(axis=(0, 1, 2))
  assert (error <= relative * np.abs(kernel) + of_channel * largest).all()
  if name != 'float32':
    assert error.max() > 0


def test_int8_is_symmetric_and_uses_its_range():
  quantized = encoded('int8')['params']['kernel']
  assert isinstance(quantized, Quantized)
  assert quantized.values.dtype == jnp.int8
  assert quantized.scale.shape == (4,)
  largest = np.abs(np.asarray(quantized.values)).max(axis=(0, 1, 2))
  np.testing.assert_array_equal(largest, [127, 127, 0, 127])
  negated = precision.encode(jax.tree.map(jnp.negative, TREE), 'int8')
  np.testing.assert_array_equal(
    -negated['params']['kernel'].values, quantized.values
  )


@pytest.mark.parametrize(
  ('name', 'weight', 'scales'),
  [('float32', 4, 0), ('bfloat16', 2, 0), ('int8', 1, 4)],
)
def test_bytes_of_each_precision(name, weight, scales):
  weights, vectors = 3 * 3 * 16 * 4, 8
  found = precision.num_bytes(encoded(name))
  assert found == weight * weights + 4 * (scales + vectors)


@pytest.mark.parametrize('name', PRECISIONS)
def test_into_each_and_the_abstract_tree_is_that_of_what_is_encoded(name):
  for after in PRECISIONS:
    found = precision.convert(encoded(name), TREE, name, after)
    assert_same(found, precision.encode(decoded(name), after))
  place = sharding.replicated(sharding.make_mesh(2))
  found = precision.abstract(TREE, name, place)
  assert jax.tree.structure(found) == jax.tree.structure(encoded(name))
  leaves = map(jax.tree.leaves, (found, encoded(name)))
  for one, other in zip(*leaves, strict=True):
    assert (one.shape, one.dtype) == (other.shape, other.dtype)
    assert one.sharding == place


@pytest.mark.parametrize('name', PRECISIONS)
def test_each_array_goes_where_the_network_has_it(name):
  mesh = sharding.make_mesh(4)
  whole = sharding.replicated(mesh)
  # It is split by output channel, like a network too large for one device.
  by_channel = NamedSharding(mesh, PartitionSpec(None, None, None, 'data'))
  like = jax.device_put(TREE, whole)
  kernel = TREE['params']['kernel']
  like['params']['kernel'] = jax.device_put(kernel, by_channel)
  placed = precision.place_like(encoded(name), like)
  assert_same(placed, encoded(name))
  kernel = placed['params']['kernel']
  values = kernel.values if name == 'int8' else kernel
  assert values.sharding == by_channel
  if name == 'int8':
    assert kernel.scale.sharding == whole
  assert placed['params']['bias'].sharding == whole


def test_other_precisions_are_refused():
  with pytest.raises(ValueError, match="key is 'int4'; it can be float32"):
    precision.check_precision('int4', 'key')

"""Rounded teachers: by how much they are off, and what stays as it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from codistill import precision, sharding
from codistill.precision import PRECISIONS, Quantized

KEY = jax.random.key(0)


def variables():
  """A kernel whose channels differ by orders of magnitude, and vectors."""
  scales = jnp.array([1e-3, 1.0, 0.0, 50.0])
  return {
    'params': {
      'kernel': jax.random.normal(KEY, (3, 3, 16, 4)) * scales,
      'bias': jax.random.normal(KEY, (4,)),
    },
    'batch_stats': {'mean': jax.random.normal(KEY, (4,)) * 1e4},
  }


@pytest.mark.parametrize('name', PRECISIONS)
def test_vectors_stay_bit_for_bit_and_types_come_back(name):
  tree = variables()
  back = precision.decode(precision.encode(tree, name), tree)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), back) == jax.tree.map(
    lambda x: (x.shape, x.dtype), tree
  )
  np.testing.assert_array_equal(back['params']['bias'], tree['params']['bias'])
  np.testing.assert_array_equal(
    back['batch_stats']['mean'], tree['batch_stats']['mean']
  )


@pytest.mark.parametrize(
  # Half a unit in the last place: of 8 bits of mantissa, relative to each
  # number; of 127 steps, relative to its channel's largest.
  ('name', 'relative', 'of_channel'),
  [('float32', 0, 0), ('bfloat16', 2**-8, 0), ('int8', 0, 0.5001 / 127)],
)
def test_weights_are_off_by_half_a_step_at_most(name, relative, of_channel):
  tree = variables()
  kernel = np.asarray(tree['params']['kernel'])
  found = precision.decode(precision.encode(tree, name), tree)
  error = np.abs(np.asarray(found['params']['kernel']) - kernel)
  largest = np.abs(kernel).max(axis=(0, 1, 2))
  assert (error <= relative * np.abs(kernel) + of_channel * largest).all()
  if name != 'float32':
    assert error.max() > 0


def test_int8_is_symmetric_and_uses_its_range():
  quantized = precision.encode(variables(), 'int8')['params']['kernel']
  assert isinstance(quantized, Quantized)
  assert quantized.values.dtype == jnp.int8
  assert quantized.scale.shape == (4,)
  largest = np.abs(np.asarray(quantized.values)).max(axis=(0, 1, 2))
  np.testing.assert_array_equal(largest, [127, 127, 0, 127])
  tree = variables()
  negated = jax.tree.map(jnp.negative, tree)
  np.testing.assert_array_equal(
    -precision.encode(negated, 'int8')['params']['kernel'].values,
    quantized.values,
  )


@pytest.mark.parametrize('name', PRECISIONS)
def test_rounding_what_is_rounded_changes_nothing_more(name):
  tree = variables()
  once = precision.decode(precision.encode(tree, name), tree)
  twice = precision.decode(precision.encode(once, name), tree)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-6), once, twice
  )


def test_bytes_of_each_precision():
  tree = variables()
  weights, vectors = 3 * 3 * 16 * 4, 8
  assert {
    name: precision.num_bytes(precision.encode(tree, name))
    for name in PRECISIONS
  } == {
    'float32': 4 * weights + 4 * vectors,
    'bfloat16': 2 * weights + 4 * vectors,
    'int8': weights + 4 * 4 + 4 * vectors,
  }


@pytest.mark.parametrize('before', PRECISIONS)
@pytest.mark.parametrize('after', PRECISIONS)
def test_from_each_into_each(before, after):
  tree = variables()
  encoded = precision.encode(tree, before)
  found = precision.convert(encoded, tree, before, after)
  expected = precision.encode(precision.decode(encoded, tree), after)
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize('name', PRECISIONS)
def test_the_abstract_tree_is_that_of_what_is_encoded(name):
  mesh = sharding.make_mesh(2)
  place = sharding.replicated(mesh)
  found = precision.abstract(variables(), name, place)
  encoded = precision.encode(variables(), name)
  assert jax.tree.structure(found) == jax.tree.structure(encoded)
  for one, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(encoded), strict=True
  ):
    assert (one.shape, one.dtype) == (other.shape, other.dtype)
    assert one.sharding == place


@pytest.mark.parametrize('name', PRECISIONS)
def test_each_array_goes_where_the_network_has_it(name):
  mesh = sharding.make_mesh(4)
  tree = variables()
  # By output channel, as a network that no device holds alone.
  by_channel = NamedSharding(mesh, PartitionSpec(None, None, None, 'data'))
  like = jax.device_put(tree, sharding.replicated(mesh))
  like['params']['kernel'] = jax.device_put(
    tree['params']['kernel'], by_channel
  )
  encoded = precision.encode(tree, name)
  placed = precision.place_like(encoded, like)
  jax.tree.map(np.testing.assert_array_equal, placed, encoded)
  kernel = placed['params']['kernel']
  values = kernel.values if name == 'int8' else kernel
  assert values.sharding == by_channel
  if name == 'int8':
    assert kernel.scale.sharding == sharding.replicated(mesh)
  assert placed['params']['bias'].sharding == sharding.replicated(mesh)


def test_other_precisions_are_refused():
  with pytest.raises(ValueError, match="key is 'int4'; it can be float32"):
    precision.check_precision('int4', 'key')

"""FLOPs against hand formulas, for all ways in which JAX repeats code."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import roofline
from jax.sharding import PartitionSpec
from networks import make_small_resnet

from codistill import sharding
from scripts import cost, flops


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, jnp.float32)


def products(function, *arguments):
  return flops.count(function, *arguments).products


def test_a_product_multiplies_and_adds_and_other_arithmetic_is_apart():
  assert products(jnp.matmul, shape(5, 3), shape(3, 7)) == 2 * 5 * 3 * 7
  batched = functools.partial(jnp.einsum, 'btk,bkn->btn')
  assert products(batched, shape(4, 5, 3), shape(4, 3, 7)) == 4 * 2 * 5 * 3 * 7
  assert products(jnp.tensordot, shape(2, 3, 4), shape(3, 4, 5)) == 2 * 24 * 5
  found = flops.count(lambda x: jnp.tanh(x + 1).sum(), shape(5, 3))
  assert found == flops.Flops(products=0, elementwise=3 * 15)
  indices = jax.ShapeDtypeStruct((5,), jnp.int32)
  assert flops.count(lambda i: 2 * i, indices) == flops.Flops()
  once = flops.Flops(2, 3)
  assert once + once == once * 2 == flops.Flops(4, 6)


@pytest.mark.parametrize(
  ('options', 'pairs'),
  [
    # Pairs of an output and an input along an axis of 9.
    ({'padding': 'VALID'}, 7 * 3),
    ({'padding': 'SAME'}, 9 * 3 - 2),
    ({'padding': 'VALID', 'window_strides': (2, 2)}, 4 * 3),
    ({'padding': 'SAME', 'window_strides': (2, 2)}, 5 * 3 - 2),
    ({'padding': 'VALID', 'feature_group_count': 2}, 7 * 3),
    ({'padding': 'VALID', 'batch_group_count': 2}, 7 * 3),
    ({'padding': 'VALID', 'rhs_dilation': (2, 2)}, 5 * 3),
    # Each of 9 numbers meets each place of the kernel.
    ({'padding': ((2, 2), (2, 2)), 'lhs_dilation': (2, 2)}, 9 * 3),
  ],
)
def test_a_convolution_and_its_gradients_take_what_they_should(options, pairs):
  def convolve(images, kernel):
    keywords = {'window_strides': (1, 1), **options}
    keywords['dimension_numbers'] = ('NHWC', 'HWIO', 'NHWC')
    return jax.lax.conv_general_dilated(images, kernel, **keywords)

  batch, inputs, features = 4, 6, 8
  depth = inputs // options.get('feature_group_count', 1)
  images, kernel = shape(batch, 9, 9, inputs), shape(3, 3, depth, features)
  outputs = batch // options.get('batch_group_count', 1)
  expected = 2 * outputs * features * depth * pairs**2
  assert products(convolve, images, kernel) == expected
  # JAX counts this operation alone, too.
  _, theirs = roofline.roofline(convolve)(images, kernel)
  assert theirs.unfused_flops == expected
  theirs = jax.jit(convolve).lower(images, kernel).cost_analysis()
  assert theirs['flops'] == pytest.approx(expected)

  def value(images, kernel):
    return convolve(images, kernel).sum()

  both = jax.value_and_grad(value, argnums=(0, 1))
  assert products(jax.grad(value), images, kernel) == 2 * expected
  assert products(both, images, kernel) == 3 * expected


def test_a_loop_counts_as_often_as_it_runs():
  def step(x, weights):
    return jnp.tanh(x @ weights), x

  def inner(x, weights):
    return jax.lax.scan(step, x, weights)

  x, weights = shape(5, 3), shape(4, 3, 3)
  once = 2 * 5 * 3 * 3
  assert products(inner, x, weights) == 4 * once
  nested = functools.partial(jax.lax.scan, inner)
  assert products(nested, x, shape(6, 4, 3, 3)) == 6 * 4 * once

  def repeat(x, weights):
    return jax.lax.fori_loop(0, 9, lambda _, x: x @ weights, x)

  assert products(repeat, x, shape(3, 3)) == 9 * once

  def value(x, weights):
    return inner(x, weights)[0].sum()

  both = jax.grad(value, argnums=(0, 1))
  assert products(both, x, weights) == 3 * 4 * once
  # JAX's own count is lower; otherwise scripts/flops.py would be superfluous.
  _, theirs = roofline.roofline(inner)(x, weights)
  assert theirs.flops == once
  lowered = jax.jit(inner).lower(x, weights)
  assert lowered.cost_analysis()['flops'] < 2 * once


def test_of_branches_the_dearest_counts_and_no_loop_of_unknown_length():
  def either(which, x):
    return jax.lax.cond(which, lambda: x @ x @ x, lambda: x @ x)

  which = jax.ShapeDtypeStruct((), jnp.bool_)
  assert products(either, which, shape(3, 3)) == 2 * 2 * 27

  def until(x):
    return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)

  with pytest.raises(ValueError, match='does not say how often it runs'):
    flops.count(until, shape(3, 3))


def test_a_custom_gradient_and_rematerialisation_count_as_computed():
  @jax.custom_vjp
  def twice(x, weights):
    return x @ weights @ weights

  def backward(residuals, cotangent):
    x, weights = residuals
    return cotangent @ weights.T, x.T @ cotangent

  twice.defvjp(lambda *both: (twice(*both), both), backward)
  x, weights = shape(5, 3), shape(3, 3)
  once = 2 * 5 * 3 * 3

  def value(function, x, weights):
    return jnp.square(function(x, weights)).sum()

  for function, forward, gradient in (
    (twice, 2, 2),
    (jax.jit(twice), 2, 2),
    # One product again, one for x and one for the weights.
    (jax.checkpoint(lambda x, w: jnp.sin(x @ w)), 1, 3),
  ):
    of = functools.partial(value, function)
    assert products(of, x, weights) == forward * once
    both = jax.grad(of, argnums=(0, 1))
    assert products(both, x, weights) == (forward + gradient) * once


def test_devices_with_a_part_each_count_as_all():
  spec = PartitionSpec(sharding.DATA_AXIS)
  x, weights = shape(16, 3), shape(3, 3)
  for devices in (1, 8):
    mesh, specs = sharding.make_mesh(devices), (spec, PartitionSpec())
    multiply = jax.shard_map(
      jnp.matmul, mesh=mesh, in_specs=specs, out_specs=spec
    )
    assert products(multiply, x, weights) == 2 * 16 * 3 * 3


def test_the_papers_language_model_takes_what_the_formula_says():
  experiment = cost.make_experiment('lm_codistill', 1)
  hidden, embedding, pieces = 1_024, 256, 24_006
  layers = 4 * hidden * (embedding + hidden) + 4 * hidden * (hidden + hidden)
  forward = 2 * (layers + hidden * pieces) * 16_384 * 32
  assert cost.update_flops(experiment, 0).products == 3 * forward
  assert cost.update_flops(experiment, 1).products == 4 * forward


def test_a_resnet_50_takes_what_others_count():
  sizes = {'num_classes': 1_000, 'depth': 50, 'width': 64}
  model = make_small_resnet(
    input_shape=(224, 224, 3), dtype='bfloat16', **sizes
  )
  found = products(
    lambda variables, images: model.predict(variables, images, ())[0].logits,
    jax.eval_shape(model.init, jax.random.key(0)),
    shape(1, 224, 224, 3),
  )
  # torchvision: 4.09 billion multiplications, those with padding included.
  assert 0.96 < found / (2 * 4.09e9) < 1

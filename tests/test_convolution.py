"""Convolutions as products are the convolutions of XLA, where they pay."""

import functools

import jax
import numpy as np
import pytest

from codistill.models.convolution import convolve
from scripts import export, flops

BY_XLA = functools.partial(
  jax.lax.conv_general_dilated, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
)
ONE, FLAT = ((1, 1), (1, 1)), ((0, 0), (0, 0))


def arguments(pixels, channels, features, kernel):
  normal = np.random.default_rng(0).normal
  shapes = (2, *pixels, channels), (*kernel, channels, features)
  return tuple(jax.numpy.asarray(normal(size=shape)) for shape in shapes)


@pytest.mark.parametrize(
  ('pixels', 'channels', 'kernel', 'stride', 'padding'),
  [
    ((4, 4), (8, 6), (3, 3), 1, 'SAME'),
    ((7, 5), (3, 5), (3, 3), 2, ONE),
    ((9, 9), (3, 4), (7, 7), 3, ((3, 3), (2, 3))),
    ((5, 4), (256, 260), (3, 2), 2, ONE),
    ((8, 9), (8, 16), (1, 1), 2, 'SAME'),
    ((8, 8), (8, 16), (1, 1), 1, FLAT),
  ],
)
def test_a_product_is_the_convolution_of_xla(
  pixels, channels, kernel, stride, padding
):
  def all_of(convolve, x, weights):
    y, pullback = jax.vjp(
      lambda *both: convolve(*both, (stride, stride), padding), x, weights
    )
    return y, pullback(jax.numpy.sin(y))

  with jax.enable_x64(True):
    both = arguments(pixels, *channels, kernel)
    assert 'conv_general' not in str(
      jax.make_jaxpr(functools.partial(all_of, convolve))(*both)
    )
    ours, theirs = (
      jax.jit(functools.partial(all_of, one))(*both)
      for one in (convolve, BY_XLA)
    )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-11),
    ours,
    theirs,
  )


def test_in_bfloat16_it_has_the_types_of_xlas():
  both = jax.tree.map(
    lambda leaf: leaf.astype('bfloat16'), arguments((4, 4), 8, 8, (3, 3))
  )

  def all_of(convolve):
    y, pullback = jax.vjp(lambda *both: convolve(*both, (1, 1), 'SAME'), *both)
    return y, pullback(y)

  def assert_close(one, other):
    assert one.dtype == other.dtype
    one, other = (np.asarray(each, 'float32') for each in (one, other))
    np.testing.assert_allclose(one, other, rtol=0.02, atol=0.02 * other.max())

  jax.tree.map(assert_close, all_of(convolve), all_of(BY_XLA))


def test_what_is_counted_or_exported_has_plain_convolutions():
  both = arguments((4, 4), 8, 8, (3, 3))

  @jax.jit
  def ours(*both):
    return convolve(*both, (1, 1), 'SAME', **BY_XLA.keywords)

  # It was traced for this machine before.
  ours(*both)
  by_xla = functools.partial(BY_XLA, window_strides=(1, 1), padding='SAME')
  assert flops.count(ours, *both) == flops.count(by_xla, *both)
  lowered = ours.lower(*both).as_text()
  exported = export.export_function(ours, *both).mlir_module()
  assert 'stablehlo.convolution' in exported
  assert 'stablehlo.convolution' not in lowered


@pytest.mark.parametrize(
  ('backend', 'pixels', 'channels', 'kernel', 'stride', 'product'),
  [
    ('cpu', (32, 32), 16, (3, 3), 1, False),
    ('cpu', (8, 8), 255, (3, 3), 1, False),
    ('cpu', (8, 8), 64, (3, 3), 2, True),
    ('cpu', (4, 4), 64, (3, 3), 1, True),
    ('cpu', (32, 32), 16, (1, 1), 1, True),
    ('cpu', (8, 8), 256, (3, 3), 1, True),
    ('gpu', (4, 4), 64, (1, 1), 1, False),
  ],
)
def test_a_product_is_taken_on_a_cpu_where_it_is_faster(
  monkeypatch, backend, pixels, channels, kernel, stride, product
):
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  made = jax.make_jaxpr(
    lambda *both: convolve(
      *both,
      (stride, stride),
      'SAME',
      dimension_numbers=BY_XLA.keywords['dimension_numbers'],
    )
  )(*arguments(pixels, channels, channels, kernel))
  assert ('conv_general' in str(made)) is not product

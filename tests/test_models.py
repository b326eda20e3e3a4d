"""The networks behind the seam: sizes, statistics, precision, first weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import make_small_dnn, make_small_resnet

from codistill import optim
from codistill.models import MODELS, make_resnet

SMALL = {'resnet': make_small_resnet, 'dnn': make_small_dnn}
every_model = pytest.mark.parametrize('make', SMALL.values(), ids=SMALL.keys())


def images(batch=4, shape=(8, 8, 1)):
  return jax.random.normal(jax.random.key(7), (batch, *shape))


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_every_kind_of_network_is_tested_here():
  assert SMALL.keys() == MODELS.keys()


@pytest.mark.parametrize(
  ('depth', 'parameters'),
  # He et al. (2016): 25.6 M for ResNet-50; exact numbers are torchvision's.
  [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160)],
)
def test_imagenet_networks_have_the_published_number_of_parameters(
  depth, parameters
):
  model = make_resnet(
    input_shape=(224, 224, 3),
    num_classes=1000,
    depth=depth,
    width=64,
    batch_norm_momentum=0.9,
    dtype='float32',
    param_dtype='float32',
  )
  variables = jax.eval_shape(model.init, jax.random.key(0))
  assert count(variables['params']) == parameters


def test_cifar_network_has_the_published_number_of_parameters():
  # He et al. (2016), table 6: 0.27 M for depth 20; the projections of the two
  # wider stages, with their norms, come on top of it.
  model = make_small_resnet(input_shape=(32, 32, 3), depth=20, width=16)
  variables = jax.eval_shape(model.init, jax.random.key(0))
  projections = 16 * 32 + 32 * 64 + 2 * (32 + 64)
  assert count(variables['params']) == 269_722 + projections


def test_imagenet_stem_and_stages_shrink_the_image_thirty_two_times():
  model = make_resnet(
    input_shape=(224, 224, 3),
    num_classes=1000,
    depth=50,
    width=64,
    batch_norm_momentum=0.9,
    dtype='bfloat16',
    param_dtype='float32',
  )
  variables = jax.eval_shape(model.init, jax.random.key(0))
  closed = jax.make_jaxpr(lambda v, x: model.predict(v, x, ())[0].logits)(
    variables, jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
  )
  sizes = [
    eqn.outvars[0].aval.shape[1]
    for eqn in closed.eqns
    if eqn.primitive.name == 'conv_general_dilated'
  ]
  assert sizes[0] == 112
  assert sizes[-1] == 7
  assert len(sizes) == 53  # 49 in stem and blocks, 4 projections.


@every_model
def test_predict_changes_nothing_and_forward_returns_new_statistics(make):
  model = make()
  variables = model.init(jax.random.key(0))
  prediction, memory = model.predict(variables, images(), ())
  assert memory == ()
  assert prediction.logits.shape == (4, 10)
  trained, updated, memory = model.forward(
    variables, images(), (), jax.random.key(1)
  )
  assert memory == ()
  assert trained.logits.shape == (4, 10)
  assert set(updated) == set(variables) - {'params'}


@every_model
def test_the_head_apart_from_the_features_gives_the_logits(make):
  model = make()
  variables = model.init(jax.random.key(0))
  prediction, _ = model.predict(variables, images(), ())
  by_hand = prediction.features @ prediction.head.kernel + prediction.head.bias
  np.testing.assert_allclose(prediction.logits, by_hand, atol=1e-5)
  assert prediction.head.kernel is variables['params']['head']['kernel']


@every_model
def test_bf16_computes_in_bf16_and_keeps_float32_parameters(make):
  model = make(dtype='bfloat16')
  variables = model.init(jax.random.key(0))
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {
    jnp.dtype('float32')
  }
  prediction, _ = model.predict(variables, images(), ())
  assert prediction.features.dtype == jnp.bfloat16
  assert prediction.logits.dtype == jnp.float32
  # The head adds up in float32 what it multiplies in bfloat16.
  wide = [
    part.astype(jnp.bfloat16).astype(jnp.float32)
    for part in (prediction.features, prediction.head.kernel)
  ]
  by_hand = wide[0] @ wide[1] + prediction.head.bias
  np.testing.assert_allclose(prediction.logits, by_hand, rtol=1e-4, atol=1e-6)
  exact, _ = make().predict(variables, images(), ())
  difference = np.abs(prediction.logits - exact.logits).max()
  assert 0 < difference < 0.1


@every_model
def test_different_keys_give_different_weights_and_equal_keys_equal_ones(make):
  model = make()
  one, same, other = (model.init(jax.random.key(k)) for k in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, one, same)
  kernels = [v['params']['head']['kernel'] for v in (one, other)]
  assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


def test_each_residual_block_starts_as_the_identity():
  variables = make_small_resnet().init(jax.random.key(0))
  blocks = [v for k, v in variables['params'].items() if 'Block' in k]
  assert len(blocks) == 3
  for block in blocks:
    np.testing.assert_array_equal(block['BatchNorm_0']['scale'], 1)
    np.testing.assert_array_equal(block['BatchNorm_1']['scale'], 0)


def test_strided_convolutions_look_at_both_sides_of_the_shortcut():
  # Of an even image, the 1×1 shortcut takes pixels 0, 2, …; a 3×3 kernel that
  # is centred on them sees one pixel to the left, and padding at the edge.
  model = make_small_resnet(depth=8)
  closed = jax.make_jaxpr(lambda v, x: model.predict(v, x, ())[0].logits)(
    jax.eval_shape(model.init, jax.random.key(0)), images()
  )
  paddings = [
    eqn.params['padding']
    for eqn in closed.eqns
    if eqn.primitive.name == 'conv_general_dilated'
    and eqn.params['window_strides'] == (2, 2)
    and eqn.invars[1].aval.shape[0] == 3
  ]
  assert paddings == [((1, 1), (1, 1))] * 2


def test_batch_norm_normalises_and_remembers():
  model = make_small_resnet()
  variables = model.init(jax.random.key(0))
  _, updated, _ = model.forward(variables, 5 + images(), (), jax.random.key(1))
  before = variables['batch_stats']['stem_norm']['mean']
  after = updated['batch_stats']['stem_norm']['mean']
  x = jax.lax.conv_general_dilated(
    5 + images(),
    variables['params']['stem']['kernel'],
    (1, 1),
    'SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  expected = 0.9 * before + 0.1 * x.mean((0, 1, 2))
  np.testing.assert_allclose(after, expected, atol=1e-5)


def test_depths_that_are_no_resnet_are_refused():
  for depth in (7, 2, 51):
    with pytest.raises(ValueError, match=f'no ResNet of depth {depth}'):
      make_small_resnet(depth=depth)


def test_weight_decay_leaves_out_batch_norm_and_nothing_else():
  params = make_small_resnet().init(jax.random.key(0))['params']
  marks = jax.tree_util.tree_leaves_with_path(optim.decayed(params))
  for path, mark in marks:
    names = jax.tree_util.keystr(path)
    assert mark == ('norm' not in names.lower())
  assert {mark for _, mark in marks} == {True, False}

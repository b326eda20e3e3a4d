"""The networks behind the seam: sizes, statistics, precision, first weights."""

import dataclasses
import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from networks import SHAPE, TOKENS, VOCABULARY, assert_close

from codistill import losses, optim, sharding
from codistill.models import MODELS, Model, lstm, transformer, with_pixels
from codistill.models.batch_norm import EPSILON, BatchNorm
from codistill.models.model import teach_each

KEY = jax.random.key(0)
BATCH = 4


# A network runs faster as one program, compiled once, than op by op.
jitted = functools.cache(jax.jit)


def images(batch=BATCH):
  return jax.random.normal(jax.random.key(7), (batch, *SHAPE))


def tokens(batch=BATCH):
  return jax.random.randint(jax.random.key(7), (batch, TOKENS), 0, VOCABULARY)


def clicks(batch=BATCH):
  key = jax.random.key(7)
  return {
    'integers': jax.random.normal(key, (batch, 2)),
    'missing': jnp.zeros((batch, 2)),
    'categories': jax.random.randint(key, (batch, 3), 0, 5),
  }


INPUTS = {
  **dict.fromkeys(('click_dnn', 'click_regression'), clicks),
  **dict.fromkeys(('dnn', 'resnet', 'wide_resnet'), images),
  **dict.fromkeys(('lstm', 'transformer'), tokens),
}
IMAGENET = {'input_shape': (224, 224, 3), 'num_classes': 1000, 'width': 64}
CIFAR = {'input_shape': (32, 32, 3)}
every_model = pytest.mark.parametrize('name', INPUTS)
# All but one that has zeros as its first weights, and a constant in its head.
every_network = pytest.mark.parametrize(
  'name', [name for name in INPUTS if name != 'click_regression']
)
text_models = pytest.mark.parametrize('name', ['lstm', 'transformer'])


def small(name, **changes):
  return getattr(networks, f'make_small_{name}')(**changes)


@functools.cache
def worked(name):
  """A small network, and its results for one batch."""
  model, inputs = small(name), INPUTS[name]
  variables, zero = model.init(KEY), model.memory(BATCH)
  predicted = jitted(model.predict)(variables, inputs(), zero)
  trained = jitted(model.forward)(variables, inputs(), zero, KEY)
  return types.SimpleNamespace(**locals())


@functools.cache
def shapes_of(model):
  return jax.eval_shape(model.init, KEY)


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_every_kind_of_network_is_tested_here():
  assert INPUTS.keys() == MODELS.keys()


@pytest.mark.parametrize(
  ('name', 'sizes', 'parameters'),
  [
    # He et al. (2016): 25.6 M for ResNet-50; exact numbers are torchvision's.
    ('resnet', {**IMAGENET, 'depth': 18}, 11_689_512),
    ('resnet', {**IMAGENET, 'depth': 34}, 21_797_672),
    ('resnet', {**IMAGENET, 'depth': 50}, 25_557_032),
    # Table 6 has 0.27 M for depth 20; the projections of the two wider stages,
    # with their norms, are added.
    ('resnet', {**CIFAR, 'depth': 20, 'width': 16}, 269_722 + 2560 + 2 * 96),
    # Zagoruyko & Komodakis (2016), table 4: 36.5 M for WRN-28-10; the exact
    # number is that of their code on CIFAR-10.
    ('wide_resnet', {**CIFAR, 'depth': 28, 'widening': 10}, 36_479_194),
    # Embedding and head, and in two layers four gates from inputs and past,
    # with scale and bias for gates and cell.
    (
      'lstm',
      {'num_classes': 24_006, 'embedding_size': 256, 'hidden_size': 1024},
      24_006 * (256 + 1025) + 1024 * (4 * (256 + 3 * 1024) + 2 * 2 * (4 + 1)),
    ),
  ],
)
def test_networks_have_the_published_number_of_parameters(
  name, sizes, parameters
):
  assert count(shapes_of(small(name, **sizes))['params']) == parameters


@pytest.mark.parametrize(
  ('name', 'changes', 'said'),
  [
    ('resnet', {'depth': 7}, 'no ResNet of depth 7'),
    ('resnet', {'depth': 2}, 'no ResNet of depth 2'),
    ('resnet', {'depth': 51}, 'no ResNet of depth 51'),
    ('resnet', {'teacher_batch_norm': 'none'}, "no teacher_batch_norm 'none'"),
    ('wide_resnet', {'depth': 27}, 'no wide ResNet of depth 27'),
    ('click_dnn', {'table_sizes': (5, 6)}, 'need 2 classes and 3 tables'),
    ('click_regression', {'num_classes': 3}, 'need 2 classes and 3 tables'),
    ('transformer', {'width': 8, 'num_heads': 3}, 'width 8 cannot be divided'),
    ('transformer', {'width': 6, 'num_heads': 2}, 'width 6 cannot be divided'),
    ('transformer', {'width': 8, 'num_heads': 0}, 'width 8 cannot be divided'),
  ],
)
def test_networks_that_cannot_be_are_refused(name, changes, said):
  with pytest.raises(ValueError, match=said):
    small(name, **changes)


def by_row(inputs):
  """Stacks tables of 5, 6 and 7 rows; returns rows, and the numbers."""
  rows = np.asarray(inputs['categories']) + np.array([0, 5, 11])
  return rows, np.concatenate([inputs['integers'], inputs['missing']], axis=1)


def test_the_click_network_by_hand():
  model = networks.make_small_click_dnn(hidden=())
  variables = model.init(KEY)
  assert variables.keys() == {'params'}
  params = variables['params']
  assert params['embeddings'].shape == (18, 4)
  inputs = clicks(3)
  prediction, _ = jitted(model.predict)(variables, inputs, ())
  rows, numbers = by_row(inputs)
  looked_up = np.asarray(params['embeddings'])[rows].reshape(3, -1)
  features = np.concatenate([numbers, looked_up], axis=1)
  np.testing.assert_allclose(prediction.features, features, rtol=1e-6)
  head = params['head']
  odds = features @ np.asarray(head['kernel']) + np.asarray(head['bias'])
  # A click's probability is the logistic function of its log odds.
  found, wanted = jax.nn.softmax(prediction.logits)[:, 1], odds[:, 0]
  np.testing.assert_allclose(found, 1 / (1 + np.exp(-wanted)), rtol=1e-5)


def test_the_click_regression_by_hand():
  model = networks.make_small_click_regression()
  variables = model.init(KEY)
  for leaf in jax.tree.leaves(variables):
    np.testing.assert_array_equal(leaf, 0)
  assert count(variables) == 18 + 2 + 2 + 1
  variables = scrambled(variables)
  params = jax.tree.map(np.asarray, variables['params'])
  inputs = clicks(3)
  prediction, _ = jitted(model.predict)(variables, inputs, ())
  rows, numbers = by_row(inputs)
  odds = params['categories'][rows, 0].sum(1) + params['bias']
  odds += (numbers @ params['kernel'])[:, 0]
  np.testing.assert_array_equal(prediction.logits[:, 0], 0)
  np.testing.assert_allclose(prediction.logits[:, 1], odds, rtol=1e-5)


@pytest.mark.parametrize(('depth', 'number'), [(18, 17 + 3), (50, 49 + 4)])
def test_imagenet_networks_shrink_the_image_thirty_two_times(
  monkeypatch, depth, number
):
  # On a CPU some convolutions are products.
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  model = small('resnet', **IMAGENET, depth=depth)
  traced = jax.make_jaxpr(lambda v, x: model.predict(v, x, ())[0].logits)(
    shapes_of(model), jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
  )
  found = [e for e in traced.eqns if e.primitive.name == 'conv_general_dilated']
  sizes = [equation.outvars[0].aval.shape[1] for equation in found]
  # They are sizes of the stem, the blocks and the projections.
  assert (sizes[0], sizes[-1], len(sizes)) == (112, 7, number)
  # In an even image, the 1×1 shortcut takes pixels 0, 2, …; a 3×3 kernel that
  # is centred on them sees one pixel to the left, and padding at the edge.
  paddings = [
    equation.params['padding']
    for equation in found
    if equation.params['window_strides'] == (2, 2)
    and equation.invars[1].aval.shape[0] == 3
  ]
  assert paddings == [((1, 1), (1, 1))] * 3


@every_model
def test_predict_changes_nothing_and_forward_returns_new_statistics(name):
  one = worked(name)
  prediction, memory = one.predicted
  trained, updated, same = one.trained
  assert set(updated) == set(one.variables) - {'params'}
  assert prediction.logits.shape == trained.logits.shape
  if one.inputs is not tokens:
    assert memory == same == ()
    classes = 2 if one.inputs is clicks else 10
    assert trained.logits.shape == (BATCH, classes)
  else:
    assert trained.logits.shape == (BATCH, TOKENS, VOCABULARY)
    # The carries before and after have the same shapes.
    assert jax.tree.structure(memory) == jax.tree.structure(one.zero)
    assert_close(memory, same, atol=1e-6)
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), one.zero)


@pytest.mark.parametrize('name', ['resnet', 'wide_resnet'])
def test_what_is_no_number_is_seen_in_what_is_predicted(name):
  """On CPUs XLA's maximum makes it 0, in images as large as these."""
  one = worked(name)
  prediction, _ = jitted(one.model.predict)(
    one.variables, jnp.full((16, 16, 16, 1), jnp.nan), ()
  )
  assert np.isnan(prediction.logits).all()


@every_network
def test_the_head_apart_from_the_features_gives_the_logits(name):
  one = worked(name)
  prediction, _ = jax.device_get(one.predicted)
  head = prediction.head
  by_hand = prediction.features @ head.kernel + head.bias
  np.testing.assert_allclose(one.predicted[0].logits, by_hand, atol=1e-5)
  own = one.variables['params']['head']['kernel']
  if one.inputs is clicks:
    # The head gives log odds only: no click has the logit 0.
    own = np.concatenate([np.zeros_like(own), own], axis=1)
  np.testing.assert_array_equal(head.kernel, own)
  # Different keys give different weights, and equal keys equal ones.
  again, other = one.model.init(KEY), one.model.init(jax.random.key(1))
  jax.tree.map(np.testing.assert_array_equal, one.variables, again)
  other = other['params']['head']['kernel']
  assert np.abs(other - one.variables['params']['head']['kernel']).max() > 1e-3


@every_model
def test_no_device_gathers_the_examples_of_the_others(name):
  # Arrays that grow with the batch stay with their part of the batch.
  one, mesh = worked(name), sharding.make_mesh(8)
  whole, part = sharding.replicated(mesh), sharding.split(mesh)

  def value(variables, inputs, memory):
    prediction, _, _ = one.model.forward(variables, inputs, memory, KEY)
    return jnp.square(prediction.logits).sum()

  compiled = (
    jax.jit(jax.grad(value), in_shardings=(whole, part, part))
    .lower(one.variables, one.inputs(16), one.model.memory(16))
    .compile()
    .as_text()
  )
  assert 'all-reduce' in compiled
  assert 'all-gather' not in compiled


@every_network
def test_bf16_computes_in_bf16_and_keeps_float32_parameters(name):
  exact, model = worked(name), small(name, dtype='bfloat16')
  prediction, memory = jitted(model.predict)(
    exact.variables, exact.inputs(), exact.zero
  )
  # So are cells and outputs, which live as long as the stream.
  for leaf in jax.tree.leaves((shapes_of(model), memory)):
    assert leaf.dtype == jnp.float32
  assert prediction.features.dtype == jnp.bfloat16
  assert prediction.logits.dtype == jnp.float32
  # The head multiplies in bfloat16 and adds up in float32.
  wide = [
    np.asarray(part.astype(jnp.bfloat16), np.float32)
    for part in (prediction.features, prediction.head.kernel)
  ]
  by_hand = wide[0] @ wide[1] + prediction.head.bias
  np.testing.assert_allclose(prediction.logits, by_hand, rtol=1e-4, atol=1e-6)
  difference = np.abs(prediction.logits - exact.predicted[0].logits).max()
  assert 0 < difference < 0.1


@text_models
def test_a_gradient_in_bf16_is_near_that_in_float32(name):
  inputs, variables = tokens(), small(name, num_layers=1).init(KEY)

  def gradient(dtype):
    model = small(name, num_layers=1, dtype=dtype)

    def loss(variables):
      zero = model.memory(BATCH)
      prediction, _, _ = model.forward(variables, inputs, zero, KEY)
      return losses.task_cross_entropy(inputs, prediction.logits).sum()

    return jax.jit(jax.grad(loss))(variables)

  ours, theirs = gradient('bfloat16'), gradient('float32')
  for one, other in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
    assert one.dtype == other.dtype == jnp.float32
    # A number has eight bits, through a layer and six tokens.
    assert np.abs(one - other).max() < 0.1 * np.abs(other).max()


# Models of text.


@pytest.mark.parametrize(
  ('name', 'wide'), [('lstm', 'hidden_size'), ('transformer', 'width')]
)
def test_at_first_all_words_are_about_as_likely(name, wide):
  # Logits are as large as the paper's, from a wide head and many words.
  model = small(name, num_classes=1_000, num_layers=1, **{wide: 256})
  rng = np.random.default_rng(0)
  inputs, labels = jnp.asarray(rng.integers(1_000, size=(2, BATCH, TOKENS)))
  zero = model.memory(BATCH)
  prediction, _ = jitted(model.predict)(model.init(KEY), inputs, zero)
  loss = losses.task_cross_entropy(labels, prediction.logits).mean()
  assert abs(float(loss) - np.log(1_000)) < 0.15


def scrambled(tree):
  """Numbers that are all different, and neither zero nor one."""
  rng = np.random.default_rng(3)
  return jax.tree.map(
    lambda leaf: jnp.asarray(leaf + rng.normal(0, 0.3, leaf.shape), leaf.dtype),
    jax.device_get(tree),
  )


def lstm_by_hand(params, inputs, memory):
  """LayerNormBasicLSTMCell of TensorFlow 1.4, a token at a time, in NumPy."""

  def norm(x, scale, bias):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * scale + bias

  def sigmoid(x):
    return 1 / (1 + np.exp(-x))

  states = [tuple(map(np.asarray, state)) for state in memory]
  outputs = []
  for token in np.asarray(inputs).T:
    x = params['embedding'][token]
    for number, (c, h) in enumerate(states):
      layer = params[f'layer_{number}']
      args = np.concatenate([x, h], 1)
      kernel = np.concatenate([layer['input_kernel'], layer['kernel']])
      parts = np.split(args @ kernel, 4, axis=1)
      scales = np.split(layer['gate_norm']['scale'], 4)
      biases = np.split(layer['gate_norm']['bias'], 4)
      i, j, f, o = map(norm, parts, scales, biases)
      new_c = c * sigmoid(f + 1) + sigmoid(i) * np.tanh(j)
      new_c = norm(new_c, **layer['cell_norm'])
      x = np.tanh(new_c) * sigmoid(o)
      states[number] = (new_c, x)
    outputs.append(x @ params['head']['kernel'] + params['head']['bias'])
  return np.stack(outputs, axis=1), states


def test_the_lstm_is_that_of_the_numpy_transcription():
  """From any carry to the next, two batches equal one of twice the tokens."""
  model = small('lstm')
  variables, memory = map(scrambled, (model.init(KEY), model.memory(BATCH)))
  prediction, after = jitted(model.predict)(variables, tokens(), memory)
  params = jax.tree.map(np.asarray, variables['params'])
  logits, states = lstm_by_hand(params, tokens(), memory)
  np.testing.assert_allclose(prediction.logits, logits, atol=2e-5)
  assert_close(after, tuple(states), atol=2e-5)


def test_the_lstms_own_gradient_is_that_of_its_steps():
  model = small('lstm')
  layer = scrambled(model.init(KEY))['params']['layer_0']
  arguments = (
    *(layer[part] for part in ('kernel', 'gate_norm', 'cell_norm')),
    jax.random.normal(KEY, (TOKENS, BATCH, 4 * 8)),
    scrambled(model.memory(BATCH))[0],
  )

  def value(recur, arguments):
    outputs, carry = recur(*arguments, jnp.float32)
    weights = jnp.sin(jnp.arange(outputs.size).reshape(outputs.shape))
    return (outputs * weights).sum() + sum(x @ x for x in map(jnp.ravel, carry))

  gradient = jax.jit(jax.grad(value, argnums=1), static_argnums=0)
  ours = gradient(lstm.recur, arguments)
  theirs = gradient(lstm.recur.__wrapped__, arguments)
  assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@text_models
def test_no_gradient_comes_from_later_tokens_or_other_lanes(name):
  model = worked(name).model
  variables = scrambled(model.init(KEY))
  # Each token is a word of its own: its embedding's gradient is the token's.
  inputs = jnp.arange(10).reshape(2, 5)
  lane, time = 1, 2

  def loss(embedding):
    params = {**variables['params'], 'embedding': embedding}
    zero = model.memory(2)
    prediction, _, _ = model.forward({'params': params}, inputs, zero, KEY)
    return -jax.nn.log_softmax(prediction.logits[lane, time])[7]

  gradient = jax.jit(jax.grad(loss))(variables['params']['embedding'])
  moved = np.abs(gradient[:10]).max(-1).reshape(2, 5)
  assert (moved[lane, : time + 1] > 1e-5).all()
  moved[lane, : time + 1] = 0
  np.testing.assert_array_equal(moved, 0)


def test_the_transformer_knows_the_order_of_tokens_and_not_where_they_are():
  # There is one layer: with two, the causal mask alone would tell the order.
  model = small('transformer', num_layers=1)
  variables = scrambled(model.init(KEY))

  @jax.jit
  def last(inputs):
    return model.predict(variables, inputs, ())[0].logits[:, -1]

  inputs = np.array(tokens())
  swapped = np.concatenate([inputs[:, 1::-1], inputs[:, 2:]], axis=1)
  assert np.abs(last(inputs) - last(swapped)).max() > 1e-3
  # Queries and keys that both move on keep their distance.
  x = np.random.default_rng(0).normal(size=(1, 1, 1, 8)).astype(np.float32)
  turned = jax.jit(transformer.rotate)(np.tile(x, (1, 9, 1, 1)))[0, :, 0]
  products = np.asarray(turned) @ np.asarray(turned).T
  expected = products[0][np.abs(np.subtract.outer(range(9), range(9)))]
  np.testing.assert_allclose(products, expected, rtol=1e-5)
  assert np.unique(np.round(products[0], 4)).size == 9


@pytest.mark.parametrize('name', ['lstm', 'transformer', 'resnet'])
def test_weight_decay_leaves_out_norms_and_nothing_else(name):
  marks = jax.tree_util.tree_leaves_with_path(
    optim.decayed(worked(name).variables['params'])
  )
  for path, mark in marks:
    assert mark == ('norm' not in jax.tree_util.keystr(path).lower()), path
  assert {mark for _, mark in marks} == {True, False}


# Models of images.


def test_each_residual_block_starts_as_the_identity():
  params = worked('resnet').variables['params']
  for block in (params[f'_Block_{number}'] for number in range(3)):
    np.testing.assert_array_equal(block['BatchNorm_0']['scale'], 1)
    np.testing.assert_array_equal(block['BatchNorm_1']['scale'], 0)


def test_batch_norm_normalises_and_remembers():
  batch, variables = 5 * images() + 2, worked('resnet').variables
  model, stem = worked('resnet').model, variables['params']['stem']
  student, updated, _ = jitted(model.forward)(variables, batch, (), KEY)
  x = nn.Conv(4, (3, 3), use_bias=False).apply({'params': stem}, batch)
  before = variables['batch_stats']['stem_norm']['mean']
  after = updated['batch_stats']['stem_norm']['mean']
  expected = 0.9 * before + 0.1 * np.asarray(x).mean((0, 1, 2))
  np.testing.assert_allclose(after, expected, atol=1e-5)
  # A teacher normalises with its own or the batch's statistics.
  alone, _ = jitted(model.predict)(variables, batch, ())
  for statistics, same, other in (
    ('running', alone, student),
    ('batch', student, alone),
  ):
    teacher = small('resnet', teacher_batch_norm=statistics)
    [told], _ = jax.jit(functools.partial(teach_each, [teacher]))(
      [variables], batch, [()]
    )
    np.testing.assert_allclose(told.logits, same.logits, atol=1e-4)
    assert np.abs(told.logits - other.logits).max() > 1e-2, statistics


def test_groups_of_batch_norm_are_normalised_by_themselves():
  batch = images(8)
  batch = batch.at[4:].set(3 * batch[4:] + 1)
  whole, grouped = (
    small('resnet', batch_norm_group_size=size) for size in (None, 4)
  )
  variables = worked('resnet').variables
  # Either can go on from the other's weights.
  shapes = shapes_of(grouped)
  assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)

  def forward(model, batch):
    prediction, updated, _ = jitted(model.forward)(variables, batch, (), KEY)
    return prediction.logits, updated['batch_stats']

  logits, updated = forward(grouped, batch)
  (half, one), (other, two) = (forward(whole, x) for x in jnp.split(batch, 2))
  np.testing.assert_allclose(logits, np.vstack([half, other]), atol=1e-4)
  assert np.abs(logits - forward(whole, batch)[0]).max() > 1e-2
  # The running statistics follow the mean of the groups'.
  mean = jax.tree.map(lambda x, y: (x + y) / 2, *jax.device_get((one, two)))
  assert_close(updated, mean, rtol=1e-3, atol=1e-4)
  with pytest.raises(
    ValueError, match='cannot be divided into BatchNorm groups'
  ):
    forward(grouped, batch[:6])


def test_a_group_of_all_is_flaxs_batch_norm():
  x = 3 * jax.random.normal(KEY, (8, 2, 2, 3)) + 1
  arguments = {'momentum': 0.9, 'dtype': 'float32', 'param_dtype': 'float32'}
  ours = functools.partial(BatchNorm, group_size=8, **arguments)
  theirs = functools.partial(nn.BatchNorm, epsilon=EPSILON, **arguments)

  @functools.partial(jax.jit, static_argnums=0)
  def results(make):
    training, evaluating = (make(use_running_average=b) for b in (False, True))
    first = evaluating.init(KEY, x)
    params = {'scale': jnp.arange(1.0, 4), 'bias': jnp.ones(3)}
    variables = {**first, 'params': params}
    trained, updated = training.apply(variables, x, mutable=['batch_stats'])
    evaluated = evaluating.apply({**variables, **updated}, x)
    return first, trained, updated, evaluated

  assert_close(*map(results, (ours, theirs)), rtol=1e-4, atol=1e-5)


def test_rematerialised_blocks_have_the_same_weights_and_gradients():
  variables, results, sizes = networks.make_tiny_resnet().init(KEY), [], []
  for remat in (False, True):
    model = networks.make_tiny_resnet(remat=remat)
    assert jax.tree.structure(shapes_of(model)) == jax.tree.structure(variables)

    def loss(variables, model=model):
      prediction, _, _ = model.forward(variables, images(), (), KEY)
      return jnp.square(prediction.logits).sum()

    lowered = jax.jit(jax.grad(loss)).lower(variables)
    results.append(lowered.compile()(variables))
    sizes.append(lowered.as_text().count('stablehlo.convolution'))
  assert_close(*results, rtol=1e-4, atol=1e-5)
  assert sizes[1] > sizes[0]


# Pixels.


def test_pixels_are_normalised_in_every_function_that_takes_them():
  def seen(variables, inputs, *rest):
    return inputs, rest

  functions = {field.name for field in dataclasses.fields(Model)}
  mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
  plain = Model(**dict.fromkeys(functions, seen))
  model = with_pixels(plain, mean=mean, std=std)
  rng = np.random.default_rng(0)
  pixels = rng.integers(256, size=(5, 4, 4, 3), dtype=np.uint8)
  assert model.init is model.memory is seen
  assert {'predict', 'forward', 'teach'} <= functions
  for name in functions - {'init', 'memory'}:
    inputs, rest = jax.jit(getattr(model, name))({}, pixels, 1, 2)
    assert rest == (1, 2)
    assert inputs.dtype == jnp.float32
    expected = (pixels / 255 - mean) / std
    np.testing.assert_allclose(inputs, expected, rtol=1e-5, atol=1e-6)
  # They need a mean and a deviation of each channel.
  with pytest.raises(ValueError, match='got 1 and 2 numbers'):
    with_pixels(plain, mean=(0.5,), std=(0.5, 0.5))
  grey = with_pixels(plain, mean=(0.5,), std=(0.5,))
  with pytest.raises(ValueError, match='have 1 numbers, images 3 channels'):
    grey.predict({}, pixels, ())

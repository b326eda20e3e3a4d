"""The networks behind the seam: sizes, statistics, precision, first weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import (
  TOKENS,
  VOCABULARY,
  make_small_click_dnn,
  make_small_click_regression,
  make_small_dnn,
  make_small_lstm,
  make_small_resnet,
  make_small_transformer,
  make_small_wide_resnet,
)

from codistill import losses, optim, sharding
from codistill.models import (
  MODELS,
  Model,
  lstm,
  make_resnet,
  transformer,
  with_pixels,
)

BATCH = 4


def images(batch=BATCH, shape=(8, 8, 1)):
  return jax.random.normal(jax.random.key(7), (batch, *shape))


def tokens(batch=BATCH, time=TOKENS):
  return jax.random.randint(jax.random.key(7), (batch, time), 0, VOCABULARY)


def clicks(batch=BATCH):
  key = jax.random.key(7)
  return {
    'integers': jax.random.normal(key, (batch, 2)),
    'missing': jnp.zeros((batch, 2)),
    'categories': jax.random.randint(key, (batch, 3), 0, 5),
  }


SMALL = {
  'resnet': (make_small_resnet, images),
  'click_dnn': (make_small_click_dnn, clicks),
  'click_regression': (make_small_click_regression, clicks),
  'dnn': (make_small_dnn, images),
  'lstm': (make_small_lstm, tokens),
  'transformer': (make_small_transformer, tokens),
  'wide_resnet': (make_small_wide_resnet, images),
}
every_model = pytest.mark.parametrize(
  ('make', 'inputs'), SMALL.values(), ids=SMALL.keys()
)
# All but one whose weights begin at 0, and whose head has a constant.
every_network = pytest.mark.parametrize(
  ('make', 'inputs'),
  [SMALL[name] for name in SMALL if name != 'click_regression'],
  ids=[name for name in SMALL if name != 'click_regression'],
)


text_models = pytest.mark.parametrize(
  'make', [make_small_lstm, make_small_transformer], ids=['lstm', 'transformer']
)


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
    batch_norm_group_size=None,
    teacher_batch_norm='running',
    remat=False,
    dtype='float32',
    param_dtype='float32',
  )
  variables = jax.eval_shape(model.init, jax.random.key(0))
  assert count(variables['params']) == parameters


def test_wide_network_has_the_published_number_of_parameters():
  # Zagoruyko & Komodakis (2016), table 4: 36.5 M for WRN-28-10; the number is
  # that of its authors' code on CIFAR-10.
  model = make_small_wide_resnet(input_shape=(32, 32, 3), depth=28, widening=10)
  variables = jax.eval_shape(model.init, jax.random.key(0))
  assert count(variables['params']) == 36_479_194
  with pytest.raises(ValueError, match='no wide ResNet of depth 27'):
    make_small_wide_resnet(depth=27)


def test_the_click_network_by_hand():
  model = make_small_click_dnn(hidden=())
  variables = model.init(jax.random.key(0))
  assert model.init(jax.random.key(1)).keys() == {'params'}
  params = variables['params']
  # Tables of 5, 6 and 7 rows, one below the other.
  assert params['embeddings'].shape == (18, 4)
  inputs = clicks(3)
  prediction, _ = model.predict(variables, inputs, ())
  table = np.asarray(params['embeddings'])
  rows = np.asarray(inputs['categories']) + np.array([0, 5, 11])
  features = np.concatenate(
    [inputs['integers'], inputs['missing'], table[rows].reshape(3, -1)], axis=1
  )
  np.testing.assert_allclose(prediction.features, features, rtol=1e-6)
  head = params['head']
  odds = features @ np.asarray(head['kernel']) + np.asarray(head['bias'])
  # A click's probability is the logistic function of its log odds.
  np.testing.assert_allclose(
    jax.nn.softmax(prediction.logits)[:, 1],
    1 / (1 + np.exp(-odds[:, 0])),
    rtol=1e-5,
  )
  with pytest.raises(ValueError, match='one of 2 classes, of 3 categorical'):
    make_small_click_dnn(table_sizes=(5, 6))


def test_the_click_regression_by_hand():
  model = make_small_click_regression()
  variables = model.init(jax.random.key(0))
  for leaf in jax.tree.leaves(variables):
    np.testing.assert_array_equal(leaf, 0)
  assert count(variables) == 18 + 2 + 2 + 1
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: rng.standard_normal(leaf.shape, np.float32),
    variables['params'],
  )
  inputs = clicks(3)
  prediction, _ = model.predict({'params': params}, inputs, ())
  rows = np.asarray(inputs['categories']) + np.array([0, 5, 11])
  numbers = np.concatenate([inputs['integers'], inputs['missing']], axis=1)
  odds = params['categories'][rows, 0].sum(1) + params['bias']
  odds += (numbers @ params['kernel'])[:, 0]
  np.testing.assert_array_equal(prediction.logits[:, 0], 0)
  np.testing.assert_allclose(prediction.logits[:, 1], odds, rtol=1e-5)
  with pytest.raises(ValueError, match='one of 2 classes, of 3 categorical'):
    make_small_click_regression(num_classes=3)


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
    batch_norm_group_size=None,
    teacher_batch_norm='running',
    remat=False,
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
def test_predict_changes_nothing_and_forward_returns_new_statistics(
  make, inputs
):
  model = make()
  variables, zero = model.init(jax.random.key(0)), model.memory(BATCH)
  prediction, memory = jax.jit(model.predict)(variables, inputs(), zero)
  trained, updated, same = jax.jit(model.forward)(
    variables, inputs(), zero, jax.random.key(1)
  )
  assert set(updated) == set(variables) - {'params'}
  assert prediction.logits.shape == trained.logits.shape
  if inputs is not tokens:
    assert memory == same == ()
    assert trained.logits.shape == (BATCH, 2 if inputs is clicks else 10)
  else:
    assert trained.logits.shape == (BATCH, TOKENS, VOCABULARY)
    # A carry before and after, of the same shapes.
    assert jax.tree.structure(memory) == jax.tree.structure(zero)
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), memory, same
    )
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), zero)


@pytest.mark.parametrize('make', [make_small_resnet, make_small_wide_resnet])
def test_what_is_no_number_is_seen_in_what_is_predicted(make):
  """XLA's maximum makes it 0 on CPUs; in networks as large as these."""
  model = make(input_shape=(16, 16, 3))
  prediction, _ = jax.jit(model.predict)(
    model.init(jax.random.key(0)), jnp.full((16, 16, 16, 3), jnp.nan), ()
  )
  assert np.isnan(prediction.logits).all()


@every_network
def test_the_head_apart_from_the_features_gives_the_logits(make, inputs):
  model = make()
  variables = model.init(jax.random.key(0))
  prediction, _ = model.predict(variables, inputs(), model.memory(BATCH))
  by_hand = prediction.features @ prediction.head.kernel + prediction.head.bias
  np.testing.assert_allclose(prediction.logits, by_hand, atol=1e-5)
  kernel = prediction.head.kernel
  if inputs is clicks:
    # Of the log odds alone: no click has the logit 0.
    np.testing.assert_array_equal(kernel[:, :1], 0)
    kernel = kernel[:, 1:]
  np.testing.assert_array_equal(kernel, variables['params']['head']['kernel'])


@every_model
def test_no_device_gathers_the_examples_of_the_others(make, inputs):
  # Whatever grows with the batch stays where its part of the batch is.
  model, mesh = make(), sharding.make_mesh(8)
  whole, part = sharding.replicated(mesh), sharding.split(mesh)

  def value(params, variables, inputs, memory):
    variables = {**variables, 'params': params}
    prediction, _, _ = model.forward(
      variables, inputs, memory, jax.random.key(1)
    )
    return jnp.square(prediction.logits).sum()

  variables = jax.eval_shape(model.init, jax.random.key(0))
  compiled = (
    jax.jit(jax.grad(value), in_shardings=(whole, whole, part, part))
    .lower(variables['params'], variables, inputs(16), model.memory(16))
    .compile()
    .as_text()
  )
  assert 'all-reduce' in compiled
  assert 'all-gather' not in compiled


@every_network
def test_bf16_computes_in_bf16_and_keeps_float32_parameters(make, inputs):
  model = make(dtype='bfloat16')
  variables, zero = model.init(jax.random.key(0)), model.memory(BATCH)
  prediction, memory = jax.jit(model.predict)(variables, inputs(), zero)
  # So are cells and outputs, which live as long as the stream does.
  assert {leaf.dtype for leaf in jax.tree.leaves((variables, memory))} == {
    jnp.dtype('float32')
  }
  assert prediction.features.dtype == jnp.bfloat16
  assert prediction.logits.dtype == jnp.float32
  # The head adds up in float32 what it multiplies in bfloat16.
  wide = [
    part.astype(jnp.bfloat16).astype(jnp.float32)
    for part in (prediction.features, prediction.head.kernel)
  ]
  by_hand = wide[0] @ wide[1] + prediction.head.bias
  np.testing.assert_allclose(prediction.logits, by_hand, rtol=1e-4, atol=1e-6)
  exact, _ = jax.jit(make().predict)(variables, inputs(), zero)
  difference = np.abs(prediction.logits - exact.logits).max()
  assert 0 < difference < 0.1


@text_models
def test_a_gradient_in_bf16_is_near_that_in_float32(make):
  inputs = tokens()

  def gradient(dtype):
    model = make(dtype=dtype)
    variables = make().init(jax.random.key(0))

    def loss(variables):
      prediction, _, _ = model.forward(
        variables, inputs, model.memory(BATCH), jax.random.key(1)
      )
      return losses.task_cross_entropy(inputs, prediction.logits).sum()

    return jax.jit(jax.grad(loss))(variables)

  for one, other in zip(
    *map(jax.tree.leaves, map(gradient, ('bfloat16', 'float32'))), strict=True
  ):
    assert one.dtype == other.dtype == jnp.float32
    # Eight bits of a number, through two layers and six tokens.
    assert np.abs(one - other).max() < 0.1 * np.abs(other).max()


@every_network
def test_different_keys_give_different_weights_and_equal_keys_equal_ones(
  make, inputs
):
  model = make()
  one, same, other = (model.init(jax.random.key(k)) for k in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, one, same)
  kernels = [v['params']['head']['kernel'] for v in (one, other)]
  assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


# Models of text.


@text_models
def test_at_first_all_words_are_about_as_likely(make):
  # Logits of the paper's sizes: a vocabulary of its own, and as wide a head.
  sizes = {'num_classes': 24_006}
  wide = {'lstm': {'hidden_size': 256}, 'transformer': {'width': 256}}
  name = 'lstm' if make is make_small_lstm else 'transformer'
  model = make(**sizes, **wide[name])
  rng = np.random.default_rng(0)
  inputs, labels = jnp.asarray(rng.integers(24_006, size=(2, BATCH, TOKENS)))
  prediction, _ = jax.jit(model.predict)(
    model.init(jax.random.key(0)), inputs, model.memory(BATCH)
  )
  loss = losses.task_cross_entropy(labels, prediction.logits).mean()
  assert abs(float(loss) - np.log(24_006)) < 0.15


def test_the_papers_lstm_has_the_number_of_parameters_that_it_should():
  words, size, hidden = 24_006, 256, 1024
  model = make_small_lstm(
    input_shape=(32,),
    num_classes=words,
    embedding_size=size,
    hidden_size=hidden,
  )
  variables = jax.eval_shape(model.init, jax.random.key(0))
  # Four gates from inputs and past; scale and bias of gates and cell.
  layers = [
    4 * hidden * (inputs + hidden) + 2 * 4 * hidden + 2 * hidden
    for inputs in (size, hidden)
  ]
  by_hand = words * size + sum(layers) + (hidden + 1) * words
  assert count(variables['params']) == by_hand == 44_403_654
  assert count(jax.eval_shape(lambda: model.memory(128))) == 128 * 4 * hidden


def scrambled(model, seed=3):
  """Variables none of which is zero or one, and none alike."""
  variables = model.init(jax.random.key(0))
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: jnp.asarray(leaf + rng.normal(0, 0.3, leaf.shape), leaf.dtype),
    jax.device_get(variables),
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
      new_c = norm(
        new_c, layer['cell_norm']['scale'], layer['cell_norm']['bias']
      )
      x = np.tanh(new_c) * sigmoid(o)
      states[number] = (new_c, x)
    outputs.append(x @ params['head']['kernel'] + params['head']['bias'])
  return np.stack(outputs, axis=1), states


def test_the_lstm_is_that_of_the_numpy_transcription():
  model = make_small_lstm()
  variables = scrambled(model)
  rng = np.random.default_rng(4)
  memory = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(x.dtype), model.memory(BATCH)
  )
  prediction, after = jax.jit(model.predict)(variables, tokens(), memory)
  logits, states = lstm_by_hand(
    jax.tree.map(np.asarray, variables['params']), tokens(), memory
  )
  np.testing.assert_allclose(prediction.logits, logits, atol=2e-5)
  for ours, theirs in zip(after, states, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_the_lstms_own_gradient_is_that_of_its_steps():
  hidden, batch, time = 8, BATCH, TOKENS
  rng = np.random.default_rng(0)

  def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)

  arguments = (
    normal(hidden, 4 * hidden),
    {'scale': normal(4 * hidden), 'bias': normal(4 * hidden)},
    {'scale': normal(hidden), 'bias': normal(hidden)},
    normal(time, batch, 4 * hidden),
    (normal(batch, hidden), normal(batch, hidden)),
  )

  def value(recur):
    def of(arguments):
      outputs, carry = recur(*arguments, jnp.float32)
      weights = jnp.arange(outputs.size).reshape(outputs.shape)
      return (outputs * jnp.sin(weights)).sum() + sum(
        jnp.square(part).sum() for part in carry
      )

    return jax.jit(jax.grad(of))(arguments)

  ours, theirs = value(lstm.recur), value(lstm.recur.__wrapped__)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4),
    ours,
    theirs,
  )


def test_a_batch_of_twice_the_tokens_equals_two_with_the_carry_between():
  model = make_small_lstm()
  variables, predict = scrambled(model), jax.jit(model.predict)
  whole, after = predict(
    variables, tokens(time=2 * TOKENS), model.memory(BATCH)
  )
  memory, parts = model.memory(BATCH), []
  for inputs in jnp.split(tokens(time=2 * TOKENS), 2, axis=1):
    part, memory = predict(variables, inputs, memory)
    parts.append(part.logits)
  np.testing.assert_allclose(
    whole.logits, jnp.concatenate(parts, axis=1), atol=1e-5
  )
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), after, memory
  )
  # Without the carry the second half would be another.
  cold, _ = predict(variables, inputs, model.memory(BATCH))
  assert np.abs(cold.logits - part.logits).max() > 0.01


@text_models
def test_no_gradient_comes_from_later_tokens_or_other_lanes(make):
  model = make(num_classes=BATCH * TOKENS)
  variables = scrambled(model)
  # Each token a word of its own: its embedding's gradient is the token's.
  inputs = jnp.arange(BATCH * TOKENS).reshape(BATCH, TOKENS)
  lane, time = 1, 2

  def loss(embedding):
    params = {**variables['params'], 'embedding': embedding}
    prediction, _, _ = model.forward(
      {'params': params}, inputs, model.memory(BATCH), jax.random.key(1)
    )
    logits = prediction.logits[lane, time]
    return -jax.nn.log_softmax(logits)[7]

  gradient = jax.jit(jax.grad(loss))(variables['params']['embedding'])
  gradient = np.asarray(gradient).reshape(BATCH, TOKENS, -1)
  moved = np.abs(gradient).max(-1)
  assert (moved[lane, : time + 1] > 1e-5).all()
  moved[lane, : time + 1] = 0
  np.testing.assert_array_equal(moved, 0)


def test_the_transformer_knows_the_order_of_tokens_and_not_where_they_are():
  # A single layer: with two, the causal mask alone would tell the order.
  model = make_small_transformer(num_layers=1)
  variables = scrambled(model)

  @jax.jit
  def last(inputs):
    return model.predict(variables, inputs, ())[0].logits[:, -1]

  inputs = tokens()
  swapped = inputs.at[:, jnp.array([0, 1])].set(inputs[:, jnp.array([1, 0])])
  assert np.abs(last(inputs) - last(swapped)).max() > 1e-3
  # Queries and keys that both move on are as far apart as before.
  x = np.random.default_rng(0).normal(size=(1, 1, 1, 8)).astype(np.float32)
  turned = jax.jit(transformer.rotate)(np.tile(x, (1, 9, 1, 1)))[0, :, 0]
  products = np.asarray(turned) @ np.asarray(turned).T
  for apart in range(9):
    np.testing.assert_allclose(
      np.diagonal(products, apart), products[0, apart], rtol=1e-5
    )
  assert np.unique(np.round(products[0], 4)).size == 9


def test_heads_that_do_not_divide_the_width_are_refused():
  for width, heads in ((8, 3), (6, 2), (8, 0)):
    with pytest.raises(ValueError, match=f'width {width} is not an even'):
      make_small_transformer(width=width, num_heads=heads)


@text_models
def test_weight_decay_leaves_out_the_norms_of_text_models(make):
  params = make().init(jax.random.key(0))['params']
  for path, mark in jax.tree_util.tree_leaves_with_path(optim.decayed(params)):
    assert mark == ('norm' not in jax.tree_util.keystr(path))


# Models of images.


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


def test_groups_of_batch_norm_are_normalised_by_themselves():
  batch = images(8)
  batch = batch.at[4:].set(3 * batch[4:] + 1)
  whole, grouped = (
    make_small_resnet(),
    make_small_resnet(batch_norm_group_size=4),
  )
  variables = whole.init(jax.random.key(0))
  # Either can go on from the other's weights.
  jax.tree.map(
    lambda one, other: np.testing.assert_array_equal(one, other),
    variables,
    grouped.init(jax.random.key(0)),
  )

  def forward(model, batch):
    prediction, updated, _ = model.forward(
      variables, batch, (), jax.random.key(0)
    )
    return prediction.logits, updated['batch_stats']

  logits, updated = forward(grouped, batch)
  halves = [forward(whole, batch[:4]), forward(whole, batch[4:])]
  np.testing.assert_allclose(
    logits, np.concatenate([half for half, _ in halves]), atol=1e-4
  )
  assert np.abs(logits - forward(whole, batch)[0]).max() > 1e-2
  # The running statistics follow the mean of the groups'.
  jax.tree.map(
    lambda new, one, two: np.testing.assert_allclose(
      new, (one + two) / 2, rtol=1e-3, atol=1e-4
    ),
    updated,
    *(statistics for _, statistics in halves),
  )
  with pytest.raises(ValueError, match='no whole number of BatchNorm groups'):
    forward(grouped, batch[:6])


def test_a_group_of_all_is_flaxs_batch_norm():
  batch = images(8)
  results = []
  for size in (None, 8):
    model = make_small_resnet(batch_norm_group_size=size)
    variables = model.init(jax.random.key(0))
    prediction, updated, _ = model.forward(
      variables, batch, (), jax.random.key(0)
    )
    evaluated, _ = model.predict({**variables, **updated}, batch, ())
    results.append((prediction.logits, updated, evaluated.logits))
  jax.tree.map(
    lambda one, other: np.testing.assert_allclose(
      one, other, rtol=1e-3, atol=1e-4
    ),
    *results,
  )


def test_a_teacher_normalises_with_its_own_or_the_batchs_statistics():
  batch = images(8)
  batch = 5 * batch + 2
  for statistics in ('running', 'batch'):
    model = make_small_resnet(teacher_batch_norm=statistics)
    variables = model.init(jax.random.key(0))
    [told], _ = model.teach_each([variables], batch, [()])
    student, _, _ = model.forward(variables, batch, (), jax.random.key(0))
    alone, _ = model.predict(variables, batch, ())
    same, other = (
      (student, alone) if statistics == 'batch' else (alone, student)
    )
    np.testing.assert_allclose(told.logits, same.logits, atol=1e-4)
    assert np.abs(told.logits - other.logits).max() > 1e-2
  with pytest.raises(ValueError, match="no teacher_batch_norm 'none'"):
    make_small_resnet(teacher_batch_norm='none')


def test_rematerialised_blocks_have_the_same_weights_and_gradients():
  batch = images(4)
  results, sizes = [], []
  for remat in (False, True):
    model = make_small_resnet(remat=remat)
    variables = model.init(jax.random.key(0))

    def loss(params, model=model, variables=variables):
      prediction, _, _ = model.forward(
        {**variables, 'params': params}, batch, (), jax.random.key(0)
      )
      return jnp.square(prediction.logits).sum()

    results.append(jax.jit(jax.grad(loss))(variables['params']))
    jaxpr = str(jax.make_jaxpr(jax.grad(loss))(variables['params']))
    sizes.append(jaxpr.count('conv_general_dilated'))
  jax.tree.map(
    lambda one, other: np.testing.assert_allclose(
      one, other, rtol=1e-4, atol=1e-5
    ),
    *results,
  )
  assert sizes[1] > sizes[0]


def test_weight_decay_leaves_out_batch_norm_and_nothing_else():
  params = make_small_resnet().init(jax.random.key(0))['params']
  marks = jax.tree_util.tree_leaves_with_path(optim.decayed(params))
  for path, mark in marks:
    names = jax.tree_util.keystr(path)
    assert mark == ('norm' not in names.lower())
  assert {mark for _, mark in marks} == {True, False}


# Pixels.


def test_pixels_are_normalised_in_every_function_that_takes_them():
  def seen(variables, inputs, *rest):
    return inputs, rest

  functions = [field.name for field in dataclasses.fields(Model)]
  assert {'init', 'memory', 'predict', 'forward'} <= set(functions)
  model = with_pixels(
    Model(**dict.fromkeys(functions, seen)),
    mean=(0.1, 0.2, 0.3),
    std=(0.5, 0.25, 2.0),
  )
  pixels = np.random.default_rng(0).integers(256, size=(5, 4, 4, 3))
  pixels = pixels.astype(np.uint8)
  expected = (pixels / 255 - (0.1, 0.2, 0.3)) / (0.5, 0.25, 2.0)
  for name in functions:
    function = getattr(model, name)
    if name in ('init', 'memory'):
      assert function is seen
      continue
    inputs, rest = jax.jit(function)({}, pixels, 1, 2)
    assert rest == (1, 2)
    assert inputs.dtype == jnp.float32
    np.testing.assert_allclose(inputs, expected, rtol=1e-5, atol=1e-6)


def test_pixels_need_a_mean_and_a_deviation_of_each_channel():
  model = Model(*[lambda *inputs: inputs] * 4)
  with pytest.raises(ValueError, match='got 1 and 2 numbers'):
    with_pixels(model, mean=(0.5,), std=(0.5, 0.5))
  grey = with_pixels(model, mean=(0.5,), std=(0.5,))
  with pytest.raises(ValueError, match='have 1 numbers, images 3 channels'):
    grey.predict({}, np.zeros((2, 4, 4, 3), np.uint8), ())

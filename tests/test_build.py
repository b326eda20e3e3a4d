"""Every config builds: at the paper's scale in the abstract, one for real."""

import functools
from unittest import mock

import jax
import numpy as np
import pytest
from commands import build_cheaply

from codistill import chunked, precision
from codistill.algorithm import Peer, codistill
from codistill.exchange.memory import FrozenExchange, InMemoryExchange
from codistill.models import resnet
from experiments import build as build_lib
from experiments import config as config_lib
from experiments import config_file, networks, objective
from experiments.build import build
from experiments.errors import UserError
from experiments.tasks import make_task

every_config = pytest.mark.parametrize('name', config_file.names())


# At the paper's scale: examples an update, parameters (those of the click DNN:
# 26 tables of 100,000 × 16; 442 → 2560 → 1024 → 256 → 1; those of a ResNet-32,
# 464,154 for ten classes, and of its projections and more classes), features.
SIZES = {
  'cifar100': (64, 464_154 + 2_752 + 90 * 65, (64,)),
  'images': (16_384, 25_557_032, (2_048,)),
  'text': (16_384, 44_403_654, (32, 1_024)),
  'clicks': (
    4_096,
    26 * 100_000 * 16 + 443 * 2_560 + 2_561 * 1_024 + 1_025 * 256 + 257,
    (256,),
  ),
}


# It compiles fast.
DNN = {'model.name': 'dnn', 'model.dnn.hidden': (8,)}


def smoke(name='imagenet_codistill', **changes):
  config = config_lib.load(f'{name}:smoke')
  config.num_devices = 1
  config.update_from_flattened_dict(changes)
  return config


# Networks that agree in all of these have the same shapes, traced once.
SHAPES_OF = (
  *('model', 'optimizer', 'batch_size', 'eval_batch_size', 'num_microbatches'),
  *('num_async_workers', 'average_decay'),
)
states, traced = {}, set()


def shapes_of(tree):
  return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@every_config
def test_at_the_papers_scale_an_update_keeps_each_networks_shape(name):
  config = config_lib.load(name)
  task = make_task(config.data)
  experiment = build_cheaply(config, None, dataset=task.without_examples())
  batch = task.abstract_batch(config.batch_size)
  members = {}
  for member, (network, own) in enumerate(networks.of_members(config)):
    settings = own.to_dict()
    keys = [network, config.data.name, *(settings[key] for key in SHAPES_OF)]
    shape = str(keys)
    members.setdefault(shape, member)
    if shape not in states:
      states[shape] = jax.eval_shape(functools.partial(experiment.init, member))
      if member == 0:  # Another member's network may be of any size.
        model = experiment.networks[0].model
        assert_sizes(config, task, model, states[shape].variables)
  held, kind = experiment.teacher_precision, config.codistill.teacher
  # With two networks, each learns from the other.
  for shape, taught_by in zip(members, reversed(members), strict=True):
    update = shape, taught_by, held, kind
    if update in traced:
      continue
    traced.add(update)
    state, peers = states[shape], ()
    if experiment.updates.needs_peers:
      peers = (states[taught_by],)
    arguments = (
      *(state, batch),
      tuple(precision.abstract(peer.variables, held) for peer in peers),
      tuple(peer.memory for peer in peers),
      *(True, tuple(experiment.models([members[taught_by]] * len(peers)))),
    )
    descend = experiment.updates.descends[state.network]
    new, metrics, _ = jax.eval_shape(functools.partial(descend, *arguments))
    assert shapes_of(state) == shapes_of(new)
    assert 'distill_loss' in metrics
    assert all(value.shape == () for value in metrics.values())


def assert_sizes(config, task, model, variables):
  examples, parameters, features = SIZES[
    'cifar100' if config.data.name == 'cifar100' else task.kind
  ]
  assert config.batch_size * config.num_async_workers == examples
  count = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
  assert count == parameters
  prediction, _ = jax.eval_shape(
    model.predict,
    variables,
    task.abstract_batch(config.eval_batch_size)['inputs'],
    jax.eval_shape(lambda: model.memory(config.eval_batch_size)),
  )
  assert prediction.features.shape == (config.eval_batch_size, *features)


def test_one_codistilling_update_of_resnet_50s_blocks_for_real(monkeypatch):
  # With and without a stride; all sixteen take half a minute to compile.
  stages = resnet._IMAGENET_STAGES
  monkeypatch.setitem(stages, 50, ((1, 1), stages[50][1]))
  config = config_lib.load('imagenet_codistill')
  config.batch_size = config.eval_batch_size = 2
  config.model.resnet.batch_norm_group_size = 2
  # The network does not know its images' size.
  config.data.image_shape = (32, 32, 3)
  config.num_devices = 1
  task = make_task(config.data)
  experiment = build(config, None, task.without_examples())
  state, peer = experiment.init(0), experiment.init(1)
  before = np.array(state.variables['params']['head']['kernel'])
  batch = task.made_up_batch(2, seed=0)
  teacher = Peer(1, 0, peer.variables)
  state, metrics = experiment.updates.codistill(state, batch, (teacher,))
  # A head near zero predicts all classes alike.
  for name in ('task_loss', 'distill_loss'):
    np.testing.assert_allclose(metrics[name], np.log(1000), atol=0.5)
  after = state.variables['params']['head']['kernel']
  assert np.abs(after - before).max() > 1e-4
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@every_config
@pytest.mark.parametrize('variant', ['laptop', 'smoke'])
def test_small_variants_build_with_their_data(name, variant):
  config = config_lib.load(f'{name}:{variant}')
  config.num_devices = 1
  experiment = build(config, None)
  batch = next(experiment.batches(0, 0))
  shape = {
    'text': (config.data.get('sequence_length'),),
    'images': {'laptop': (8, 8, 1), 'smoke': (16, 16, 3)}[variant],
    'clicks': (26,),
  }[experiment.task.kind]
  inputs = batch['inputs']
  if experiment.task.kind == 'clicks':
    inputs = inputs['categories']
  assert inputs.shape == (config.batch_size, *shape)
  # Made-up examples of a benchmark look like real ones.
  task, size = experiment.task, config.batch_size
  for made in (task.abstract_batch(size), task.made_up_batch(size, seed=0)):
    assert shapes_of(made) == shapes_of(batch)
  assert len(experiment.members) == config.codistill.members


def test_arms_are_what_they_are_called():
  arms = ('sync', 'codistill', 'ensemble', 'label_smoothing')
  built = [build(smoke(f'imagenet_{arm}'), None) for arm in arms]
  sync, codistilled, ensemble, smoothing = built
  assert isinstance(codistilled.exchange, InMemoryExchange)
  for arm in (sync, ensemble, smoothing):
    assert isinstance(arm.exchange, FrozenExchange)
  assert [len(arm.members) for arm in built] == [1, 2, 2, 1]
  for arm in (sync, ensemble):
    assert arm.burn_in_steps == arm.num_steps
  assert not smoothing.updates.needs_peers
  # One member of an ensemble is a run.
  assert build(smoke('imagenet_ensemble'), 1).members == (1,)


def test_the_base_changes_with_the_number_of_steps():
  config = smoke('imagenet_sync', num_steps=20)
  assert config.codistill.burn_in_steps == 20
  assert config.schedule.warmup_cosine.num_steps == 20


def test_unigram_smoothing_takes_the_labels_frequencies():
  # Network and schedule are not those of the config.
  changes = {'codistill.teacher': 'unigram', 'schedule.name': 'constant', **DNN}
  experiment = build(smoke('imagenet_label_smoothing', **changes), None)
  state, batch = experiment.init(0), next(experiment.batches(0, 0))
  prediction, _, _ = jax.jit(experiment.networks[0].model.forward)(
    state.variables, batch['inputs'], (), jax.random.key(0)
  )
  unigram = experiment.dataset.label_distribution()
  by_hand = -(unigram * jax.nn.log_softmax(prediction.logits)).sum(-1).mean()
  _, metrics = experiment.updates.codistill(state, batch, ())
  np.testing.assert_allclose(metrics['distill_loss'], by_hand, rtol=1e-5)
  assert np.isfinite(metrics['task_loss'])


# The sources of diversity, each own or same.
SOURCES = ('initialization', 'order', 'partition')


def examples_of(experiment, member, num_batches=3):
  batches = experiment.batches(member, 0)
  inputs = [np.asarray(next(batches)['inputs']) for _ in range(num_batches)]
  return np.concatenate(inputs)


def weights_of(experiment, member):
  params = experiment.init(member).variables['params']
  return np.asarray(jax.tree.leaves(params)[1])


def built(name='imagenet_codistill', **changes):
  return build_cheaply(smoke(name, **DNN, **changes), None)


def diverse(**own):
  return built(**{f'diversity.{key}': own.get(key, 'same') for key in SOURCES})


@pytest.mark.parametrize('source', [None, *SOURCES])
def test_each_source_alone_drives_two_copies_apart_and_none_does_not(source):
  experiment = diverse(**{source: 'own'} if source else {})
  members = experiment.start()
  steps = experiment.burn_in_steps, experiment.num_steps
  for _ in codistill(members, experiment.updates, experiment.exchange, *steps):
    pass
  one, other = (jax.device_get(member.state.variables) for member in members)
  if source is None:
    jax.tree.map(np.testing.assert_array_equal, one, other)
    return
  difference = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), one['params'], other['params']
  )
  assert max(jax.tree.leaves(difference)) > 1e-3


@pytest.mark.parametrize(
  ('source', 'differ'),
  # Noise goes with the order.
  [('initialization', [True, False, False]), ('order', [False, True, True])],
)
def test_a_source_of_its_own_changes_that_and_nothing_else(source, differ):
  experiment = diverse(**{source: 'own'})
  found = [
    (weights_of(experiment, m), examples_of(experiment, m), noise)
    for m, noise in enumerate(experiment.init(m).key for m in (0, 1))
  ]
  assert [bool((a != b).any()) for a, b in zip(*found, strict=True)] == differ


def test_the_baseline_starts_as_the_first_member_and_seeds_change_it():
  sync, one = built('imagenet_sync'), built()
  np.testing.assert_array_equal(weights_of(sync, 0), weights_of(one, 0))
  other = built(seed=1)
  assert (weights_of(one, 0) != weights_of(other, 0)).any()
  assert (examples_of(one, 0) != examples_of(other, 0)).any()


# Refusals.


REFUSED = {
  ('member', 2): '--member=2 is out of range',
  ('member', -1): '--member=-1 is out of range',
  ('member', 0): 'use --member=all',
  ('codistill.members', 0): 'codistill.members is 0; it must be at least 1',
  ('codistill.burn_in_steps', -1): 'burn_in_steps is -1; it must be',
  ('num_steps', 0): 'num_steps is 0',
  ('codistill.members', 513): 'too few for 513 disjoint',
  ('codistill.teacher', 'uniform'): (
    'stands in for the peers; set codistill.exchange to none'
  ),
  ('seed', -1): 'seed is -1; it must be at least 0',
  ('seed', 2**32 - 10**6): 'it must be less than 4293967296',
  ('model.resnet.width', 0): 'model.resnet.width is 0',
  ('data.image_shape', (28, 28)): 'must be (height, width, channels)',
  ('schedule.warmup_cosine.warmup_steps', 99): (
    'warmup_steps is 99; it must be at least 0 and below num_steps, 8'
  ),
  ('codistill.exchange', 'post'): "exchange is 'post'; it can be memory",
  ('codistill.teacher', 'me'): "teacher is 'me'; it can be peers",
  ('codistill.distill_loss', 'l1'): "'l1'; it can be cross_entropy, kl",
  ('codistill.distill_loss', 'top_k_kl', 'codistill.distill_top_k', 0): (
    'distill_top_k is 0; it must be between 1 and the 1000 classes'
  ),
  ('codistill.temperature', 0.0): 'temperature is 0.0; it must be more than 0',
  ('codistill.peer_average', 'max'): "'max'; it can be probabilities, logits",
  ('codistill.task_schedule', 'linear_ramp(num_steps=9)'): (
    'linear_ramp(num_steps=9), which ends at step 12'
  ),
  ('codistill.topology', 'web'): "no topology 'web'; there are all",
  ('codistill.topology', 'random', 'codistill.num_random_neighbours', 2): (
    'codistill.num_random_neighbours can be 1 to 1'
  ),
  ('codistill.publish_precision', 'int4'): (
    "publish_precision is 'int4'; it can be float32, bfloat16, int8"
  ),
  ('codistill.teacher_precision', 'half'): "teacher_precision is 'half'",
  ('codistill.reload_interval_steps', 0): 'must be at least 1, not 0',
  ('codistill.delay_steps', -1): 'delay_steps must not be negative',
  ('diversity.order', 'other'): "order is 'other'; it can be own, same",
  ('model.name', 'vit'): "'vit'; it can be click_dnn, click_regression, dnn",
  ('model.resnet.depth', 9): 'no ResNet of depth 9',
  ('model.dtype', 'float8'): "dtype is 'float8'; it can be float32",
  **{
    (key, 1): f'a key {key}, which nothing reads; did you mean'
    for key in (
      'data.augmentatoin',
      'model.resnet.dept',
      'optimizer.sgd.momentun',
      'schedule.warmup_cosine.peak_rat',
    )
  },
  ('optimizer.name', 'adam'): (
    "optimizer.name is 'adam', and this variant has no optimizer.adam"
  ),
  ('optimizer.name', 'lamb'): "no optimizer 'lamb'",
  ('schedule.name', 'steps'): "no schedule 'steps'",
  ('num_devices', 3): 'batch_size 16 is not divisible by 3 devices',
  ('num_devices', 99): 'num_devices is 99, but there are 8 devices',
  ('eval_batch_size', 7, 'num_devices', 2): 'eval_batch_size 7 is not',
  ('data.num_classes', 11): 'set data.image_shape and data.num_classes',
  ('data.augmentation', 'blur'): 'blur',
  ('data.eval_split', 'holdout'): 'the splits train and validation, no',
  ('data.mean', (0.5,)): 'need one number per channel: images have 3, got',
  ('num_microbatches', 3): 'does not divide the 16 examples',
  ('num_microbatches', 2): 'BatchNorm takes the whole batch',
  (
    'num_microbatches',
    2,
    'model.name',
    'wide_resnet',
  ): 'of a wide_resnet takes',
  ('num_microbatches', 4, 'model.resnet.batch_norm_group_size', 8): (
    'does not divide the 4 examples that a device computes'
  ),
  ('num_microbatches', 0): 'it must be at least 1',
  ('model.loss_chunk_tokens', -1): 'it must be at least 0',
  ('model.resnet.teacher_batch_norm', 'mine'): 'there are running, batch',
}


@pytest.mark.parametrize(('changes', 'sentence'), REFUSED.items())
def test_configs_that_cannot_be_are_refused_in_a_sentence(changes, sentence):
  keys = dict(zip(changes[::2], changes[1::2], strict=True))
  member = keys.pop('member', None)
  with pytest.raises(UserError) as error:
    build(smoke(**keys), member)
  assert sentence in str(error.value)
  assert '\n' not in str(error.value)


def test_logits_are_held_as_the_device_likes_unless_the_config_says(
  monkeypatch,
):
  made = mock.Mock(side_effect=objective.make_objective)
  monkeypatch.setattr(build_lib, 'make_objective', made)

  def chunk_of(name, **changes):
    config = config_lib.load_changed(name, changes)
    build(config, None, make_task(config.data).without_examples())
    return made.call_args.args[-1]

  # 64 lanes of 32 tokens.
  many = {'data.vocab_size': 10_000, 'num_devices': 1}
  assert chunk_of('lm_codistill:reduced') == 0
  assert chunk_of('lm_codistill:reduced', **many) == 256
  many['model.loss_chunk_tokens'] = 0
  assert chunk_of('lm_codistill:reduced', **many) == 0
  assert chunk_of('lm_codistill') == chunked.fitting_tokens(24_006, 'cpu')
  # A worker's whole batch of the paper's on one accelerator.
  assert chunked.fitting_tokens(24_006, 'gpu') == 128 * 32
  assert chunked.fitting_tokens(10**9, 'cpu') == 1

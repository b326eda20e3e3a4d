import dataclasses
import functools
import io
import itertools
import json
import os
import pathlib
import pickle
import re
import subprocess
import sys
from unittest import mock

import cv2
import numpy as np
import psutil
import pytest
from preparations import write_tfds
from streams import MEMBER, assert_rows_are_slices, assert_same, take

from data.images import augmentation, decoding, imagenet_sample
from data.images import dataset as images
from data.images import sets as image_sets
from data.images.imagenet_sample import encode
from data.images.split import UNLABELLED

ROOT = pathlib.Path(__file__).parents[1]


ARGUMENTS = {
  'train_split': 'train',
  'eval_split': 'test',
  'augmentation': 'none',
  **dict.fromkeys(('unlabelled_split', 'data_dir', 'image_size')),
  **dict.fromkeys(('num_workers', 'num_threads', 'prefetch_batches'), 0),
  'cache': False,
  'padding': 1,
}
AS_IMAGENET = {
  'eval_split': 'validation',
  'augmentation': 'inception',
  'image_size': 16,
}


def make(name, **changes):
  return images.make_images(name, **(ARGUMENTS | changes))


def make_imagenet(folder, **changes):
  return make('imagenet2012', data_dir=folder, **(AS_IMAGENET | changes))


def features_of(shape, num_classes):
  import tensorflow_datasets as tfds

  label = tfds.features.ClassLabel(num_classes=num_classes)
  features = {'image': tfds.features.Image(shape=shape), 'label': label}
  return features | {'id': tfds.features.Text()}


@pytest.fixture(scope='module')
def digits():
  return make('digits')


@pytest.fixture(scope='module')
def pixels():
  """28 random images, the last five of them for tests."""
  rng = np.random.default_rng(0)
  return rng.integers(256, size=(28, 32, 32, 3)).astype(np.uint8)


def write_cifar(folder, stored, num_train, labels=None):
  """Writes files as CIFAR-10."""
  examples = [
    {'id': f'{i}', 'image': data, 'label': labels[i] if labels else min(i, 9)}
    for i, data in enumerate(stored)
  ]
  splits = {'train': examples[:num_train], 'test': examples[num_train:]}
  write_tfds(folder, 'cifar10', '3.0.2', features_of((32, 32, 3), 10), splits)


@pytest.fixture(scope='module')
def cifar(pixels, tmp_path_factory):
  """A function that opens those images as CIFAR-10; arguments change how."""
  folder = tmp_path_factory.mktemp('cifar')
  write_cifar(folder, (encode(image, '.png') for image in pixels), 23)
  return functools.partial(make, 'cifar10', data_dir=folder, padding=4)


def red_and_blue(height, width):
  """Red on the left, blue on the right: crops, flips and channels show."""
  image = np.zeros((height, width, 3), np.uint8)
  image[:, : width // 2, 0] = 255
  image[:, width // 2 :, 2] = 255
  return image


def write_imagenet(folder, stored, labels=7 * [*range(0, 1_000, 100)]):
  """Writes files in ImageNet's form, the first three for validation, too."""
  examples = [
    {'file_name': f'{i}.JPEG', 'image': data, 'label': label}
    for i, (data, label) in enumerate(zip(stored, labels, strict=False))
  ]
  imagenet_sample.write(folder, {'train': examples, 'validation': examples[:3]})
  return folder


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory):
  """A folder with a few JPEGs of varying size as ImageNet."""
  sizes = [(40, 60), (60, 40), (20, 90), (64, 64), (33, 47)]
  stored = [encode(red_and_blue(*size)) for size in sizes]
  # Grain takes longer to shuffle few examples.
  return write_imagenet(tmp_path_factory.mktemp('imagenet'), 13 * stored)


@pytest.fixture(scope='module')
def damaged(tmp_path_factory):
  """Ten grey images of level 20 · (i + 1), of which four are damaged."""
  levels = 20 * np.arange(1, 11, dtype=np.uint8)
  stored = [encode(np.full((40, 50, 3), level)) for level in levels]
  stored[1], stored[2] = stored[1][:200], b''
  stored[4], stored[9] = b'no image at all', b'nor this'
  return write_imagenet(tmp_path_factory.mktemp('damaged'), stored)


def contents(batches, count=None):
  """The images of batches as bytes, which tell examples apart."""
  inputs = np.concatenate([batch['inputs'] for batch in batches])[:count]
  return [image.tobytes() for image in inputs]


# Streams.


def test_a_stream_is_a_pure_function_of_its_arguments(monkeypatch):
  threaded = {'num_threads': 2, 'prefetch_batches': 4}
  shifted = make('digits', augmentation='shift', **threaded)

  def batches(count, dataset=shifted, **changes):
    return take(dataset.train(**(MEMBER | changes), batch_size=64), count)

  # Batch 50 is in the third epoch.
  whole = batches(53)
  assert {key: (a.shape, a.dtype) for key, a in whole[0].items()} == {
    'inputs': ((64, *shifted.image_shape), np.uint8),
    'labels': ((64,), np.int32),
  }
  # It is the same in pieces of any size, by any number of threads.
  monkeypatch.setattr(images, '_PIECE', 20)
  for start in (0, 1, 4, 50):
    assert_same(batches(3, start=start), whole[start : start + 3])
  assert_same(batches(9, make('digits', augmentation='shift')), whole[:9])
  # Members that share examples and seed draw the same.
  assert_same(batches(3, member=1, members=2), whole[:3])
  assert contents(batches(3, seed=4)) != contents(whole[:3])
  with pytest.raises(ValueError, match='start must not be negative, got -1'):
    batches(1, start=-1)


@pytest.mark.parametrize('partition', ['disjoint', 'shared'])
def test_each_epoch_has_the_shard_once_in_a_new_order(partition, cifar, pixels):
  everything = [image.tobytes() for image in pixels[:23]]
  label_of = {image: min(i, 9) for i, image in enumerate(everything)}
  parts = [everything[::2], everything[1::2]]
  shards = parts if partition == 'disjoint' else [everything] * 2
  for member, shard in enumerate(shards):
    own = {'member': member, 'members': 2, 'partition': partition, 'seed': 0}
    # Batches of 5 straddle epochs, and every one of them is full.
    batches = take(cifar().train(**own, batch_size=5), 10)
    seen = contents(batches)
    first, second = seen[: len(shard)], seen[len(shard) : 2 * len(shard)]
    assert sorted(first) == sorted(second) == sorted(shard)
    assert first != second
    labels = np.concatenate([batch['labels'] for batch in batches])
    assert [label_of[image] for image in seen] == labels.tolist()


def test_some_rows_of_a_batch_are_what_they_are_in_all_of_it(cifar, imagenet):
  # One host's rows, another's, and rows that are neither a block nor a half.
  wanted = [range(4), range(4, 8), [1, 2, 6]]
  for dataset in (
    *(cifar(augmentation=kind) for kind in ('none', 'shift', 'shift_flip')),
    make_imagenet(imagenet),
  ):
    # Batch 2 straddles two epochs of CIFAR's 23 images.
    stream = functools.partial(dataset.train, **MEMBER, batch_size=8, start=1)
    assert_rows_are_slices(stream, wanted, 3)
  # The last batch is not full: of 5 test images, 4 to 7 are one and padding.
  for size, split in itertools.product((8, 9), ('train', 'test')):
    stream = functools.partial(cifar().eval, split, batch_size=size)
    assert_rows_are_slices(stream, wanted, 3)


def test_no_image_is_read_for_rows_that_are_not_wanted(digits):
  read = mock.Mock(wraps=digits.train_split.read)
  split = dataclasses.replace(digits.train_split, read=read)
  watched = dataclasses.replace(digits, train_split=split, test_split=split)
  rows = np.array([1, 5])
  next(watched.train(**MEMBER, batch_size=8, rows=rows))
  next(watched.eval('test', batch_size=8, rows=rows))
  assert [len(call.args[0]) for call in read.call_args_list] == [2, 2]


@pytest.mark.parametrize(('split', 'count'), [('train', 1437), ('test', 360)])
def test_evaluation_counts_each_example_once(split, count, digits):
  shifted = make('digits', augmentation='shift', num_threads=2)
  for ask in (digits.num_examples, lambda s: digits.eval(s, batch_size=4)):
    with pytest.raises(ValueError, match="Unknown split 'validation'"):
      ask('validation')
  assert digits.num_examples(split) == count
  whole = contents(digits.eval(split, batch_size=count))
  for batch_size in (100, 120, 2000):
    batches = list(digits.eval(split, batch_size=batch_size))
    assert {len(batch['inputs']) for batch in batches} == {batch_size}
    masks = np.concatenate([batch['mask'] for batch in batches])
    assert masks.dtype == np.float32
    np.testing.assert_array_equal(masks, np.arange(len(masks)) < count)
    assert not batches[-1]['inputs'][batches[-1]['mask'] == 0].any()
    assert not batches[-1]['labels'][batches[-1]['mask'] == 0].any()
    assert contents(batches, count) == whole
    # It is not augmented, and the same in pieces of any size.
    with mock.patch.object(images, '_PIECE', 50):
      others = list(shifted.eval(split, batch_size=batch_size))
    assert_same(batches, others)


# Digits.


def test_digits_are_split_in_a_fixed_stratified_disjoint_way(digits):
  from sklearn import datasets, model_selection

  assert (digits.num_train, digits.num_classes) == (1437, 10)
  order = np.load(ROOT / 'data/images/digits_order.npy')
  labels = datasets.load_digits().target
  drawn = model_selection.train_test_split(
    np.arange(1797), test_size=360, stratify=labels, random_state=0
  )
  np.testing.assert_array_equal(order, np.concatenate(drawn))
  [train] = digits.eval('train', batch_size=1437)
  [test] = digits.eval('test', batch_size=360)
  stored = datasets.load_digits().images.astype(np.float32)
  both = np.concatenate([train['inputs'], test['inputs']])
  rescaled = both[..., 0] / 255 * 16
  # No two digits have the same pixels, so this is one to one; 8 bits hold
  # sixteenths to 1/510.
  levels = np.rint(rescaled)
  assert np.abs(rescaled - levels).max() < 16 / 255
  found = sorted(image.astype(np.float32).tobytes() for image in levels)
  assert found == sorted(image.tobytes() for image in stored)
  shares = (np.bincount(part['labels'], minlength=10) for part in (train, test))
  np.testing.assert_allclose(*(n / n.sum() for n in shares), atol=1 / 360)
  # The split itself must stay, because published numbers depend on it.
  assert test['labels'][:10].tolist() == [7, 6, 3, 7, 7, 3, 2, 8, 9, 3]


def test_parts_of_digits_are_all_of_them_and_do_not_meet(digits):
  def read(some):
    return some.train_split.read(np.arange(some.num_train))[0]

  parts = ('train[:50%]', 'train[50%:]')
  halves = [read(make('digits', train_split=part)) for part in parts]
  pixels = read(digits)
  np.testing.assert_array_equal(np.concatenate(halves), pixels)
  # Known facts about digits are true, to the three digits that are quoted.
  facts = image_sets.facts_of('digits')
  shape = digits.image_shape, digits.num_classes
  assert (facts['image_shape'], facts['num_classes']) == shape
  for key, found in (('mean', np.mean), ('std', np.std)):
    assert facts[key] == pytest.approx([found(pixels / 255)], abs=1e-3)


@pytest.mark.parametrize('cache', [False, True])
def test_unlabelled_examples_come_besides_and_without_their_labels(
  cache, cifar, pixels
):
  splits = {'train_split': 'train[:9]', 'unlabelled_split': 'train[9:20]'}
  some = cifar(**splits, cache=cache)
  assert some.num_train == 20
  found, labels = some.train_split.read(np.array([3, 19, 9, 0]))
  found, _ = some.fit(found)
  np.testing.assert_array_equal(found, pixels[[3, 19, 9, 0]])
  assert labels.tolist() == [3, UNLABELLED, UNLABELLED, 0]
  [batch] = take(some.train(**MEMBER, batch_size=20), 1)
  assert sorted(batch['labels']) == [UNLABELLED] * 11 + [*range(9)]
  # Nothing else counts them.
  assert some.num_examples('train') == 9
  shares = np.append(np.ones(9), 0) / 9
  np.testing.assert_allclose(some.label_distribution(), shares, rtol=1e-6)
  # Members divide them, too.
  for member, count in ((0, 5), (1, 6)):
    own = {'member': member, 'members': 2, 'partition': 'disjoint'}
    [batch] = take(some.train(**(MEMBER | own), batch_size=10), 1)
    assert (batch['labels'] == UNLABELLED).sum() == count


# Augmentation.


def test_shift_draws_every_crop_of_the_padded_image(cifar, pixels):
  crops = set()
  padded = np.pad(pixels[0], [(1, 1), (1, 1), (0, 0)])
  for kind, image in (('shift', padded), ('shift_flip', padded[:, ::-1])):
    windows = np.lib.stride_tricks.sliding_window_view(image, pixels[0].shape)
    crops |= {crop.tobytes() for crop in windows.reshape(9, *pixels[0].shape)}
    # A shard may be smaller than a batch.
    first = MEMBER | {'members': 23, 'partition': 'disjoint'}
    stream = cifar(augmentation=kind, padding=1).train(**first, batch_size=300)
    [batch] = take(stream, 1)
    assert set(contents([batch])) == crops
  assert len(crops) == 18


def test_inception_makes_images_of_varying_size_alike(imagenet):
  imagenet2012 = make_imagenet(imagenet, num_threads=2, prefetch_batches=2)
  assert imagenet2012.image_shape == (16, 16, 3)
  streams = [imagenet2012.train(**MEMBER, batch_size=100) for _ in range(2)]
  [batch], others = (take(stream, 1) for stream in streams)
  assert_same([batch], others)
  assert batch['inputs'].shape == (100, 16, 16, 3)
  inputs = batch['inputs'] / 255
  # Red lies left in about half of the images that contain the border.
  redder = inputs[:, :, :8, 0].sum((1, 2)) - inputs[:, :, 8:, 0].sum((1, 2))
  assert 15 < (redder > 1).sum() < 85
  assert 15 < (redder < -1).sum() < 85
  # Evaluation takes the centre crop: the border of red and blue is in the
  # middle, away from which JPEG is exact.
  [batch] = imagenet2012.eval('test', batch_size=3)
  assert batch['inputs'].shape == (3, 16, 16, 3)
  colours = batch['inputs'][..., [0, 2]].astype(int)
  assert np.abs(colours[:, :, :5] - [255, 0]).max() < 25
  assert np.abs(colours[:, :, -5:] - [0, 255]).max() < 25


def test_random_crops_have_the_areas_and_aspects_of_the_recipe():
  rng = np.random.default_rng(0)

  def parts_of(size, count):
    image = mock.Mock(decoding.Encoded, size=size)
    image.part.return_value = np.zeros((8, 8, 3), np.uint8)
    for _ in range(count):
      augmentation.random_resized_crop(image, rng, 8)
    return np.array([call.args[2:4] for call in image.part.call_args_list]).T

  rows, columns = parts_of((300, 300), 500)
  areas = rows * columns / 300**2
  aspects = columns / rows
  assert 0.079 < areas.min() < 0.12 < 0.9 < areas.max() <= 1
  assert 0.74 < aspects.min() < 0.78 < 1.28 < aspects.max() < 1.35
  # No crop of the recipe fits into a ribbon, so it takes the centre square.
  assert parts_of((10, 900), 1).tolist() == [[10], [10]]


def test_resizing_counts_every_pixel():
  # One white line in eight, which a filter that skips pixels misses.
  lines = np.zeros((64, 64, 1), np.uint8)
  lines[::8] = 255
  small = augmentation.resize(lines, 8, 8)
  assert small.shape == (8, 8, 1)
  assert np.abs(small.astype(int) - 255 // 8).max() <= 1
  # It also shrinks to just over a half, where each column has one white pixel.
  pixels = 255 * np.eye(40, dtype=np.uint8)[..., None]
  assert augmentation.resize(pixels, 21, 40).any(0).all()


def test_wrong_arguments_are_named(imagenet):
  varying = AS_IMAGENET | {'augmentation': 'none'}
  held = AS_IMAGENET | {'cache': True}
  for name, changes, sentence in (
    ('digits', {'augmentation': 'mixup'}, "Unknown augmentation 'mixup', exp"),
    ('digits', {'augmentation': 'shift', 'padding': None}, "'shift' needs pad"),
    ('digits', {'augmentation': 'inception'}, 'needs image_size, got None'),
    ('digits', {'cache': True, 'num_workers': 1}, r'set data\.num_workers'),
    ('digits', {'eval_split': 'validation'}, "digits have the splits 'train'"),
    ('digits', {'train_split': 'train[:5%'}, r"no part 'train\["),
    ('digits', {'train_split': 'train[9000:9001]'}, r"no part 'train\["),
    # Varying sizes need a crop and no cache.
    ('imagenet2012', varying, "Images of 'imagenet2012' vary in size"),
    ('imagenet2012', held, r'set data\.cache to False'),
    # Unknown names get the nearest.
    ('fashion_mnst', {}, "called 'fashion_mnst': did you mean fashion_mnist"),
    ('digit', {}, "called 'digit': did you mean digits"),
    ('mnist:0.0.9', {}, "There is no set called 'mnist:0.0.9'"),
    ('not a name', {}, "There is no set called 'not a name'"),
  ):
    folder = None if name == 'digits' else imagenet
    with pytest.raises(ValueError, match=sentence):
      make(name, **({'data_dir': folder} | changes))


# Sets of TFDS.


def test_a_tfds_set_reads_back_what_was_written(cifar, pixels, monkeypatch):
  cifar10 = cifar()
  assert (cifar10.image_shape, cifar10.num_classes) == ((32, 32, 3), 10)
  assert cifar10.num_train == cifar10.num_examples('train') == 23
  for split, expected in (('train', pixels[:23]), ('test', pixels[23:])):
    [batch] = cifar10.eval(split, batch_size=len(expected))
    np.testing.assert_array_equal(batch['inputs'], expected)
  held_out = cifar(train_split='train[:13]', eval_split='train[13:]')
  assert held_out.num_train == 13
  [batch] = held_out.eval('test', batch_size=10)
  np.testing.assert_array_equal(batch['inputs'], pixels[13:23])

  # Labels alone need no image.
  monkeypatch.setattr(cv2, 'imdecode', None)
  shares = np.array([1] * 9 + [14]) / 23
  found = cifar10.label_distribution()
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, shares, rtol=1e-6)


def test_a_set_that_tfds_does_not_know_is_read_from_its_files(tmp_path):
  # A grey image in a colour set has three channels.
  image = encode(np.full((4, 4, 1), 77, np.uint8))
  grey = {'image': image, 'label': 2, 'id': ''}
  splits = {'train': [grey] * 2, 'test': [grey]}
  write_tfds(tmp_path, 'my_shapes', '1.0.0', features_of((4, 4, 3), 3), splits)
  mine = make('my_shapes', data_dir=tmp_path)
  assert (mine.image_shape, mine.num_classes) == ((4, 4, 3), 3)
  [batch] = mine.eval('test', batch_size=1)
  np.testing.assert_array_equal(batch['inputs'], np.full((1, 4, 4, 3), 77))


def test_sets_that_are_not_prepared_or_of_another_form_are_refused(
  tmp_path, caplog
):
  sentence = (
    rf'\Afashion_mnist is not prepared in {tmp_path}/.* `python -m '
    r'scripts.prepare_images fashion_mnist` once, or set TFDS_DATA_DIR .*\Z'
  )
  with pytest.raises(images.NotPreparedError, match=sentence):
    make('fashion_mnist', data_dir=tmp_path)
  assert caplog.messages == os.listdir(tmp_path) == []
  features = features_of((28, 28, 1), 10)
  write_tfds(tmp_path, 'mnist', '3.0.1', features, {'train': []}, 'tfrecord')
  with pytest.raises(images.NotPreparedError, match='as tfrecord, not as arr'):
    make('mnist', data_dir=tmp_path)
  del features['image']
  write_tfds(tmp_path, 'my_reviews', '1.0.0', features, {'train': []})
  with pytest.raises(ValueError, match='not an image classification set'):
    make('my_reviews', data_dir=tmp_path)


def test_a_cached_set_is_the_same_set_and_decoded_once(cifar, monkeypatch):
  decode = mock.Mock(wraps=cv2.imdecode)
  monkeypatch.setattr(cv2, 'imdecode', decode)
  plain = cifar(augmentation='shift_flip')
  cached = cifar(augmentation='shift_flip', cache=True, num_threads=2)
  assert not decode.called
  for _ in range(2):
    list(cached.eval('train', batch_size=4))
  assert decode.call_count == cached.num_train
  own = MEMBER | {'member': 1, 'members': 2, 'partition': 'disjoint'}
  assert_same(*(take(s.train(**own, batch_size=7), 5) for s in (plain, cached)))
  for split in ('train', 'test'):
    assert_same(*(list(s.eval(split, batch_size=4)) for s in (plain, cached)))


# Images as ImageNet stores them, and as they are found.


def level_of(batch):
  """The grey level of each image of a batch, 0 for a black one."""
  return np.rint(batch['inputs'].mean((1, 2, 3)) / 20).astype(int).tolist()


def test_the_sample_has_the_form_of_imagenet(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match=r'cannot be written to .* set XDG_CAC'):
    make('imagenet_sample', **AS_IMAGENET)
  monkeypatch.undo()
  sample = make('imagenet_sample', **AS_IMAGENET)
  assert (sample.image_shape, sample.num_classes) == ((16, 16, 3), 1000)
  assert (sample.num_train, sample.num_examples('test')) == (512, 32)
  # It is kept, and found by the name of the real one.
  kept = pathlib.Path(os.environ['XDG_CACHE_HOME'], 'codistill')
  [folder] = kept.glob('imagenet-sample-*')
  real = make_imagenet(folder)
  stream = MEMBER | {'batch_size': 64}
  assert_same(take(sample.train(**stream), 2), take(real.train(**stream), 2))


def test_every_kind_of_file_that_imagenet_has_is_read(tmp_path):
  PIL = pytest.importorskip('PIL.Image')
  pixels = red_and_blue(64, 64)
  cmyk = io.BytesIO()
  PIL.fromarray(pixels).convert('CMYK').save(cmyk, 'JPEG')
  grey = encode(np.full((64, 64, 1), 77, np.uint8))
  stored = [encode(pixels, '.png'), cmyk.getvalue(), grey, encode(pixels)]
  folder = write_imagenet(tmp_path, stored)
  [batch] = make_imagenet(folder).eval('test', batch_size=3)
  assert 'corrupt' not in batch
  *coloured, grey = batch['inputs'].astype(int)
  for found in coloured:
    assert np.abs(found[:, :7] - [255, 0, 0]).max() < 9
    assert np.abs(found[:, 9:] - [0, 0, 255]).max() < 9
  assert (grey == 77).all()


def test_a_corrupt_image_is_replaced_by_the_members_next(damaged):
  # The next whole even one stands in for an even one; after the last odd one
  # comes the first.
  for member, members, stands_in in (
    (0, 1, {1: 3, 2: 3, 4: 5, 9: 0}),
    (0, 2, {2: 6, 4: 6}),
    (1, 2, {1: 3, 9: 3}),
  ):
    shard = range(member, 10, members)
    own = {'member': member, 'members': members, 'partition': 'disjoint'}
    stream = make_imagenet(damaged).train(**own, seed=0, batch_size=len(shard))
    for batch in take(stream, 3):
      found = level_of(batch)
      assert sorted(found) == sorted(stands_in.get(i, i) + 1 for i in shard)
      assert [level - 1 for level in found] == (batch['labels'] // 100).tolist()
      names = {f'imagenet2012 train[{i}] ({i}.JPEG)' for i in stands_in}
      assert set(batch['corrupt']) == names


def test_corrupt_images_leave_a_stream_pure(damaged):
  damaged = make_imagenet(damaged)
  stream = functools.partial(damaged.train, **MEMBER, batch_size=6)
  whole = take(stream(), 6)
  assert sum('corrupt' in batch for batch in whole) > 3
  assert_same(take(stream(start=2), 4), whole[2:])
  # A row does not depend on whether another one is corrupt.
  for rows in ([0, 1, 4], [2, 3, 5]):
    part = take(stream(rows=np.array(rows)), 6)
    for key in ('inputs', 'labels'):
      wanted = [batch[key][rows] for batch in whole]
      np.testing.assert_array_equal([batch[key] for batch in part], wanted)


def test_in_evaluation_a_corrupt_image_is_black_and_counts(damaged):
  batches = list(make_imagenet(damaged).eval('train', batch_size=5))
  assert [level_of(b) for b in batches] == [[1, 0, 0, 4, 0], [6, 7, 8, 9, 0]]
  assert sum(batch['mask'].sum() for batch in batches) == 10
  assert batches[0]['labels'].tolist() == [0, 100, 200, 300, 400]
  assert len(batches[0]['corrupt']) == 3
  assert batches[1]['corrupt'] == ['imagenet2012 train[9] (9.JPEG)']


def test_a_cached_set_names_corrupt_images_too(tmp_path):
  whole = encode(np.full((32, 32, 3), 40, np.uint8), '.png')
  write_cifar(tmp_path, [whole, b'damaged'] * 2, 2)
  for cache in (False, True):
    small = make('cifar10', data_dir=tmp_path, cache=cache)
    [batch] = small.eval('test', batch_size=2)
    assert batch['corrupt'] == ['cifar10 test[1]']
    assert not batch['inputs'][1].any()
    [batch] = take(small.train(**MEMBER, batch_size=2), 1)
    assert batch['corrupt'] == ['cifar10 train[1]']
    assert (batch['inputs'] == 40).all()


def test_only_a_set_that_needs_labels_misses_them(tmp_path):
  rubbish = make_imagenet(write_imagenet(tmp_path / 'bad', [b'rubbish'] * 5))
  with pytest.raises(images.BadDataError, match='almost no example can be dec'):
    next(rubbish.train(**MEMBER, batch_size=2))
  stored = [encode(red_and_blue(40, 40))] * 3 + [b'rubbish']
  folder = write_imagenet(tmp_path, stored, [3, 5, -1, -1])
  parts = {'train_split': 'train[:2]', 'unlabelled_split': 'train[2:]'}
  some = make_imagenet(folder, **parts)
  [batch] = take(some.train(**MEMBER, batch_size=4), 1)
  # The first example stands in for a corrupt one, with its label.
  assert sorted(batch['labels']) == [-1, 3, 3, 5]
  assert ['(3.JPEG)' in name for name in batch['corrupt']] == [True]


def test_a_label_out_of_range_is_named(tmp_path_factory):
  stored = [encode(red_and_blue(40, 40))] * 4
  parts = {'train_split': 'train[:3]', 'unlabelled_split': 'train[3:]'}
  for label, num_classes, changes in (
    # ImageNet's split `test`, one class too many, and a set that needs none.
    (-1, 1_000, {}),
    (200, 150, {}),
    (-1, 1_000, parts),
  ):
    folder = tmp_path_factory.mktemp('images')
    write_imagenet(folder, stored, [3, 5, label, 4])
    wrong = make_imagenet(folder, **changes)
    wrong = dataclasses.replace(wrong, num_classes=num_classes)
    named = rf'imagenet2012 .*\[2\] \(2.JPEG\) has label {label}'
    sentence = f'{named}, and there are {num_classes} classes'
    for ask in (
      wrong.train(**MEMBER, batch_size=4).__next__,
      wrong.eval('test', batch_size=3).__next__,
      wrong.label_distribution,
    ):
      with pytest.raises(images.BadDataError, match=sentence):
        ask()


def test_a_split_or_file_that_is_not_there_is_named(tmp_path, imagenet):
  for split in ('train_split', 'eval_split'):
    for wrong in ('holdout', 'holdout[:10]', 'train[:200%]', 'train['):
      no_split = re.escape(f'has the splits train and validation, no {wrong!r}')
      with pytest.raises(ValueError, match=rf'\Aimagenet2012.*{no_split}.*\Z'):
        make_imagenet(imagenet, **{split: wrong})
  [gone] = write_imagenet(tmp_path, [b''] * 3).rglob('*validation*')
  gone.unlink()
  with pytest.raises(images.NotPreparedError, match=r'validation.* is missing'):
    make_imagenet(tmp_path)


# Decoding.


def test_the_size_of_a_jpeg_is_in_its_header():
  rng = np.random.default_rng(0)
  sides = (1, 1), (37, 500), (300, 17)
  for size, channels in itertools.product(sides, (1, 3)):
    pixels = rng.integers(256, size=(*size, channels)).astype(np.uint8)
    data = encode(pixels)
    assert decoding.jpeg_size(data) == size
    # A Huffman table, with a mark similar to that of sizes, may come first.
    table = b'\xff\xc4\x00\x08' + bytes(6)
    assert decoding.jpeg_size(data[:2] + table + data[2:]) == size
    # Cut short anywhere, it gives the same size or none, and never more.
    for end in range(0, len(data), 7):
      assert decoding.jpeg_size(data[:end]) in (None, size)
  assert decoding.jpeg_size(encode(pixels, '.png')) is None


@pytest.mark.parametrize('extension', ['.jpg', '.png'])
def test_a_part_is_that_of_the_whole_image(extension):
  small = imagenet_sample.photograph(np.random.default_rng(0), 60, 80)
  pixels = cv2.resize(small, (321, 243))
  image = decoding.Encoded(encode(pixels, extension), 3)
  for at_least, reduction in ((200, 1), (90, 2), (40, 4), (1, 8)):
    reduction = reduction if extension == '.jpg' else 1
    part = image.part(32, 40, 184, 240, at_least)
    rows, columns = (int(np.ceil(side / reduction)) for side in (184, 240))
    assert part.shape == (rows, columns, 3)
    assert min(part.shape[:2]) >= at_least or reduction == 1
    whole, size = image.whole[32:216, 40:280], part.shape[1::-1]
    expected = cv2.resize(whole, size, interpolation=cv2.INTER_AREA)
    assert np.abs(part.astype(int) - expected).mean() < 3


# In programs of their own, because checked annotations cannot be pickled.

PROGRAM = """
import contextlib, json, logging, pathlib, pickle, signal, sys
import psutil

# Grain works without these, says so, and starts in a third of the time.
sys.modules['jax'] = sys.modules['orbax'] = None
logging.disable(logging.WARNING)
from data.images import dataset as images
logging.disable(logging.NOTSET)

images._PIECE = 4
arguments, stream, wrong, out = map(json.loads, sys.argv[1:])


def make(**changes):
  return images.make_images('imagenet2012', **(arguments | changes))


if __name__ == '__main__':
  slow = {'tensorflow_datasets', 'sklearn'} & set(sys.modules)
  with contextlib.closing(make(num_workers=2).train(**stream)) as batches:
    found = [next(batches)]
    # The one before them tracks resources until this process ends.
    every = psutil.Process().children()
    children = every[-2:]
    for child in every:
      # Terminals and schedulers send these to all, but they are for the parent.
      for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        child.send_signal(number)
    found += [next(batches) for _ in range(4)]
  _, alive = psutil.wait_procs(children, timeout=60)
  here = make()
  found += [next(here.eval('test', batch_size=2))]
  here.label_distribution()
  pathlib.Path(out).write_bytes(pickle.dumps(found))
  try:
    next(make(data_dir=wrong, num_workers=1).train(**stream))
  except images.BadDataError as error:
    print(error, alive, slow, 'tensorflow' in sys.modules)
"""


def test_processes_read_what_this_one_reads_and_end_with_it(
  damaged, tmp_path, monkeypatch
):
  wrong = write_imagenet(tmp_path / 'wrong', [encode(red_and_blue(9, 9))], [-1])
  (tmp_path / 'program.py').write_text(PROGRAM)
  arguments = AS_IMAGENET | {'num_threads': 1, 'prefetch_batches': 2}
  stream = MEMBER | {'batch_size': 10, 'start': 3}
  passed = (ARGUMENTS | arguments, stream, str(wrong), str(tmp_path / 'out'))
  files = sorted(damaged.rglob('*'))
  done = subprocess.run(
    [sys.executable, tmp_path / 'program.py', *map(json.dumps, passed)],
    env=os.environ | {'PYTHONPATH': str(ROOT), 'TFDS_DATA_DIR': str(damaged)},
    capture_output=True,
    text=True,
    check=False,
  )
  # The error that ends a stream passes through. Reading needs no TensorFlow,
  # writes nothing, and prints nothing.
  assert (done.returncode, done.stderr) == (0, '')
  assert 'has label -1' in done.stdout
  assert done.stdout.endswith(' [] set() False\n')
  assert sorted(damaged.rglob('*')) == files
  monkeypatch.setattr(images, '_PIECE', 4)
  plain = make_imagenet(damaged)
  held_out = next(plain.eval('test', batch_size=2))
  found = pickle.loads((tmp_path / 'out').read_bytes())
  assert_same(found, [*take(plain.train(**stream), 5), held_out])


ORPHAN = """
import concurrent.futures, multiprocessing, os, time
from data.images import grain_workers

pool = concurrent.futures.ProcessPoolExecutor(
  1, multiprocessing.get_context('spawn'), grain_workers.begin, (0, 1)
)
print(pool.submit(os.getpid).result(), flush=True)
time.sleep(300)
"""


def test_processes_end_when_this_one_is_killed():
  command = [sys.executable, '-c', ORPHAN]
  with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
    worker = psutil.Process(int(process.stdout.readline()))
    process.kill()
  worker.wait(timeout=60)

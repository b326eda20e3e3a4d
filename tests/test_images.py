import dataclasses
import io
import itertools
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import threading

import cv2
import numpy as np
import psutil
import pytest
from commands import rows_of, run_command

from data.images import augmentation, decoding, imagenet_sample
from data.images import dataset as images
from data.images import sets as image_sets
from experiments import results
from experiments.record import read_run

MEMBER = {'member': 0, 'members': 1, 'partition': 'shared', 'seed': 3}


def make(name, **changes):
  arguments = {
    'train_split': 'train',
    'eval_split': 'test',
    'unlabelled_split': None,
    'data_dir': None,
    'augmentation': 'none',
    'padding': 1,
    'image_size': None,
    'cache': False,
    'num_workers': 0,
    'num_threads': 0,
    'prefetch_batches': 0,
  }
  return images.make_images(name, **(arguments | changes))


def write_tfds(
  folder, name, version, features, splits, file_format='array_record'
):
  """Writes a set in TFDS's form, without TensorFlow."""
  from array_record.python import array_record_module

  path = pathlib.Path(folder, name, version)
  path.mkdir(parents=True)
  for split, examples in splits.items():
    file = path / f'{name}-{split}.{file_format}-00000-of-00001'
    writer = array_record_module.ArrayRecordWriter(str(file), 'group_size:1')
    for example in examples:
      writer.write(features.serialize_example(example))
    writer.close()
  features.save_config(path)
  info = {
    'name': name,
    'version': version,
    'fileFormat': file_format,
    'splits': [
      {
        'name': split,
        'shardLengths': [str(len(examples))],
        'numBytes': '1',
        'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
      }
      for split, examples in splits.items()
    ],
    'supervisedKeys': {
      'tuple': {'items': [{'featureKey': 'image'}, {'featureKey': 'label'}]}
    },
  }
  (path / 'dataset_info.json').write_text(json.dumps(info))


def encode(image, extension='.png'):
  return cv2.imencode(extension, image[..., ::-1])[1].tobytes()


def features_of(shape, num_classes, **others):
  import tensorflow_datasets as tfds

  return tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(shape=shape),
      'label': tfds.features.ClassLabel(num_classes=num_classes),
      **others,
    }
  )


@pytest.fixture(scope='module')
def digits():
  return make('digits')


@pytest.fixture(scope='module')
def shifted():
  return make('digits', augmentation='shift', num_threads=2, prefetch_batches=4)


@pytest.fixture(scope='module')
def cifar(tmp_path_factory):
  """A folder with 23 and 5 random images as CIFAR-10, and those images."""
  import tensorflow_datasets as tfds

  folder = tmp_path_factory.mktemp('cifar')
  rng = np.random.default_rng(0)
  pixels = rng.integers(256, size=(28, 32, 32, 3)).astype(np.uint8)
  examples = [
    {'id': f'{i}', 'image': encode(image), 'label': min(i, 9)}
    for i, image in enumerate(pixels)
  ]
  write_tfds(
    folder,
    'cifar10',
    '3.0.2',
    features_of((32, 32, 3), 10, id=tfds.features.Text()),
    {'train': examples[:23], 'test': examples[23:]},
  )
  return folder, pixels


def red_and_blue(height, width):
  """Red on the left, blue on the right: crops, flips and channels show."""
  image = np.zeros((height, width, 3), np.uint8)
  image[:, : width // 2, 0] = 255
  image[:, width // 2 :, 2] = 255
  return image


def write_imagenet(folder, stored, labels=None):
  """Files in ImageNet's form, the first three of them for validation, too."""
  examples = [
    {'file_name': f'{i}.JPEG', 'image': data, 'label': 100 * i}
    for i, data in enumerate(stored)
  ]
  for example, label in zip(examples, labels or (), strict=False):
    example['label'] = label
  imagenet_sample.write(folder, {'train': examples, 'validation': examples[:3]})
  return folder


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory):
  """A folder with a few JPEGs of varying size as ImageNet."""
  sizes = [(40, 60), (60, 40), (20, 90), (64, 64), (33, 47)]
  return write_imagenet(
    tmp_path_factory.mktemp('imagenet'),
    [encode(red_and_blue(*size), '.jpg') for size in sizes],
  )


@pytest.fixture(scope='module')
def damaged(tmp_path_factory):
  """Nine grey images of level 20 · (i + 1), of which 1, 2 and 4 are damaged."""
  stored = [
    encode(np.full((40, 50, 3), 20 * (i + 1), np.uint8), '.jpg')
    for i in range(9)
  ]
  stored[1], stored[2], stored[4] = stored[1][:200], b'', b'no image at all'
  return write_imagenet(tmp_path_factory.mktemp('damaged'), stored)


def make_imagenet(folder, **changes):
  arguments = {
    'data_dir': folder,
    'eval_split': 'validation',
    'augmentation': 'inception',
    'image_size': 16,
  }
  return make('imagenet2012', **(arguments | changes))


def take(stream, count):
  return list(itertools.islice(stream, count))


def assert_same(batches, others):
  assert len(batches) == len(others) > 0
  for batch, other in zip(batches, others, strict=True):
    assert batch.keys() == other.keys()
    for key in batch:
      np.testing.assert_array_equal(batch[key], other[key])


def contents(batches, count=None):
  """The images of batches as bytes, which tell examples apart."""
  inputs = np.concatenate([batch['inputs'] for batch in batches])[:count]
  return [image.tobytes() for image in inputs]


# The training stream.


def test_training_batches_have_their_shapes_and_types(shifted):
  batch = next(shifted.train(**MEMBER, batch_size=32))
  assert batch.keys() == {'inputs', 'labels'}
  assert batch['inputs'].shape == (32, *shifted.image_shape) == (32, 8, 8, 1)
  assert batch['inputs'].dtype == np.uint8
  assert batch['labels'].shape == (32,)
  assert batch['labels'].dtype == np.int32


def test_a_stream_is_a_pure_function_of_its_arguments(shifted):
  first, second = (shifted.train(**MEMBER, batch_size=64) for _ in range(2))
  assert_same(take(first, 5), take(second, 5))


@pytest.mark.parametrize('start', [1, 4, 50])
def test_starting_late_equals_skipping(shifted, start):
  # Batch 50 is in the third epoch.
  whole = take(shifted.train(**MEMBER, batch_size=64), start + 3)
  late = shifted.train(**MEMBER, batch_size=64, start=start)
  assert_same(take(late, 3), whole[start:])


def test_threads_do_not_change_the_stream(shifted):
  alone = make('digits', augmentation='shift')
  batches = [take(s.train(**MEMBER, batch_size=8), 9) for s in (alone, shifted)]
  assert_same(*batches)


def test_another_seed_draws_another_order(digits):
  stream = digits.train(**MEMBER, batch_size=64)
  other = digits.train(**(MEMBER | {'seed': 4}), batch_size=64)
  assert contents(take(stream, 1)) != contents(take(other, 1))


def test_members_that_share_examples_and_seed_draw_the_same(digits):
  # Which is how two copies without any diversity stay identical.
  stream = digits.train(**MEMBER, batch_size=64)
  other = digits.train(**(MEMBER | {'member': 1, 'members': 2}), batch_size=64)
  assert contents(take(stream, 3)) == contents(take(other, 3))


@pytest.mark.parametrize('partition', ['disjoint', 'shared'])
def test_each_epoch_visits_the_shard_once_in_a_new_order(cifar, partition):
  folder, pixels = cifar
  cifar10 = make('cifar10', data_dir=folder)
  everything = [image.tobytes() for image in pixels[:23]]
  shards = {'disjoint': [everything[::2], everything[1::2]]}.get(
    partition, [everything, everything]
  )
  for member, shard in enumerate(shards):
    # Batches of 5 straddle epochs, and every one of them is full.
    stream = cifar10.train(
      member=member, members=2, partition=partition, seed=0, batch_size=5
    )
    seen = contents(take(stream, 10))
    first, second = seen[: len(shard)], seen[len(shard) : 2 * len(shard)]
    assert sorted(first) == sorted(second) == sorted(shard)
    assert first != second


def test_a_shard_may_be_smaller_than_a_batch(cifar):
  cifar10 = make('cifar10', data_dir=cifar[0])
  stream = cifar10.train(
    member=22, members=23, partition='disjoint', seed=0, batch_size=4
  )
  assert len(set(contents(take(stream, 2)))) == 1


def test_labels_follow_their_images(cifar):
  folder, pixels = cifar
  cifar10 = make('cifar10', data_dir=folder)
  label_of = {image.tobytes(): min(i, 9) for i, image in enumerate(pixels)}
  [batch] = take(cifar10.train(**MEMBER, batch_size=46), 1)
  assert [label_of[c] for c in contents([batch])] == batch['labels'].tolist()


def test_a_negative_start_is_refused(digits):
  with pytest.raises(ValueError, match='start must not be negative, got -1'):
    digits.train(**MEMBER, batch_size=4, start=-1)


def assert_rows_are_slices(make_stream, rows, count):
  """Streams of some rows and of all of them agree on those rows."""
  whole = take(make_stream(None), count)
  sliced = [{key: array[rows] for key, array in b.items()} for b in whole]
  assert_same(take(make_stream(rows), count), sliced)


# One host's, another's, and such as are neither one block nor a half.
some_rows = pytest.mark.parametrize(
  'rows', [np.arange(4), np.arange(4, 8), np.array([1, 2, 6])], ids=str
)


@some_rows
@pytest.mark.parametrize('augmentation', ['none', 'shift', 'shift_flip'])
def test_some_rows_of_a_batch_are_what_they_are_in_all_of_it(
  cifar, augmentation, rows
):
  dataset = make(
    'cifar10',
    data_dir=cifar[0],
    augmentation=augmentation,
    padding=4,
  )
  # Batch 2 straddles two epochs of 23 images.
  assert_rows_are_slices(
    lambda rows: dataset.train(**MEMBER, batch_size=8, rows=rows), rows, 4
  )


@some_rows
def test_some_rows_are_cropped_as_in_all_of_the_batch(imagenet, rows):
  dataset = make_imagenet(imagenet)
  assert_rows_are_slices(
    lambda rows: dataset.train(**MEMBER, batch_size=8, start=3, rows=rows),
    rows,
    2,
  )


def test_no_image_is_read_for_rows_that_are_not_wanted(digits):
  read = []

  def note(indices):
    read.append(len(indices))
    return digits.train_split.read(indices)

  split = dataclasses.replace(digits.train_split, read=note)
  watched = dataclasses.replace(digits, train_split=split, test_split=split)
  rows = np.array([1, 5])
  next(watched.train(**MEMBER, batch_size=8, rows=rows))
  next(watched.eval('test', batch_size=8, rows=rows))
  assert read == [2, 2]


def test_pieces_of_a_batch_are_no_matter(cifar, monkeypatch):
  cifar10 = make(
    'cifar10', data_dir=cifar[0], augmentation='shift_flip', num_threads=2
  )
  stream = MEMBER | {'batch_size': 10, 'start': 2}
  whole = take(cifar10.train(**stream), 4)
  evaluated = list(cifar10.eval('train', batch_size=9))
  monkeypatch.setattr(images, '_PIECE', 3)
  assert_same(take(cifar10.train(**stream), 4), whole)
  assert_same(list(cifar10.eval('train', batch_size=9)), evaluated)


# Evaluation.


@some_rows
@pytest.mark.parametrize('batch_size', [8, 9])
def test_some_rows_of_evaluation_are_what_they_are_in_all_of_it(
  cifar, rows, batch_size
):
  dataset = make('cifar10', data_dir=cifar[0])
  # The last batch is not full; of 5 test images 4 to 7 are one and padding.
  for split, count in (('train', 3), ('test', 1)):
    assert_rows_are_slices(
      lambda rows, split=split: dataset.eval(
        split, batch_size=batch_size, rows=rows
      ),
      rows,
      count,
    )


@pytest.mark.parametrize(('split', 'count'), [('train', 1437), ('test', 360)])
@pytest.mark.parametrize('batch_size', [100, 120, 2000])
def test_evaluation_counts_every_example_once(digits, split, count, batch_size):
  assert digits.num_examples(split) == count
  batches = list(digits.eval(split, batch_size=batch_size))
  assert {len(batch['inputs']) for batch in batches} == {batch_size}
  masks = np.concatenate([batch['mask'] for batch in batches])
  assert masks.dtype == np.float32
  np.testing.assert_array_equal(masks, np.arange(len(masks)) < count)
  assert not batches[-1]['inputs'][batches[-1]['mask'] == 0].any()
  assert not batches[-1]['labels'][batches[-1]['mask'] == 0].any()
  assert_same(batches, list(digits.eval(split, batch_size=batch_size)))
  whole = contents(digits.eval(split, batch_size=count))
  assert contents(batches, count) == whole


def test_evaluation_is_not_augmented(digits, shifted):
  for split in ('train', 'test'):
    assert_same(
      list(shifted.eval(split, batch_size=99)),
      list(digits.eval(split, batch_size=99)),
    )


def test_unknown_split(digits):
  for ask in (
    lambda: digits.num_examples('validation'),
    lambda: digits.eval('validation', batch_size=4),
  ):
    with pytest.raises(ValueError, match="Unknown split 'validation'"):
      ask()


# Digits.


def test_digits_are_split_in_a_fixed_stratified_disjoint_way(digits):
  from sklearn import datasets

  assert (digits.num_train, digits.num_classes) == (1437, 10)
  [train] = digits.eval('train', batch_size=1437)
  [test] = digits.eval('test', batch_size=360)
  stored = datasets.load_digits().images.astype(np.float32)
  rescaled = (
    np.concatenate([train['inputs'], test['inputs']])[..., 0] / 255 * 16
  )
  # No two digits have the same pixels, so this is one to one; 8 bits hold
  # sixteenths to 1/510.
  levels = np.rint(rescaled)
  assert np.abs(rescaled - levels).max() < 16 / 255
  assert sorted(
    image.astype(np.float32).tobytes() for image in levels
  ) == sorted(image.tobytes() for image in stored)
  shares = [
    np.bincount(part['labels'], minlength=10) / len(part['labels'])
    for part in (train, test)
  ]
  np.testing.assert_allclose(*shares, atol=1 / 360)
  # The very split: published numbers depend on it.
  assert test['labels'][:10].tolist() == [7, 6, 3, 7, 7, 3, 2, 8, 9, 3]


def test_label_distribution_is_the_training_splits(digits):
  [train] = digits.eval('train', batch_size=1437)
  distribution = digits.label_distribution()
  assert distribution.dtype == np.float32
  assert distribution.sum() == pytest.approx(1)
  np.testing.assert_allclose(
    distribution * 1437, np.bincount(train['labels']), rtol=1e-6
  )


def test_digits_have_no_other_splits():
  with pytest.raises(ValueError, match="digits have the splits 'train'"):
    make('digits', eval_split='validation')
  for split in ('train[:5%', 'train[9000:9001]'):
    with pytest.raises(ValueError, match=r"no part 'train\["):
      make('digits', train_split=split)


def test_parts_of_digits_are_all_of_them_and_do_not_meet(digits):
  halves = [
    make('digits', train_split=split)
    for split in ('train[:50%]', 'train[50%:]')
  ]
  read = [
    half.train_split.read(np.arange(half.num_train))[0] for half in halves
  ]
  whole, _ = digits.train_split.read(np.arange(digits.num_train))
  np.testing.assert_array_equal(np.concatenate(read), whole)


def test_what_is_known_of_the_digits_is_true_of_them(digits):
  facts = image_sets.facts_of('digits')
  assert facts['image_shape'] == digits.image_shape
  assert facts['num_classes'] == digits.num_classes
  pixels, _ = digits.train_split.read(np.arange(digits.num_train))
  # To the three digits that are quoted.
  assert facts['mean'] == pytest.approx([(pixels / 255).mean()], abs=1e-3)
  assert facts['std'] == pytest.approx([(pixels / 255).std()], abs=1e-3)


@pytest.mark.parametrize('cache', [False, True])
def test_unlabelled_examples_come_besides_and_without_their_labels(
  cache, cifar
):
  folder, pixels = cifar
  images_ = make(
    'cifar10',
    data_dir=folder,
    train_split='train[:9]',
    unlabelled_split='train[9:20]',
    cache=cache,
  )
  assert images_.num_train == 20
  found, labels = images_.train_split.read(np.array([3, 19, 9, 0]))
  found, _ = images_.fit(found)
  np.testing.assert_array_equal(found, pixels[[3, 19, 9, 0]])
  assert labels.tolist() == [3, images.UNLABELLED, images.UNLABELLED, 0]
  [batch] = take(images_.train(**MEMBER, batch_size=20), 1)
  assert sorted(batch['labels']) == [images.UNLABELLED] * 11 + [*range(9)]
  # Nothing else knows of them.
  assert images_.num_examples('train') == 9
  np.testing.assert_allclose(
    images_.label_distribution(), np.append(np.ones(9), 0) / 9, rtol=1e-6
  )


def test_members_share_out_unlabelled_examples_too(cifar):
  folder, _ = cifar
  images_ = make(
    'cifar10',
    data_dir=folder,
    train_split='train[:8]',
    unlabelled_split='train[8:16]',
  )
  for member in range(2):
    stream = images_.train(
      **MEMBER | {'member': member, 'members': 2, 'partition': 'disjoint'},
      batch_size=8,
    )
    [batch] = take(stream, 1)
    assert (batch['labels'] == images.UNLABELLED).sum() == 4


# Augmentation.


def windows_of(image, padding):
  """All the crops of a padded image, as bytes."""
  height, width, _ = image.shape
  padded = np.pad(image, [(padding, padding), (padding, padding), (0, 0)])
  return {
    padded[top : top + height, left : left + width].tobytes()
    for top in range(2 * padding + 1)
    for left in range(2 * padding + 1)
  }


@pytest.mark.parametrize('flip', [False, True])
def test_shift_draws_every_crop_of_the_padded_image(flip, cifar):
  folder, pixels = cifar
  cifar10 = make(
    'cifar10',
    data_dir=folder,
    train_split='train[:1]',
    augmentation='shift_flip' if flip else 'shift',
    padding=1,
  )
  image = pixels[0]
  crops = windows_of(image, 1)
  if flip:
    crops |= windows_of(image[:, ::-1], 1)
  assert len(crops) == (18 if flip else 9)
  [batch] = take(cifar10.train(**MEMBER, batch_size=300), 1)
  assert set(contents([batch])) == crops


def test_no_padding_is_no_shift(digits):
  still = make('digits', augmentation='shift', padding=0)
  streams = (s.train(**MEMBER, batch_size=16) for s in (still, digits))
  assert_same(*(take(stream, 2) for stream in streams))


def test_inception_makes_images_of_varying_size_alike(imagenet):
  imagenet2012 = make_imagenet(imagenet, num_threads=2, prefetch_batches=2)
  assert imagenet2012.image_shape == (16, 16, 3)
  streams = [imagenet2012.train(**MEMBER, batch_size=64) for _ in range(2)]
  batches, others = (take(stream, 2) for stream in streams)
  assert_same(batches, others)
  inputs = np.concatenate([batch['inputs'] for batch in batches])
  assert inputs.shape == (128, 16, 16, 3)
  inputs = inputs / 255
  # Red lies left in about half of the images that hold the border.
  redder = inputs[:, :, :8, 0].sum((1, 2)) - inputs[:, :, 8:, 0].sum((1, 2))
  assert 20 < (redder > 1).sum() < 108
  assert 20 < (redder < -1).sum() < 108


def test_random_crops_have_the_areas_and_aspects_of_the_recipe(monkeypatch):
  parts = []

  def note(image, height, width):
    # Streams of earlier tests may still be read ahead in other threads.
    if threading.get_ident() == here:
      parts.append(image.shape[:2])
    return np.zeros((height, width, 3), np.uint8)

  here = threading.get_ident()
  monkeypatch.setattr(augmentation, 'resize', note)
  rng = np.random.default_rng(0)
  image = np.zeros((300, 300, 3), np.uint8)
  for _ in range(500):
    augmentation.random_resized_crop(image, rng, 8)
  rows, columns = np.array(parts).T
  areas = rows * columns / 300**2
  aspects = columns / rows
  assert 0.079 < areas.min() < 0.12
  assert 0.9 < areas.max() <= 1
  assert 0.74 < aspects.min() < 0.78
  assert 1.28 < aspects.max() < 1.35
  # No crop of the recipe fits into a ribbon: its centre square serves.
  parts.clear()
  augmentation.random_resized_crop(np.zeros((10, 900, 3), np.uint8), rng, 8)
  assert parts == [(10, 10)]


def test_evaluation_of_inception_is_the_centre_crop(imagenet):
  [batch] = make_imagenet(imagenet).eval('test', batch_size=3)
  assert batch['inputs'].shape == (3, 16, 16, 3)
  # The border of red and blue is in the middle, away from which JPEG is exact.
  red, blue = batch['inputs'][..., 0] / 255, batch['inputs'][..., 2] / 255
  assert red[:, :, :5].min() > 0.9
  assert blue[:, :, :5].max() < 0.1
  assert blue[:, :, 11:].min() > 0.9
  assert red[:, :, 11:].max() < 0.1


def test_resizing_counts_every_pixel():
  # One white line in eight, which a filter that skips pixels misses.
  lines = np.zeros((64, 64, 1), np.uint8)
  lines[::8] = 255
  small = augmentation.resize(lines, 8, 8)
  assert small.shape == (8, 8, 1)
  assert np.abs(small.astype(int) - 255 // 8).max() <= 1


def test_resizing_to_just_over_a_half_counts_every_pixel():
  for line in range(40):
    image = np.zeros((40, 40, 1), np.uint8)
    image[line] = 255
    assert augmentation.resize(image, 21, 21).any()


@pytest.mark.parametrize(
  ('changes', 'sentence'),
  [
    (
      {'augmentation': 'mixup'},
      "Unknown augmentation 'mixup', expected one of",
    ),
    ({'augmentation': 'shift', 'padding': None}, "'shift' needs padding"),
    ({'augmentation': 'inception'}, "'inception' needs image_size, got None"),
    (
      {'cache': True, 'num_workers': 1},
      r'What data\.cache holds is in this process: set data\.num_workers to 0',
    ),
  ],
)
def test_wrong_arguments_are_named(changes, sentence):
  with pytest.raises(ValueError, match=sentence):
    make('digits', **changes)


# Sets of TFDS.


def test_a_tfds_set_reads_back_what_was_written(cifar):
  folder, pixels = cifar
  cifar10 = make('cifar10', data_dir=folder)
  assert cifar10.image_shape == (32, 32, 3)
  assert cifar10.num_classes == 10
  assert cifar10.num_train == cifar10.num_examples('train') == 23
  for split, expected in (('train', pixels[:23]), ('test', pixels[23:])):
    [batch] = cifar10.eval(split, batch_size=len(expected))
    np.testing.assert_array_equal(batch['inputs'], expected)
  np.testing.assert_allclose(
    cifar10.label_distribution(), np.array([1] * 9 + [14]) / 23, rtol=1e-6
  )


def test_a_config_is_one_key_away_from_cifar10(cifar, tmp_path):
  folder, _ = cifar
  outcome = run_command(
    tmp_path,
    '--config.data.name=cifar10',
    f'--config.data.data_dir={folder}',
    '--config.num_steps=2',
    '--config.codistill.burn_in_steps=1',
    '--config.codistill.reload_interval_steps=1',
  )
  assert outcome.status == 0
  assert outcome.experiment.dataset.image_shape == (32, 32, 3)
  run = read_run(tmp_path / 'run.json')
  given = {'data.name', 'num_steps', 'codistill.burn_in_steps'}
  assert given < set(results.point_of(run['overrides']))
  assert not {'data.mean', 'data.image_shape'} & set(run['overrides'])
  assert {row['member'] for row in rows_of(tmp_path)} == {0, 1, 'ensemble'}


def test_label_distribution_decodes_no_image(cifar, monkeypatch):
  def refuse(*_):
    raise AssertionError('an image was decoded')

  monkeypatch.setattr(cv2, 'imdecode', refuse)
  make('cifar10', data_dir=cifar[0]).label_distribution()


def test_part_of_a_split(cifar):
  folder, pixels = cifar
  held_out = make(
    'cifar10',
    data_dir=folder,
    train_split='train[:13]',
    eval_split='train[13:]',
  )
  assert held_out.num_train == 13
  [batch] = held_out.eval('test', batch_size=10)
  np.testing.assert_array_equal(batch['inputs'], pixels[13:23])
  with pytest.raises(ValueError, match='holdout'):
    make('cifar10', data_dir=folder, train_split='holdout')


def test_a_grey_image_in_a_colour_set_has_three_channels(tmp_path):
  grey = np.full((32, 32, 1), 77, np.uint8)
  write_tfds(
    tmp_path,
    'cifar10',
    '3.0.2',
    features_of((32, 32, 3), 10),
    {
      split: [{'image': encode(grey), 'label': 0}]
      for split in ('train', 'test')
    },
  )
  cifar10 = make('cifar10', data_dir=tmp_path)
  [batch] = cifar10.eval('test', batch_size=1)
  np.testing.assert_array_equal(batch['inputs'], np.full((1, 32, 32, 3), 77))


def test_a_set_that_tfds_does_not_know_is_read_from_its_files(tmp_path):
  blank = {'image': encode(np.zeros((4, 4, 1), np.uint8)), 'label': 2}
  write_tfds(
    tmp_path,
    'my_shapes',
    '1.0.0',
    features_of((4, 4, 1), 3),
    {'train': [blank] * 2, 'test': [blank]},
  )
  mine = make('my_shapes', data_dir=tmp_path)
  assert (mine.image_shape, mine.num_classes) == ((4, 4, 1), 3)


def test_varying_sizes_need_a_crop(imagenet):
  with pytest.raises(ValueError, match="Images of 'imagenet2012' vary in size"):
    make_imagenet(imagenet, augmentation='shift')


def test_a_set_that_is_not_prepared_says_what_to_run(tmp_path, caplog):
  with pytest.raises(images.NotPreparedError) as caught:
    make('fashion_mnist', data_dir=tmp_path)
  sentence = str(caught.value)
  assert sentence.startswith('fashion_mnist is not prepared in ')
  assert 'python -m scripts.prepare_images fashion_mnist' in sentence
  assert 'TFDS_DATA_DIR' in sentence
  assert str(tmp_path) in sentence
  assert '\n' not in sentence
  assert caplog.messages == []
  assert os.listdir(tmp_path) == []


def test_a_set_of_another_format_says_so(tmp_path):
  write_tfds(
    tmp_path, 'mnist', '3.0.1', features_of((28, 28, 1), 10), {}, 'tfrecord'
  )
  with pytest.raises(
    images.NotPreparedError, match='as tfrecord, not as array'
  ):
    make('mnist', data_dir=tmp_path)


@pytest.mark.parametrize(
  ('name', 'sentence'),
  [
    ('fashion_mnst', r"called 'fashion_mnst': did you mean fashion_mnist"),
    ('digit', r"called 'digit': did you mean digits"),
    ('mnist:0.0.9', r"There is no image set called 'mnist:0.0.9'"),
    ('not a name', r"There is no image set called 'not a name'"),
  ],
)
def test_unknown_names_get_the_nearest(name, sentence, tmp_path):
  with pytest.raises(ValueError, match=sentence):
    make(name, data_dir=tmp_path)


def test_a_set_of_something_else_is_refused(tmp_path):
  import tensorflow_datasets as tfds

  reviews = tfds.features.FeaturesDict(
    {
      'text': tfds.features.Text(),
      'label': tfds.features.ClassLabel(num_classes=2),
    }
  )
  write_tfds(tmp_path, 'my_reviews', '1.0.0', reviews, {})
  with pytest.raises(ValueError, match='not an image classification set'):
    make('my_reviews', data_dir=tmp_path)


def test_reading_needs_no_tensorflow_and_writes_nothing(cifar):
  folder, _ = cifar
  files = sorted(pathlib.Path(folder).rglob('*'))
  program = (
    'import sys\n'
    'from data.images import dataset as images\n'
    "assert 'tensorflow_datasets' not in sys.modules\n"
    "assert 'sklearn' not in sys.modules\n"
    "cifar10 = images.make_images('cifar10', train_split='train', "
    "eval_split='test', unlabelled_split=None, data_dir=None, "
    "augmentation='shift_flip', padding=4, "
    'image_size=None, cache=False, num_workers=0, '
    'num_threads=1, prefetch_batches=1)\n'
    "next(cifar10.train(member=0, members=1, partition='shared', seed=0, "
    'batch_size=4))\n'
    "next(cifar10.eval('test', batch_size=4))\n"
    'cifar10.label_distribution()\n'
    "assert 'tensorflow' not in sys.modules\n"
  )
  done = subprocess.run(
    [sys.executable, '-c', program],
    cwd=pathlib.Path(__file__).parents[1],
    env=os.environ | {'TFDS_DATA_DIR': str(folder)},
    capture_output=True,
    text=True,
    check=False,
  )
  # Silence, too: nothing of TFDS's is for the reader of a training log.
  assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
  assert sorted(pathlib.Path(folder).rglob('*')) == files


def test_an_image_set_cannot_be_changed(digits):
  with pytest.raises(dataclasses.FrozenInstanceError):
    digits.num_classes = 3


# Held in memory.


def test_a_cached_set_is_the_same_set(cifar):
  folder, _ = cifar
  arguments = {
    'data_dir': folder,
    'augmentation': 'shift_flip',
  }
  plain = make('cifar10', **arguments)
  cached = make('cifar10', **arguments, cache=True, num_threads=2)
  stream = {
    'member': 1,
    'members': 2,
    'partition': 'disjoint',
    'seed': 3,
    'batch_size': 7,
  }
  assert_same(take(plain.train(**stream), 5), take(cached.train(**stream), 5))
  for split in ('train', 'test'):
    assert_same(
      list(plain.eval(split, batch_size=4)),
      list(cached.eval(split, batch_size=4)),
    )


def test_a_cached_set_is_decoded_once(cifar, monkeypatch):
  folder, _ = cifar
  decoded = []
  real = cv2.imdecode
  monkeypatch.setattr(
    cv2, 'imdecode', lambda *args: decoded.append(1) or real(*args)
  )
  cached = make('cifar10', data_dir=folder, cache=True)
  assert not decoded
  for _ in range(2):
    list(cached.eval('train', batch_size=4))
  assert len(decoded) == cached.num_train


def test_images_that_vary_in_size_cannot_be_cached(imagenet):
  with pytest.raises(ValueError, match=r'set data\.cache to False'):
    make_imagenet(imagenet, cache=True)


# As ImageNet is stored, and as it is found.


def level_of(batch):
  """The grey level of each image of a batch, 0 for a black one."""
  return np.rint(batch['inputs'].mean((1, 2, 3)) / 20).astype(int).tolist()


def test_the_sample_has_the_form_of_imagenet(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  arguments = {
    'eval_split': 'validation',
    'augmentation': 'inception',
    'image_size': 16,
  }
  sample = make('imagenet_sample', **arguments)
  assert (sample.image_shape, sample.num_classes) == ((16, 16, 3), 1000)
  assert (sample.num_train, sample.num_examples('test')) == (512, 32)
  # Kept, and found by the name of the real one.
  [folder] = (tmp_path / 'codistill').iterdir()
  real = make('imagenet2012', data_dir=folder, **arguments)
  stream = MEMBER | {'batch_size': 64}
  assert_same(take(sample.train(**stream), 3), take(real.train(**stream), 3))


def test_the_cache_of_the_sample_may_be_closed(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  (tmp_path / 'file').write_text('')
  with pytest.raises(
    ValueError, match=r'cannot be written to .* set XDG_CACHE'
  ):
    make(
      'imagenet_sample',
      eval_split='validation',
      augmentation='inception',
      image_size=16,
    )


def test_every_kind_of_file_that_imagenet_has_is_read(tmp_path):
  PIL = pytest.importorskip('PIL.Image')
  pixels = red_and_blue(64, 64)
  cmyk = io.BytesIO()
  PIL.fromarray(pixels).convert('CMYK').save(cmyk, 'JPEG')
  grey = np.full((64, 64, 1), 77, np.uint8)
  stored = [
    encode(pixels, '.jpg'),
    encode(pixels, '.png'),
    cmyk.getvalue(),
    encode(grey, '.jpg'),
  ]
  folder = write_imagenet(tmp_path, [*stored[1:], stored[0]])
  [batch] = make_imagenet(folder).eval('test', batch_size=3)
  assert 'corrupt' not in batch
  png, black_and_three, one = batch['inputs'].astype(int)
  assert np.abs(png[:, :7] - [255, 0, 0]).max() < 9
  assert np.abs(black_and_three[:, :7] - [255, 0, 0]).max() < 9
  assert np.abs(black_and_three[:, 9:] - [0, 0, 255]).max() < 9
  assert (one == 77).all()


def test_a_corrupt_image_is_replaced_by_the_members_next(damaged):
  stands_in = {1: 3, 2: 3, 4: 5}
  for member, members, partition in (
    (0, 1, 'shared'),
    (0, 2, 'disjoint'),
    (1, 2, 'disjoint'),
  ):
    shard = list(range(9))[member::members]
    stream = make_imagenet(damaged).train(
      member=member,
      members=members,
      partition=partition,
      seed=0,
      batch_size=len(shard),
    )
    for batch in take(stream, 3):
      found = level_of(batch)
      # 2 and 4 of the even ones: the next even one that is whole.
      whole = {2: 6, 4: 6} if (member, members) == (0, 2) else stands_in
      assert sorted(found) == sorted(whole.get(i, i) + 1 for i in shard)
      assert [level - 1 for level in found] == (batch['labels'] // 100).tolist()
      expected = {f'({i}.JPEG)' for i in (1, 2, 4) if i in shard}
      named = {name.split()[-1] for name in batch['corrupt']}
      assert named == expected
      assert all(
        name.startswith('imagenet2012 tr') for name in batch['corrupt']
      )


def test_corrupt_images_leave_a_stream_pure(damaged):
  damaged = make_imagenet(damaged)
  stream = MEMBER | {'batch_size': 6}
  whole = take(damaged.train(**stream), 6)
  assert sum('corrupt' in batch for batch in whole) > 3
  assert_same(take(damaged.train(**stream, start=2), 4), whole[2:])
  # The rows of two hosts are those of one; what a row is does not depend on
  # whether another is corrupt.
  halves = [
    take(damaged.train(**stream, rows=np.array(rows)), 6)
    for rows in ([0, 1, 4], [2, 3, 5])
  ]
  for batch, one, other in zip(whole, *halves, strict=True):
    for key in ('inputs', 'labels'):
      np.testing.assert_array_equal(batch[key][[0, 1, 4]], one[key])
      np.testing.assert_array_equal(batch[key][[2, 3, 5]], other[key])


def test_in_evaluation_a_corrupt_image_is_black_and_counts(damaged):
  batches = list(make_imagenet(damaged).eval('train', batch_size=5))
  assert [level_of(batch) for batch in batches] == [
    [1, 0, 0, 4, 0],
    [6, 7, 8, 9, 0],
  ]
  assert sum(batch['mask'].sum() for batch in batches) == 9
  assert batches[0]['labels'].tolist() == [0, 100, 200, 300, 400]
  assert len(batches[0]['corrupt']) == 3
  assert 'corrupt' not in batches[1]


def test_a_cached_set_names_corrupt_images_too(tmp_path):
  stored = [encode(np.full((32, 32, 3), 40, np.uint8)), b'damaged']
  examples = [{'image': data, 'label': 3, 'id': 'i'} for data in stored]
  import tensorflow_datasets as tfds

  features = features_of((32, 32, 3), 10, id=tfds.features.Text())
  write_tfds(
    tmp_path,
    'cifar10',
    '3.0.2',
    features,
    {'train': examples, 'test': examples},
  )
  for cache in (False, True):
    small = make('cifar10', data_dir=tmp_path, cache=cache)
    [batch] = small.eval('test', batch_size=2)
    assert batch['corrupt'] == ['cifar10 test[1]']
    assert not batch['inputs'][1].any()
    [batch] = take(small.train(**MEMBER, batch_size=2), 1)
    assert batch['corrupt'] == ['cifar10 train[1]']
    assert (batch['inputs'] == 40).all()


def test_a_set_of_rubbish_ends_in_a_sentence(tmp_path):
  rubbish = make_imagenet(write_imagenet(tmp_path, [b'rubbish'] * 5))
  with pytest.raises(images.BadDataError, match='hardly an example can be dec'):
    next(rubbish.train(**MEMBER, batch_size=2))


def test_only_who_needs_labels_misses_them(tmp_path):
  stored = [encode(red_and_blue(40, 40), '.jpg')] * 4
  folder = write_imagenet(tmp_path, stored, [3, 5, -1, -1])
  parts = {'train_split': 'train[:2]', 'unlabelled_split': 'train[2:]'}
  some = make_imagenet(folder, **parts)
  batch = next(some.train(**MEMBER, batch_size=4))
  assert sorted(batch['labels']) == [-1, -1, 3, 5]
  parts = {'train_split': 'train[1:3]', 'unlabelled_split': 'train[3:]'}
  wrong = make_imagenet(folder, **parts)
  with pytest.raises(images.BadDataError, match=r'\(2.JPEG\) has label -1'):
    next(wrong.train(**MEMBER, batch_size=3))


def test_a_corrupt_example_without_a_label_is_named_by_its_place(tmp_path):
  stored = [encode(red_and_blue(40, 40), '.jpg')] * 2 + [b'rubbish']
  some = make_imagenet(
    write_imagenet(tmp_path, stored),
    train_split='train[:1]',
    unlabelled_split='train[1:]',
  )
  batch = next(some.train(**MEMBER, batch_size=3))
  assert ['(2.JPEG)' in name for name in batch['corrupt']] == [True]


def test_a_label_out_of_range_is_named(tmp_path):
  stored = [encode(red_and_blue(40, 40), '.jpg')] * 3
  # As in ImageNet's split `test`; and of a class too many.
  unlabelled = make_imagenet(write_imagenet(tmp_path, stored, [3, -1, 4]))
  other = make_imagenet(write_imagenet(tmp_path / 'other', stored))
  for wrong, number, label in (
    (unlabelled, 1, -1),
    (dataclasses.replace(other, num_classes=150), 2, 200),
  ):
    sentence = (
      rf'imagenet2012 .*\[{number}\] \({number}.JPEG\) has label {label}, and '
      rf'there are {wrong.num_classes} classes'
    )
    for ask in (
      lambda wrong=wrong: next(wrong.train(**MEMBER, batch_size=3)),
      lambda wrong=wrong: next(wrong.eval('test', batch_size=3)),
      wrong.label_distribution,
    ):
      with pytest.raises(images.BadDataError, match=sentence):
        ask()


@pytest.mark.parametrize('split', ['train_split', 'eval_split'])
def test_a_split_that_is_not_there_is_named(imagenet, split):
  for wrong in ('holdout', 'holdout[:10]', 'train[:200%]', 'train['):
    with pytest.raises(
      ValueError, match='splits train and validation'
    ) as caught:
      make_imagenet(imagenet, **{split: wrong})
    assert f'no {wrong!r}' in str(caught.value)
    assert '\n' not in str(caught.value)


def test_a_file_that_is_gone_is_named(tmp_path, imagenet):
  shutil.copytree(imagenet, tmp_path, dirs_exist_ok=True)
  [gone] = tmp_path.rglob('*validation*')
  gone.unlink()
  with pytest.raises(
    images.NotPreparedError, match=r'validation.* is not there'
  ):
    make_imagenet(tmp_path)


# Decoding.


def test_the_size_of_a_jpeg_is_in_its_header():
  rng = np.random.default_rng(0)
  for height, width in ((1, 1), (37, 500), (300, 17)):
    for channels in (1, 3):
      pixels = rng.integers(256, size=(height, width, channels)).astype('uint8')
      data = encode(pixels, '.jpg')
      assert decoding.jpeg_size(data) == (height, width)
      # Cut short anywhere, it says the same or nothing, and never more.
      for end in range(0, len(data), 7):
        assert decoding.jpeg_size(data[:end]) in (None, (height, width))
  assert decoding.jpeg_size(encode(pixels)) is None


@pytest.mark.parametrize('extension', ['.jpg', '.png'])
def test_a_part_is_that_of_the_whole_image(extension):
  pixels = cv2.resize(
    imagenet_sample.photograph(np.random.default_rng(0), 60, 80), (321, 243)
  )
  image = decoding.Encoded(encode(pixels, extension), 3)
  for at_least, reduction in ((200, 1), (90, 2), (40, 4), (1, 8)):
    reduction = reduction if extension == '.jpg' else 1
    part = image.part(32, 40, 184, 240, at_least)
    rows, columns = (int(np.ceil(side / reduction)) for side in (184, 240))
    assert part.shape == (rows, columns, 3)
    assert min(part.shape[:2]) >= at_least or reduction == 1
    expected = cv2.resize(
      image.whole[32:216, 40:280],
      part.shape[1::-1],
      interpolation=cv2.INTER_AREA,
    )
    assert np.abs(part.astype(int) - expected).mean() < 3


# Processes. In a program of its own: what checks annotations cannot be pickled.

PROGRAM = """
import contextlib, pickle, sys
import psutil
from data.images import dataset as images

images._PIECE = 4


def make(data_dir, num_workers=1):
  return images.make_images(
    'imagenet2012', train_split='train', eval_split='validation',
    unlabelled_split=None, data_dir=data_dir, augmentation='inception',
    padding=None, image_size=16, cache=False,
    num_workers=num_workers, num_threads=1, prefetch_batches=2,
  )


def train(found):
  return found.train(
    member=0, members=1, partition='shared', seed=3, batch_size=10, start=3
  )


def main():
  damaged, wrong, out = sys.argv[1:]
  with contextlib.closing(train(make(damaged, 2))) as batches:
    found = [next(batches) for _ in range(5)]
    # The one before them tracks resources until this process ends.
    children = psutil.Process().children()[-2:]
  _, alive = psutil.wait_procs(children, timeout=60)
  ended = not alive
  with open(out, 'wb') as file:
    pickle.dump(found, file)
  try:
    next(train(make(wrong)))
  except images.BadDataError as error:
    print(str(error))
  print(ended)
  open_stream = train(make(damaged))
  next(open_stream)
  print(*(one.pid for one in psutil.Process().children()), flush=True)
  sys.stdin.read()


if __name__ == '__main__':
  main()
"""


def test_processes_read_what_this_one_reads_and_end_with_it(
  damaged, tmp_path, monkeypatch
):
  stored = [encode(red_and_blue(9, 9), '.jpg')]
  wrong = write_imagenet(tmp_path / 'wrong', stored, [-1])
  (tmp_path / 'program.py').write_text(PROGRAM)
  process = subprocess.Popen(
    [
      sys.executable,
      *(tmp_path / 'program.py', damaged, wrong, tmp_path / 'out'),
    ],
    env=os.environ | {'PYTHONPATH': str(pathlib.Path(__file__).parents[1])},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  with process:
    sentence, ended, pids = (process.stdout.readline() for _ in range(3))
    children = [psutil.Process(int(pid)) for pid in pids.split()]
    assert children
    process.kill()
  # What ends a stream passes through, and so does closing it.
  assert 'has label -1' in sentence
  assert ended == 'True\n'
  _, alive = psutil.wait_procs(children, timeout=60)
  assert not alive
  monkeypatch.setattr(images, '_PIECE', 4)
  plain = make_imagenet(damaged).train(**MEMBER, batch_size=10, start=3)
  assert_same(pickle.loads((tmp_path / 'out').read_bytes()), take(plain, 5))

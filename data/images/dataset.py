"""Image classification sets: those of TFDS, read through Grain, and others.

Reading needs no TensorFlow and no network: `python -m scripts.prepare_images
NAME` prepares a TFDS set once, in ArrayRecord form.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from jaxtyping import Float

from data.images import digits, grain_workers, imagenet_sample
from data.images.augmentation import make_views
from data.images.split import (
  UNLABELLED,
  BadDataError,
  Split,
  and_unlabelled,
  in_memory,
)
from data.images.tfds import open_tfds
from data.partition import partition_indices
from data.preparing.tfds import NotPreparedError

# The names that callers need, errors included.
__all__ = [
  'UNLABELLED',
  'BadDataError',
  'ImageSet',
  'NotPreparedError',
  'make_images',
]

# Sets outside TFDS: functions of (train split, eval split) that return the
# shape of an image, the number of classes and the two splits.
SETS = {'digits': digits.open_set, 'imagenet_sample': imagenet_sample.open_set}
# Rows of a batch that one thread or process reads at a time.
_PIECE = 128
# Corrupt examples to tolerate for each wanted one.
_MOST_CORRUPT = 10
Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
  """A training and a test split, as batches for a model.

  Attributes:
    image_shape: height, width and channels of a model's inputs.
    num_classes: labels are in [0, num_classes).
    train_split: the training examples, unlabelled ones last.
    labelled_split: the labelled training examples.
    test_split: the evaluation examples.
    augment: the training view, see `data.images.augmentation`.
    fit: the evaluation view.
    num_workers: processes that read and augment, per iterator; 0 for none.
    num_threads: threads for this in each process; 0 for none.
    prefetch_batches: batches read ahead, per iterator.

  Batches are uint8; the model scales and normalises pixels on a device. In
  training, the member's next example replaces an image that cannot be decoded;
  in evaluation such an image stays, black, so that each example counts. The
  batch names both as `corrupt`. A label out of range ends the stream.
  """

  image_shape: tuple[int, int, int]
  num_classes: int
  train_split: Split = dataclasses.field(repr=False)
  labelled_split: Split = dataclasses.field(repr=False)
  test_split: Split = dataclasses.field(repr=False)
  augment: Callable[..., np.ndarray] = dataclasses.field(repr=False)
  fit: Callable[..., np.ndarray] = dataclasses.field(repr=False)
  num_workers: int
  num_threads: int
  prefetch_batches: int

  @property
  def num_train(self) -> int:
    """Number of training examples, of all members together, labelled or not."""
    return self.train_split.num_examples

  def num_examples(self, split: str) -> int:
    """Number of examples that `eval(split)` counts; same errors."""
    return self._split(split).num_examples

  def train(
    self,
    *,
    member: int,
    members: int,
    partition: str,
    seed: int,
    batch_size: int,
    start: int = 0,
    rows: np.ndarray | None = None,
  ) -> Iterator[Batch]:
    """Endless augmented batches of a member's examples.

    Batch t is a pure function of the arguments and t, so a stream resumes from
    `start` alone, bit for bit. Each epoch visits each of the member's examples
    once in a new order; a batch may straddle two epochs. The seed determines
    order and augmentation: members with the same examples and the same seed
    draw the same batches.

    Args:
      member: 0 ≤ member < members.
      members: number of members that share the examples.
      partition: 'disjoint' or 'shared', see `data.partition`.
      seed: seed of orders and augmentation, in [0, 2³²).
      batch_size: examples a batch.
      start: index of the first batch to yield.
      rows: the rows of each batch to read and return, ascending; None for all.
        A row does not depend on the others, so hosts can share a batch.

    Returns:
      Batches {'inputs': uint8 [rows, *image_shape], 'labels': int32 [rows],
      `UNLABELLED` where there is none}; and, if there were any, 'corrupt': the
      names of the examples that were replaced.

    Raises:
      ValueError: for arguments out of range, or an empty shard.
      BadDataError: from the iterator, for a label out of range, or if hardly
        any image can be decoded.
      ChildProcessError: likewise, if a process that reads has died.
    """
    if start < 0:
      raise ValueError(f'start must not be negative, got {start}.')
    shard = partition_indices(self.num_train, member, members, partition)

    wanted = np.arange(batch_size) if rows is None else rows
    pieces = _pieces_of(wanted)
    order = (
      grain.MapDataset.range(self.num_train)[shard]
      .seed(seed)
      .shuffle()
      .repeat(reseed_each_epoch=True)
    )
    # The generator of each batch; it does not depend on the examples.
    chance = order.batch(1).random_map(lambda _, rng: rng.bit_generator.state)

    def load(number):
      batch, piece = divmod(number, len(pieces))
      rows, first = pieces[piece], batch * batch_size
      indices = np.array([order[first + row] for row in rows.tolist()], int)
      return self._draw(indices, shard, rows, batch_size, chance[batch])

    numbers = grain.MapDataset.range(start * len(pieces), 2**62)
    return self._batches(numbers.map(load), len(pieces))

  def eval(
    self, split: str, *, batch_size: int, rows: np.ndarray | None = None
  ) -> Iterator[Batch]:
    """Yields each example of a split once, in a fixed order, not augmented.

    Args:
      split: 'train' or 'test'.
      batch_size: examples a batch; the last one is filled up with zeros.
      rows: the rows of each batch to read and return, ascending; None for all.

    Returns:
      Batches {'inputs': uint8 [rows, *image_shape], 'labels': int32 [rows],
      'mask': float32 [rows], 1 for an example and 0 for padding}; and, if
      there were any, 'corrupt': the names of the black examples.

    Raises:
      ValueError: for another split.
      BadDataError: from the iterator, for a label out of range.
      ChildProcessError: likewise, if a process that reads has died.
    """
    examples = self._split(split)
    wanted = np.arange(batch_size) if rows is None else rows
    pieces = _pieces_of(wanted)

    def load(number):
      batch, piece = divmod(number, len(pieces))
      indices = batch * batch_size + pieces[piece]
      there = indices[indices < examples.num_examples]
      found = {
        'inputs': np.zeros((len(indices), *self.image_shape), np.uint8),
        'labels': np.zeros(len(indices), np.int32),
        'mask': np.zeros(len(indices), np.float32),
        'corrupt': [],
      }
      if len(there):
        images, labels = self._read(examples, there)
        found['inputs'][: len(there)], black = self.fit(images)
        found['labels'][: len(there)] = labels
        found['mask'][: len(there)] = 1
        found['corrupt'] = [examples.name(i) for i in there[black].tolist()]
      return found

    num_batches = math.ceil(examples.num_examples / batch_size)
    numbers = grain.MapDataset.range(num_batches * len(pieces))
    return self._batches(numbers.map(load), len(pieces))

  def label_distribution(self) -> Float[np.ndarray, ' num_classes']:
    """The share of each class in the labelled training examples, float32.

    It sums to one. Decodes no image, but reads every record: seconds for CIFAR,
    as long as the disk takes for ImageNet.
    """
    counts = np.zeros(self.num_classes, np.int64)
    labelled = self.labelled_split
    indices = np.arange(labelled.num_examples)
    for start in range(0, len(indices), 256):
      some = indices[start : start + 256]
      labels = labelled.read_labels(some)
      self._check_labels(labelled, some, labels)
      counts += np.bincount(labels, minlength=self.num_classes)
    return (counts / counts.sum()).astype(np.float32)

  def _split(self, split: str) -> Split:
    splits = {'train': self.labelled_split, 'test': self.test_split}
    if split not in splits:
      raise ValueError(
        f'Unknown split {split!r}, expected one of {tuple(splits)}.'
      )
    return splits[split]

  def _draw(
    self,
    indices: np.ndarray,
    shard: slice,
    rows: np.ndarray,
    batch_size: int,
    chance: dict[str, Any],
  ) -> Batch:
    """Reads augmented examples; the shard's next replaces a corrupt one."""
    rng = np.random.Generator(np.random.Philox())

    def view(places):
      # Each attempt makes the same draws for a row.
      rng.bit_generator.state = chance
      images, labels = self._read(self.train_split, indices[places])
      inputs, black = self.augment(images, rng, rows[places], batch_size)
      return inputs, labels, places[black]

    inputs, labels, places = view(np.arange(len(rows)))
    corrupt = []
    while len(places):
      corrupt += [self.train_split.name(i) for i in indices[places].tolist()]
      if len(corrupt) > _MOST_CORRUPT * len(rows):
        raise BadDataError(
          f'almost no example can be decoded, not even {corrupt[-1]}; prepare '
          'the set again'
        )
      following = indices[places] + (shard.step or 1)
      indices[places] = np.where(
        following < self.num_train, following, shard.start or 0
      )
      again = places
      inputs[again], labels[again], places = view(again)
    return {'inputs': inputs, 'labels': labels, 'corrupt': corrupt}

  def _read(self, split: Split, indices: np.ndarray) -> tuple[Any, np.ndarray]:
    """Reads a split, and checks its labels."""
    images, labels = split.read(indices)
    self._check_labels(split, indices, labels)
    return images, labels

  def _check_labels(self, split, indices, labels):
    wrong = (labels < 0) | (labels >= self.num_classes)
    if split is self.train_split:
      wrong &= indices < self.labelled_split.num_examples
    wrong = np.flatnonzero(wrong)
    if len(wrong):
      first = wrong[0]
      raise BadDataError(
        f'{split.name(int(indices[first]))} has label {labels[first]}, and '
        f'there are {self.num_classes} classes, numbered from 0; choose a '
        'split that has labels, or prepare the set again'
      )

  def _batches(
    self, pieces: grain.MapDataset, num_pieces: int
  ) -> Iterator[Batch]:
    """Reads pieces ahead, and joins those of a batch."""
    ahead = self.prefetch_batches * num_pieces
    if not self.num_workers:
      options = grain.ReadOptions(
        self.num_threads, max(ahead, self.num_threads)
      )
      stream = pieces.to_iter_dataset(options)
    else:
      grain_workers.prepare()
      # Each worker takes every num_workers-th piece, and the order stays.
      options = grain.ReadOptions(self.num_threads, self.num_threads)
      stream = pieces.to_iter_dataset(options).mp_prefetch(
        grain.MultiprocessingOptions(
          self.num_workers, max(1, math.ceil(ahead / self.num_workers))
        ),
        worker_init_fn=grain_workers.begin,
      )
    with grain_workers.opened(stream) as found:
      while parts := list(itertools.islice(found, num_pieces)):
        corrupt = [name for part in parts for name in part.pop('corrupt')]
        batch = {
          key: np.concatenate([part[key] for part in parts])
          if num_pieces > 1
          else parts[0][key]
          for key in parts[0]
        }
        yield batch | ({'corrupt': corrupt} if corrupt else {})


def _pieces_of(rows: np.ndarray) -> list[np.ndarray]:
  """Splits the rows of a batch into pieces."""
  return np.array_split(rows, max(1, math.ceil(len(rows) / _PIECE)))


def make_images(
  name: str,
  *,
  train_split: str,
  eval_split: str,
  unlabelled_split: str | None,
  data_dir: str | os.PathLike | None,
  augmentation: str,
  padding: int | None,
  image_size: int | None,
  cache: bool,
  num_workers: int,
  num_threads: int,
  prefetch_batches: int,
) -> ImageSet:
  """Opens an image classification set; writes and downloads nothing.

  Args:
    name: 'digits' (scikit-learn's 8 × 8 digits, 1437 to train on and 360 to
      test), 'imagenet_sample' (544 made-up JPEGs) or a TFDS set: 'cifar10',
      'imagenet2012', 'svhn_cropped:3.1.0', ….
    train_split: TFDS's name of the split to train on, 'train' or a part of it
      such as 'train[:90%]'; digits have 'train' only.
    eval_split: TFDS's name of the split that is called 'test' here; digits
      have 'test' only.
    unlabelled_split: further training examples, used without their labels;
      None for none.
    data_dir: folder of TFDS sets; None for $TFDS_DATA_DIR, or TFDS's default.
    augmentation: 'none'; 'shift' (a crop after black padding); 'shift_flip'
      (and a horizontal flip, half of the time); 'inception' (a random part of
      the image resized to a square, and a flip, as Goyal et al. 2017).
    padding: pixels on each side, for 'shift' and 'shift_flip'; else unused.
    image_size: height and width for 'inception', which evaluates on the centre
      crop after resizing the shorter side to 256/224 of it; else unused, and
      images keep their size.
    cache: decode each split once and keep it in memory, as uint8; for sets of
      one image size that fit (digits are always in memory).
    num_workers: processes that read and augment, per iterator; 0 for none, as
      `cache` requires.
    num_threads: threads for this in each process, or in this one; 0 for none,
      best for digits.
    prefetch_batches: batches read ahead, per iterator; together at least one
      piece of 128 images a thread.

  Raises:
    NotPreparedError: if the set is not in the folder, or not as ArrayRecord.
    ValueError: if there is no such set, split or augmentation, if the set is
      not one of images and labels, or if arguments do not go together.
  """
  shape, num_classes, splits = _open(name, data_dir, train_split, eval_split)
  augment, fit, viewed = make_views(
    augmentation, padding, image_size, tuple(shape)
  )
  _check(name, tuple(shape), augmentation, viewed, cache, num_workers)

  def keep(split):
    return in_memory(split, shape) if cache else split

  labelled = train = keep(splits[0])
  if unlabelled_split is not None:
    _, _, (others, _) = _open(name, data_dir, unlabelled_split, eval_split)
    train = and_unlabelled(labelled, keep(others))
  return ImageSet(
    image_shape=viewed,
    num_classes=num_classes,
    train_split=train,
    labelled_split=labelled,
    test_split=keep(splits[1]),
    augment=augment,
    fit=fit,
    num_workers=num_workers,
    num_threads=num_threads,
    prefetch_batches=prefetch_batches,
  )


def _check(name, stored, augmentation, viewed, cache, num_workers):
  """Refuses arguments that do not go together."""
  if None in viewed:
    raise ValueError(
      f"Images of {name!r} vary in size: augmentation 'inception' makes them "
      f'alike, {augmentation!r} does not.'
    )
  if cache and None in stored:
    raise ValueError(
      f'Images of {name!r} vary in size, so one array cannot hold them: set '
      'data.cache to False.'
    )
  if cache and num_workers:
    raise ValueError(
      'data.cache keeps images in this process only: set data.num_workers to '
      '0, or data.cache to False.'
    )


def _open(name, data_dir, train_split, eval_split):
  """Returns the stored shape, the number of classes, and the two splits."""
  if name in SETS:
    if data_dir is not None:
      raise ValueError(
        f'{name} lies in no folder: leave data.data_dir out, or name a set of '
        'TFDS with data.name.'
      )
    return SETS[name](train_split, eval_split)
  return open_tfds(name, data_dir, train_split, eval_split, others=SETS)

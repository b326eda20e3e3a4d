"""Image classification sets: TFDS through Grain, and others by a function.

Reading needs no TensorFlow and no network: a TFDS set must have been prepared
in ArrayRecord form, once, by `python -m scripts.prepare_images NAME`.
"""

import dataclasses
import difflib
import functools
import importlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence

import cv2
import grain
import numpy as np
from jaxtyping import Float

from data import augmentation as augmentation_lib
from data import partition as partition_lib

# The label of an example that has none, or whose label is left alone.
UNLABELLED = -1
# Sets that are not TFDS's, by name: modules with a function
# `open_set(train_split, eval_split)` → shape of an image, classes, two splits.
SETS = {'digits': 'data.digits'}


class NotPreparedError(FileNotFoundError):
  """A TFDS set is not in the folder looked in; the message says what to run."""


@dataclasses.dataclass(frozen=True)
class Split:
  """Random access to the examples of one split, as they are stored.

  Attributes:
    num_examples: how many there are.
    read: from indices to as many images (uint8 [height, width, channels],
      sizes may differ) and labels (int32 [len(indices)]).
    read_labels: from indices to labels, without decoding an image.
  """

  num_examples: int
  read: Callable[[np.ndarray], tuple[Sequence[np.ndarray], np.ndarray]]
  read_labels: Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
  """A training and a test split, as batches for a model.

  Attributes:
    image_shape: height, width and channels of what the model receives.
    num_classes: labels are in [0, num_classes).
    train_split: the examples to train on, those without a label last.
    labelled_split: of these the ones with a label.
    test_split: the examples to evaluate on.
    augment: from images of a batch to uint8 [batch, *image_shape], at random.
    fit: the same without chance, for evaluation.
    mean: per channel, subtracted from pixels scaled to [0, 1].
    std: per channel, divides the result.
    read_options: Grain's threads, and batches read ahead.
  """

  image_shape: tuple[int, int, int]
  num_classes: int
  train_split: Split = dataclasses.field(repr=False)
  labelled_split: Split = dataclasses.field(repr=False)
  test_split: Split = dataclasses.field(repr=False)
  augment: Callable[..., np.ndarray] = dataclasses.field(repr=False)
  fit: Callable[..., np.ndarray] = dataclasses.field(repr=False)
  mean: Float[np.ndarray, ' channels'] = dataclasses.field(repr=False)
  std: Float[np.ndarray, ' channels'] = dataclasses.field(repr=False)
  read_options: grain.ReadOptions = dataclasses.field(repr=False)

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
  ) -> Iterator[dict[str, np.ndarray]]:
    """Endless augmented batches of a member's examples.

    Batch t is a pure function of the arguments and t, so a stream resumes from
    nothing but `start`, bit for bit. Each epoch visits each of the member's
    examples once in a new order; a batch may straddle two epochs. Order
    and augmentation follow the seed: members that share examples and seed draw
    the same batches.

    Args:
      member: whose stream, 0 ≤ member < members.
      members: how many members share the examples.
      partition: 'disjoint' or 'shared', see `data.partition`.
      seed: orders and augments, in [0, 2³²).
      batch_size: examples a batch.
      start: index of the first batch to yield.
      rows: those of each batch that are wanted here, ascending; None for all.
        Nothing else is read, and a row is the same whoever asks for it, so
        that hosts can share a batch.

    Returns:
      Batches {'inputs': float32 [rows, *image_shape], normalised,
      'labels': int32 [rows], `UNLABELLED` where there is none}.

    Raises:
      ValueError: for arguments out of range, or an empty shard.
    """
    if start < 0:
      raise ValueError(f'start must not be negative, got {start}.')
    shard = partition_lib.partition_indices(
      self.num_train, member, members, partition
    )

    wanted = np.arange(batch_size) if rows is None else rows

    def load(indices, rng):
      images, labels = self.train_split.read(indices[wanted])
      inputs = self._normalise(self.augment(images, rng, wanted, batch_size))
      return {'inputs': inputs, 'labels': labels}

    # Batches of indices, not of examples: ArrayRecord reads many records at a
    # time at a quarter of the cost of one by one.
    batches = (
      grain.MapDataset.range(self.num_train)[shard]
      .seed(seed)
      .shuffle()
      .repeat(reseed_each_epoch=True)
      .batch(batch_size)
      .random_map(load)
    )
    return iter(batches[start:].to_iter_dataset(self.read_options))

  def eval(
    self, split: str, *, batch_size: int, rows: np.ndarray | None = None
  ) -> Iterator[dict[str, np.ndarray]]:
    """Every example of a split exactly once, in a fixed order, not augmented.

    Args:
      split: 'train' or 'test'.
      batch_size: examples a batch; the last one is filled up with zeros.
      rows: those of each batch that are wanted here, ascending; None for all.

    Returns:
      Batches {'inputs': float32 [rows, *image_shape], normalised,
      'labels': int32 [rows], 'mask': float32 [rows], 1 for an example and 0
      for padding}.

    Raises:
      ValueError: for another split.
    """
    examples = self._split(split)

    wanted = np.arange(batch_size) if rows is None else rows

    def load(indices):
      batch = {
        'inputs': np.zeros((len(wanted), *self.image_shape), np.float32),
        'labels': np.zeros(len(wanted), np.int32),
        'mask': np.zeros(len(wanted), np.float32),
      }
      there = wanted[wanted < len(indices)]
      if len(there):
        images, labels = examples.read(indices[there])
        batch['inputs'][: len(there)] = self._normalise(self.fit(images))
        batch['labels'][: len(there)] = labels
        batch['mask'][: len(there)] = 1
      return batch

    batches = grain.MapDataset.range(examples.num_examples).batch(batch_size)
    return iter(batches.map(load).to_iter_dataset(self.read_options))

  def label_distribution(self) -> Float[np.ndarray, ' num_classes']:
    """The share of each class in the labelled training examples, float32.

    It sums to one. Decodes no image, but reads every record: seconds for CIFAR,
    as long as the disk takes for ImageNet.
    """
    counts = np.zeros(self.num_classes, np.int64)
    indices = np.arange(self.labelled_split.num_examples)
    for start in range(0, len(indices), 256):
      labels = self.labelled_split.read_labels(indices[start : start + 256])
      counts += np.bincount(labels, minlength=self.num_classes)
    return (counts / counts.sum()).astype(np.float32)

  def _split(self, split: str) -> Split:
    splits = {'train': self.labelled_split, 'test': self.test_split}
    if split not in splits:
      raise ValueError(
        f'Unknown split {split!r}, expected one of {tuple(splits)}.'
      )
    return splits[split]

  def _normalise(self, images: np.ndarray) -> np.ndarray:
    return (images / np.float32(255) - self.mean) / self.std


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
  mean: Sequence[float],
  std: Sequence[float],
  cache: bool,
  num_threads: int,
  prefetch_batches: int,
) -> ImageSet:
  """Opens an image classification set; writes and downloads nothing.

  Args:
    name: 'digits' (scikit-learn's 8 × 8 digits, 1437 to train on and 360 to
      test) or a TFDS set: 'cifar10', 'imagenet2012', 'svhn_cropped:3.1.0', ….
    train_split: TFDS's name of the split to train on, 'train' or a part of it
      such as 'train[:90%]'; digits have 'train' only.
    eval_split: the same for the split that is called 'test' here; digits have
      'test' only.
    unlabelled_split: examples to train on besides those of `train_split`, whose
      labels are left alone; None for none.
    data_dir: where TFDS sets lie; None for $TFDS_DATA_DIR, or TFDS's default.
    augmentation: 'none'; 'shift' (a crop after black padding); 'shift_flip'
      (and a horizontal flip, half of the time); 'inception' (a random part of
      the image resized to a square, and a flip, as Goyal et al. 2017).
    padding: pixels on each side, for 'shift' and 'shift_flip'; else unused.
    image_size: height and width for 'inception', which evaluates on the centre
      crop after resizing the shorter side to 256/224 of it; else unused, and
      images keep their size.
    mean: per channel, of pixels scaled to [0, 1].
    std: per channel.
    cache: decode each split once and hold it in memory, as uint8; for sets of
      one image size that fit (digits always are).
    num_threads: that read and augment batches, per iterator; 0 for none, best
      for digits.
    prefetch_batches: batches read ahead, per iterator; at least `num_threads`
      to keep all of them busy.

  Raises:
    NotPreparedError: if the set is not in the folder, or not as ArrayRecord.
    ValueError: if there is no such set, split or augmentation, if the set is
      not one of images and labels, or if arguments do not suit it.
  """
  shape, num_classes, splits = _open(name, data_dir, train_split, eval_split)
  augment, fit, size = augmentation_lib.make_views(
    augmentation, padding, image_size, shape[:2]
  )
  if None in size:
    raise ValueError(
      f"Images of {name!r} vary in size: augmentation 'inception' makes them "
      f'alike, {augmentation!r} does not.'
    )
  if cache and None in shape[:2]:
    raise ValueError(
      f'Images of {name!r} vary in size and cannot be held in one array: set '
      'data.cache to False.'
    )
  channels = shape[-1]
  if not len(mean) == len(std) == channels:
    raise ValueError(
      f'mean and std need one number per channel: {name!r} has {channels} '
      f'channel(s), got {len(mean)} and {len(std)} numbers.'
    )
  keep = _in_memory if cache else lambda split: split
  labelled = train = keep(splits[0])
  if unlabelled_split is not None:
    _, _, (others, _) = _open(name, data_dir, unlabelled_split, eval_split)
    train = _and_unlabelled(labelled, keep(others))
  return ImageSet(
    image_shape=(*size, channels),
    num_classes=num_classes,
    train_split=train,
    labelled_split=labelled,
    test_split=keep(splits[1]),
    augment=augment,
    fit=fit,
    mean=np.asarray(mean, np.float32),
    std=np.asarray(std, np.float32),
    read_options=grain.ReadOptions(num_threads, prefetch_batches),
  )


def _open(name, data_dir, train_split, eval_split):
  """The stored shape, the number of classes, and the two splits of a set."""
  if name in SETS:
    # Imported here: scikit-learn takes a second that others need not wait.
    opened = importlib.import_module(SETS[name])
    return opened.open_set(train_split, eval_split)
  return _open_tfds(name, data_dir, train_split, eval_split)


def _and_unlabelled(labelled: Split, others: Split) -> Split:
  """The examples of one split, and those of another without their labels."""
  first = labelled.num_examples

  def read_labels(indices):
    labels = np.full(len(indices), UNLABELLED, np.int32)
    known = indices < first
    labels[known] = labelled.read_labels(indices[known])
    return labels

  def read(indices):
    images: list[np.ndarray | None] = [None] * len(indices)
    labels = np.full(len(indices), UNLABELLED, np.int32)
    known = np.flatnonzero(indices < first)
    unknown = np.flatnonzero(indices >= first)
    if len(known):
      found, labels[known] = labelled.read(indices[known])
      for place, image in zip(known, found, strict=True):
        images[place] = image
    if len(unknown):
      found, _ = others.read(indices[unknown] - first)
      for place, image in zip(unknown, found, strict=True):
        images[place] = image
    return images, labels

  return Split(first + others.num_examples, read, read_labels)


def _in_memory(split: Split) -> Split:
  """The same examples, decoded once, when the first of them is asked for."""
  lock = threading.Lock()

  @functools.cache
  def everything():
    images, labels = split.read(np.arange(split.num_examples))
    return np.stack(images), labels

  def read(indices):
    with lock:  # Grain's threads would each decode all of it.
      images, labels = everything()
    return images[indices], labels[indices]

  return Split(split.num_examples, read, split.read_labels)


# TFDS: from a name to the stored shape (None where it varies), the number of
# classes, and the two splits.


def _open_tfds(name, data_dir, train_split, eval_split):
  builder = _find_builder(name, data_dir)
  shape, num_classes, keys = _describe(builder)

  def make_split(split):
    # Left encoded: labels are then cheap, and OpenCV takes half as long
    # without TFDS around it.
    source = builder.as_data_source(
      split,
      decoders={keys[0]: _tfds().decode.SkipDecoding()},
      file_format='array_record',
    )

    def read_encoded(indices):
      examples = source.__getitems__(indices.tolist())
      images, labels = ([ex[key] for ex in examples] for key in keys)
      return images, np.array(labels, np.int32)

    def read(indices):
      images, labels = read_encoded(indices)
      return [_decode(image, shape[-1]) for image in images], labels

    return Split(len(source), read, lambda indices: read_encoded(indices)[1])

  return shape, num_classes, (make_split(train_split), make_split(eval_split))


def _tfds():
  # Half a second, and not needed for digits.
  import tensorflow_datasets

  return tensorflow_datasets


def _find_builder(name, data_dir):
  """Finds a prepared set by name, or says what is missing."""
  tfds = _tfds()
  try:
    builder = tfds.builder(name, data_dir=data_dir)
  # AssertionError for a version that TFDS does not have.
  except (ValueError, AssertionError):
    known = [*SETS, *tfds.list_builders(with_community_datasets=False)]
    near = difflib.get_close_matches(name, known)
    hint = f': did you mean {" or ".join(near)}?' if near else '.'
    raise ValueError(f'There is no image set called {name!r}{hint}') from None
  except ImportError as error:
    raise ValueError(
      f'TFDS cannot open {name!r} without the package {error.name}.'
    ) from error
  if not builder.info.initialized:
    raise NotPreparedError(
      f'{name} is not prepared in {builder.data_dir}: run `python -m '
      f'scripts.prepare_images {name}` once, or set TFDS_DATA_DIR to the '
      'folder that holds it.'
    )
  formats = sorted(form.value for form in builder.info.available_file_formats())
  if 'array_record' not in formats:
    raise NotPreparedError(
      f'{name} is prepared in {builder.data_dir} as {" and ".join(formats)}, '
      'not as array_record: run `python -m scripts.prepare_images '
      f'{name} --data_dir=DIR` with another folder, and set TFDS_DATA_DIR to '
      'it.'
    )
  return builder


def _describe(builder):
  """Returns the image's shape, the number of classes, and their two keys."""
  tfds, features = _tfds(), builder.info.features
  # A few sets have a third key, which says more about the example.
  keys = (builder.info.supervised_keys or ('image', 'label'))[:2]
  # Some sets nest their keys, and those have no one image or label.
  image, label = (
    features[key] if isinstance(key, str) and key in features else None
    for key in keys
  )
  if not (
    isinstance(image, tfds.features.Image)
    and isinstance(label, tfds.features.ClassLabel)
    and image.np_dtype == np.uint8
    and image.shape[-1] in (1, 3)
  ):
    raise ValueError(
      f'{builder.name} is not an image classification set: expected 8-bit '
      f'images of 1 or 3 channels and one label each, got {features}'
    )
  return image.shape, label.num_classes, keys


def _decode(encoded: bytes, channels: int) -> np.ndarray:
  """Decodes a PNG or JPEG to uint8 [height, width, channels], RGB."""
  # TensorFlow ignores the camera's orientation flag, and so did the authors.
  color = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
  image = cv2.imdecode(
    np.frombuffer(encoded, np.uint8), color | cv2.IMREAD_IGNORE_ORIENTATION
  )
  if image is None:
    raise ValueError('A stored image is neither PNG nor JPEG, or damaged.')
  return image.reshape(*image.shape[:2], channels)

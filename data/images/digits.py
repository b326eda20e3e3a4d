"""Handwritten digits that come with scikit-learn and need no preparation."""

import gzip
import pathlib
import types
from importlib import metadata

import numpy as np

from data.images.split import Split

_FILE = 'sklearn/datasets/data/digits.csv.gz'
# Numbers of the examples, uint16 [1797]: those to train on, then those to test,
# each in the order in which scikit-learn's `train_test_split` drew them.
_ORDER = pathlib.Path(__file__).with_name('digits_order.npy')
_NUM_TEST = 360


def open_set(train_split, eval_split):
  """Opens the 8 × 8 digits: 1437 to train on, 360 to test, stratified.

  Args:
    train_split: 'train', or a part of it in TFDS's notation, 'train[:50%]'.
    eval_split: 'test'.

  Returns:
    The shape of an image, the number of classes, and the two splits.

  Raises:
    ValueError: for other splits.
  """
  if train_split.partition('[')[0] != 'train' or eval_split != 'test':
    raise ValueError(
      "digits have the splits 'train', or parts of it, and 'test', got "
      f'{train_split!r} and {eval_split!r}.'
    )
  # Without scikit-learn's import, which takes a second.
  path = metadata.distribution('scikit-learn').locate_file(_FILE)
  with gzip.open(path, 'rt') as lines:
    table = np.loadtxt(lines, delimiter=',')
  pixels = table[:, :-1].reshape(-1, 8, 8, 1)
  images = np.rint(pixels * (255 / 16)).astype(np.uint8)
  labels = table[:, -1].astype(np.int32)
  train, test = np.split(np.load(_ORDER), [-_NUM_TEST])
  parts = (train[_part(train_split, len(train))], test)

  def make_split(part):
    return Split(
      len(part),
      read=lambda indices: (images[part[indices]], labels[part[indices]]),
      read_labels=lambda indices: labels[part[indices]],
    )

  return (8, 8, 1), 10, tuple(make_split(part) for part in parts)


def _part(split, size):
  """Parses 'train[:50%]' into a slice of `size` examples."""
  if split == 'train':
    return slice(None)
  # The import takes half a second.
  import tensorflow_datasets as tfds

  whole = {'train': types.SimpleNamespace(num_examples=size)}
  try:
    [part] = tfds.core.ReadInstruction.from_spec(split).to_absolute(whole)
  except (AssertionError, ValueError) as error:
    raise ValueError(f'There is no part {split!r} of digits.') from error
  return slice(part.from_, part.to)

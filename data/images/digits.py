"""Handwritten digits that come with scikit-learn and need no preparation."""

import types

import numpy as np

from data.images.split import Split


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
  # The import takes a second.
  from sklearn import datasets, model_selection

  digits = datasets.load_digits()
  images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
  labels = digits.target.astype(np.int32)
  train, test = model_selection.train_test_split(
    np.arange(len(labels)), test_size=360, stratify=labels, random_state=0
  )
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

"""Splits of image sets: stored examples, read by their indices."""

import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data.images.augmentation import whole_images
from data.images.decoding import Encoded

# The label of an example without a label, or with an ignored one.
UNLABELLED = -1


class BadDataError(ValueError):
  """An example is unusable; the message names it."""


@dataclasses.dataclass(frozen=True)
class Split:
  """Random access to the stored examples of one split.

  Attributes:
    num_examples: number of examples.
    read: from indices to as many images (uint8 [height, width, channels] or
      `Encoded`, sizes may differ) and labels (int32 [len(indices)]).
    read_labels: from indices to labels, without decoding an image.
    name: from an index to the example's name for messages.
  """

  num_examples: int
  read: Callable[[np.ndarray], tuple[Sequence[np.ndarray], np.ndarray]]
  read_labels: Callable[[np.ndarray], np.ndarray]
  name: Callable[[int], str] = 'example {}'.format


def and_unlabelled(labelled: Split, others: Split) -> Split:
  """Joins the examples of a split with another's, without their labels."""
  first = labelled.num_examples

  def read_labels(indices):
    labels = np.full(len(indices), UNLABELLED, np.int32)
    known = indices < first
    labels[known] = labelled.read_labels(indices[known])
    return labels

  def read(indices):
    images: list[Any] = [None] * len(indices)
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

  def name(index):
    own = index < first
    return labelled.name(index) if own else others.name(index - first)

  return Split(first + others.num_examples, read, read_labels, name)


def in_memory(split: Split, shape: tuple[int, int, int]) -> Split:
  """Keeps the same examples in memory, decoded once, on first use."""
  lock = threading.Lock()

  @functools.cache
  def everything():
    images, labels = split.read(np.arange(split.num_examples))
    return *whole_images(images, shape), labels

  def read(indices):
    with lock:  # Otherwise each of Grain's threads would decode everything.
      images, black, labels = everything()
    found = images[indices]
    corrupt = np.isin(indices, black)
    if corrupt.any():
      nothing = Encoded(b'', shape[-1])
      found = [
        nothing if gone else image
        for image, gone in zip(found, corrupt, strict=True)
      ]
    return found, labels[indices]

  return dataclasses.replace(split, read=read)

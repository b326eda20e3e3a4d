"""What becomes of stored images on their way to a model.

A view takes a sequence of uint8 images of shape [height, width, channels] and
returns uint8 [images, height, width, channels]: at random for training, always
the same for evaluation. What chance does to an image depends on its row in the
batch, not on which other rows are asked for: hosts may share a batch.
"""

import cv2
import numpy as np


def make_views(augmentation, padding, image_size, stored_size):
  """The training view, the evaluation view and the size of both.

  Args:
    augmentation: 'none', 'shift', 'shift_flip' or 'inception', as
      `data.images.make_images` says.
    padding: pixels on each side, for 'shift' and 'shift_flip'.
    image_size: height and width, for 'inception'.
    stored_size: height and width of the stored images; None where they vary.

  Returns:
    (images, generator, rows, batch size) → views of the batch's rows that the
    images are, images → views, and (height, width).

  Raises:
    ValueError: for an unknown augmentation, or one that lacks its argument.
  """
  as_they_are = np.stack

  def ask(value, argument):
    if value is None or value < 0:
      raise ValueError(
        f'Augmentation {augmentation!r} needs {argument}, got {value}.'
      )
    return value

  if augmentation == 'none':
    return (
      lambda images, rng, rows, batch_size: np.stack(images),
      as_they_are,
      stored_size,
    )
  if augmentation in ('shift', 'shift_flip'):
    pad, flip = ask(padding, 'padding'), augmentation == 'shift_flip'
    return (
      lambda images, rng, rows, batch_size: shift(
        np.stack(images), rng, rows, batch_size, pad, flip
      ),
      as_they_are,
      stored_size,
    )
  if augmentation == 'inception':
    size = ask(image_size, 'image_size')
    return (
      lambda images, rng, rows, batch_size: crop_each(images, rng, rows, size),
      lambda images: np.stack([centre_crop(image, size) for image in images]),
      (size, size),
    )
  raise ValueError(
    f'Unknown augmentation {augmentation!r}, expected one of '
    "('none', 'shift', 'shift_flip', 'inception')."
  )


def shift(images, rng, rows, batch_size, padding, flip):
  """Moves each image by up to `padding` pixels either way; flips half."""
  count, height, width, _ = images.shape
  padded = np.pad(
    images, [(0, 0), (padding, padding), (padding, padding), (0, 0)]
  )
  # For the whole batch: the draws of a row are the same whoever asks for it.
  top, left = rng.integers(2 * padding + 1, size=(2, batch_size, 1))[:, rows]
  lines = top + np.arange(height)
  columns = left + np.arange(width)
  if flip:
    mirrored = rng.random((batch_size, 1))[rows] < 0.5
    columns = np.where(mirrored, columns[:, ::-1], columns)
  example = np.arange(count)[:, None, None]
  return padded[example, lines[:, :, None], columns[:, None, :]]


def crop_each(images, rng, rows, size):
  """`random_resized_crop` of each image, with a generator for each row."""
  seed = rng.integers(2**63)
  return np.stack(
    [
      random_resized_crop(image, np.random.default_rng((seed, row)), size)
      for image, row in zip(images, rows.tolist(), strict=True)
    ]
  )


def random_resized_crop(image, rng, size):
  """Resizes a random part of an image to a square; flips half.

  The part has 8 % to 100 % of the area and an aspect ratio of 3/4 to 4/3,
  uniform on a logarithmic scale (Szegedy et al. 2015). Where ten draws do not
  fit into the image, its centre square serves.
  """
  height, width, _ = image.shape
  for _ in range(10):
    area = rng.uniform(0.08, 1) * height * width
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    rows = round(np.sqrt(area / aspect))
    columns = round(np.sqrt(area * aspect))
    if 0 < rows <= height and 0 < columns <= width:
      top = rng.integers(height - rows + 1)
      left = rng.integers(width - columns + 1)
      break
  else:
    rows = columns = min(height, width)
    top, left = (height - rows) // 2, (width - columns) // 2
  part = resize(image[top : top + rows, left : left + columns], size, size)
  return part[:, ::-1] if rng.random() < 0.5 else part


def centre_crop(image, size):
  """Resizes the shorter side to size · 256/224, and cuts out the centre."""
  height, width, _ = image.shape
  scale = size * 256 / 224 / min(height, width)
  image = resize(image, round(height * scale), round(width * scale))
  top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
  return image[top : top + size, left : left + size]


def resize(image, height, width):
  """Resizes an image without leaving out any of its pixels."""
  # OpenCV's linear filter skips pixels when it shrinks; the area filter counts
  # them all.
  shrinks = height * width < image.shape[0] * image.shape[1]
  filter_ = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
  resized = cv2.resize(image, (width, height), interpolation=filter_)
  return resized.reshape(height, width, image.shape[2])

"""Turns stored images into a model's inputs, with or without augmentation.

A view takes a sequence of images, uint8 [height, width, channels] or `Encoded`.
It returns uint8 [images, height, width, channels] and the places of the images
that cannot be decoded, which it leaves black. Views are random for training and
fixed for evaluation. The random draws of an image depend on its row in the
batch, not on the other rows, so hosts and processes may share a batch.

'inception' is the augmentation of Goyal et al. (2017, §5.1), whom the paper
follows for ImageNet: a random part and aspect ratio, a flip, and normalised
colours, which the model does itself (`codistill.models.with_pixels`). Their
text does not mention the colour jitter and lighting noise of their code, and
they are left out here.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from data.images.decoding import CorruptImageError, Encoded

Image = np.ndarray | Encoded


def make_views(augmentation, padding, image_size, stored_shape):
  """Returns the training view, the evaluation view and the shape of both.

  Args:
    augmentation: 'none', 'shift', 'shift_flip' or 'inception', as in
      `data.images.dataset.make_images`.
    padding: pixels on each side, for 'shift' and 'shift_flip'.
    image_size: height and width, for 'inception'.
    stored_shape: height, width and channels of the stored images; height and
      width None where they vary.

  Returns:
    (images, generator, their rows in the batch, batch size) → views, and the
    places of black ones; images → the same for evaluation; and (height, width,
    channels).

  Raises:
    ValueError: for an unknown augmentation, or one that lacks its argument.
  """

  def ask(value, argument):
    if value is None or value < 0:
      raise ValueError(
        f'Augmentation {augmentation!r} needs {argument}, got {value}.'
      )
    return value

  def as_they_are(images):
    return whole_images(images, stored_shape)

  if augmentation == 'none':
    return (
      lambda images, rng, rows, batch_size: as_they_are(images),
      as_they_are,
      stored_shape,
    )
  if augmentation in ('shift', 'shift_flip'):
    pad, flip = ask(padding, 'padding'), augmentation == 'shift_flip'

    def shift_each(images, rng, rows, batch_size):
      whole, black = as_they_are(images)
      return shift(whole, rng, rows, batch_size, pad, flip), black

    return shift_each, as_they_are, stored_shape
  if augmentation == 'inception':
    size = ask(image_size, 'image_size')
    shape = (size, size, stored_shape[-1])

    def crop_each(images, rng, rows, batch_size):
      del batch_size
      seed = rng.integers(2**63)  # Each row gets its own generator.
      return view_each(
        lambda image, row: random_resized_crop(
          image, np.random.default_rng((seed, row)), size
        ),
        images,
        rows.tolist(),
        shape,
      )

    def centre_each(images):
      return view_each(
        lambda image, _: centre_crop(image, size),
        images,
        range(len(images)),
        shape,
      )

    return crop_each, centre_each, shape
  raise ValueError(
    f'Unknown augmentation {augmentation!r}, expected one of '
    "('none', 'shift', 'shift_flip', 'inception')."
  )


def view_each(
  function: Callable[[Image, int], np.ndarray],
  images: Sequence[Image],
  rows: Sequence[int],
  shape: tuple[int, int, int],
) -> tuple[np.ndarray, list[int]]:
  """Returns function(image, row) of each image, and corrupt images' places."""
  views, black = np.zeros((len(images), *shape), np.uint8), []
  for place, (image, row) in enumerate(zip(images, rows, strict=True)):
    try:
      view = function(image, row)
      if view.shape != shape:
        raise CorruptImageError(f'of shape {view.shape}, not {shape}')
      views[place] = view
    except CorruptImageError:
      black.append(place)
  return views, black


def whole_images(images, shape):
  """Returns images of one size unchanged, in the form of `view_each`."""
  if isinstance(images, np.ndarray):
    return images, []
  return view_each(
    lambda image, _: image.whole if isinstance(image, Encoded) else image,
    images,
    range(len(images)),
    shape,
  )


def shift(images, rng, rows, batch_size, padding, flip):
  """Moves each image by up to `padding` pixels either way; flips half."""
  count, height, width, _ = images.shape
  padded = np.pad(
    images, [(0, 0), (padding, padding), (padding, padding), (0, 0)]
  )
  # Draws for the whole batch: a row's draws do not depend on the other rows.
  top, left = rng.integers(2 * padding + 1, size=(2, batch_size, 1))[:, rows]
  lines = top + np.arange(height)
  columns = left + np.arange(width)
  if flip:
    mirrored = rng.random((batch_size, 1))[rows] < 0.5
    columns = np.where(mirrored, columns[:, ::-1], columns)
  example = np.arange(count)[:, None, None]
  return padded[example, lines[:, :, None], columns[:, None, :]]


def random_resized_crop(image, rng, size):
  """Resizes a random part of an image to a square; flips half.

  The part has 8 % to 100 % of the area and an aspect ratio of 3/4 to 4/3,
  uniform on a logarithmic scale (Szegedy et al. 2015). The centre square
  replaces it if ten draws do not fit into the image.
  """
  height, width = _size_of(image)
  for _ in range(10):
    area = rng.uniform(0.08, 1) * height * width
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    rows = round(np.sqrt(area / aspect))
    columns = round(np.sqrt(area * aspect))
    if 0 < rows <= height and 0 < columns <= width:
      top = int(rng.integers(height - rows + 1))
      left = int(rng.integers(width - columns + 1))
      break
  else:
    rows = columns = min(height, width)
    top, left = (height - rows) // 2, (width - columns) // 2
  part = resize(_part(image, top, left, rows, columns, size), size, size)
  if rng.random() < 0.5:
    # NumPy takes twenty times as long to copy a reversed view.
    part = cv2.flip(part, 1).reshape(part.shape)
  return part


def centre_crop(image, size):
  """Resizes the centre square of 224/256 of the shorter side.

  The result is that of resizing the shorter side to size · 256/224 and cutting
  out the centre, with fewer pixels to resize.
  """
  height, width = _size_of(image)
  side = max(1, round(min(height, width) * 224 / 256))
  top, left = (height - side) // 2, (width - side) // 2
  return resize(_part(image, top, left, side, side, size), size, size)


def resize(image, height, width):
  """Resizes an image, using all of its pixels."""
  # OpenCV's linear filter looks at two by two pixels, so it skips some when it
  # shrinks an image to less than a half. The area filter uses them all, at
  # eight times the cost.
  shrinks = max(image.shape[0] / height, image.shape[1] / width)
  filter_ = cv2.INTER_AREA if shrinks > 2 else cv2.INTER_LINEAR
  resized = cv2.resize(image, (width, height), interpolation=filter_)
  return resized.reshape(height, width, image.shape[2])


def _size_of(image: Image) -> tuple[int, int]:
  return image.size if isinstance(image, Encoded) else image.shape[:2]


def _part(
  image: Image, top: int, left: int, rows: int, columns: int, at_least: int
) -> np.ndarray:
  """Cuts out a part, perhaps downscaled, but to no less than `at_least`."""
  if isinstance(image, Encoded):
    return image.part(top, left, rows, columns, at_least)
  return image[top : top + rows, left : left + columns]

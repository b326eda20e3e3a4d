"""A few made-up JPEGs in ImageNet's stored form, without a download.

The reader of `imagenet2012` reads these, too: files, features and keys are
those of TFDS. One training image is grey and one a PNG, as in ImageNet. The
labels are unrelated to the images.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import cv2
import numpy as np

from data.images.tfds import open_tfds
from data.preparing import cache

NAME, VERSION = 'imagenet2012', '5.1.0'
NUM_CLASSES = 1_000
# With fewer, Grain's `index_shuffle` needs a millisecond for each.
_SPLITS = {'train': 512, 'validation': 32}
# Change it with the content.
_KEY = 'imagenet-sample-512'
Example = Mapping[str, Any]


def open_set(train_split, eval_split):
  """Opens 512 images to train on and 32 to validate on, of 1,000 classes.

  Args:
    train_split: 'train', or a part of it in TFDS's notation.
    eval_split: 'validation', or a part of it.

  Returns:
    The shape of an image, the number of classes, and the two splits.

  Raises:
    ValueError: for other splits, or if the images cannot be written.
  """
  folder = cache.cache_folder(None) / _KEY
  try:
    cache.open_or_make(folder, _check_there, _make)
  except OSError as error:
    raise ValueError(
      f'The sample of images cannot be written to {folder.parent} '
      f'({error.strerror}): set XDG_CACHE_HOME to a folder that you can write '
      'to.'
    ) from error
  return open_tfds(NAME, folder, train_split, eval_split)


def write(folder: str | os.PathLike, splits: Mapping[str, Iterable[Example]]):
  """Writes examples in TFDS's form of ImageNet, without TensorFlow.

  Args:
    folder: the set's `data_dir`.
    splits: by name, examples {'image': bytes, 'label': int, 'file_name': str}.
  """
  # Only writing needs these imports.
  import tensorflow_datasets as tfds
  from array_record.python import array_record_module

  path = pathlib.Path(folder, NAME, VERSION)
  path.mkdir(parents=True)
  features = tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(encoding_format='jpeg'),
      'label': tfds.features.ClassLabel(num_classes=NUM_CLASSES),
      'file_name': tfds.features.Text(),
    }
  )
  features.save_config(path)
  described = []
  for split, examples in splits.items():
    file = path / f'{NAME}-{split}.array_record-00000-of-00001'
    writer = array_record_module.ArrayRecordWriter(str(file), 'group_size:1')
    count = 0
    for example in examples:
      writer.write(features.serialize_example(example))
      count += 1
    writer.close()
    described.append(
      {
        'name': split,
        'shardLengths': [str(count)],
        'numBytes': str(file.stat().st_size),
        'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
      }
    )
  keys = [{'featureKey': 'image'}, {'featureKey': 'label'}]
  info = {
    'name': NAME,
    'version': VERSION,
    'fileFormat': 'array_record',
    'splits': described,
    'supervisedKeys': {'tuple': {'items': keys}},
  }
  (path / 'dataset_info.json').write_text(json.dumps(info))


def photograph(rng, height: int, width: int) -> np.ndarray:
  """Makes pixels with the spectrum of photographs, 1/f, and edges.

  Args:
    rng: NumPy's generator.
    height: in pixels.
    width: in pixels.

  Returns:
    uint8 [height, width, 3]. As a JPEG of quality 90 it has about as many bytes
    as ImageNet's images of that size.
  """
  frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
  frequency[0, 0] = 1 / max(height, width)

  def field(power, scale):
    noise = rng.normal(size=(2, *frequency.shape))
    values = np.fft.irfft2(
      (noise[0] + 1j * noise[1]) / frequency**power, s=(height, width)
    )
    return scale * (values - values.mean()) / values.std()

  grey = 120 + field(1, 55)
  for _ in range(12):
    shape = np.zeros((height, width), np.uint8)
    centre = [int(rng.integers(side)) for side in (width, height)]
    axes = [int(rng.uniform(0.02, 0.25) * width) + 1 for _ in range(2)]
    cv2.ellipse(shape, centre, axes, rng.uniform(0, 180), 0, 360, 1, -1)
    grey = np.where(shape, 0.6 * grey + rng.uniform(0, 100), grey)
  colour = np.stack([grey + field(1.3, 16) for _ in range(3)], -1)
  return colour.clip(0, 255).astype(np.uint8)


def encode(pixels: np.ndarray, extension: str = '.jpg') -> bytes:
  """Encodes RGB or grey pixels as a file; JPEG of quality 90."""
  quality = [cv2.IMWRITE_JPEG_QUALITY, 90] if extension == '.jpg' else []
  return cv2.imencode(extension, pixels[..., ::-1], quality)[1].tobytes()


def _check_there(folder: pathlib.Path) -> None:
  if not folder.exists():
    raise ValueError(f'There is no {folder}.')


def _make(folder: pathlib.Path) -> None:
  write(folder, {name: _examples(name, num) for name, num in _SPLITS.items()})


def _examples(split, count):
  rng = np.random.default_rng(sum(split.encode()))
  for number in range(count):
    height, width = (int(side) for side in rng.integers(32, 96, size=2))
    pixels = photograph(rng, height, width)
    image = encode(pixels)
    if split == 'train':
      image = {
        1: encode(pixels[..., :1]),
        2: encode(pixels, '.png'),
      }.get(number, image)
    label = int(rng.integers(NUM_CLASSES))
    name = f'{split}_{number}.JPEG'
    yield {'image': image, 'label': label, 'file_name': name}

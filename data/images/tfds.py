"""Reads prepared TFDS sets through their ArrayRecord files.

Reading needs no TensorFlow and no network; preparing a set once with `python -m
scripts.prepare_images NAME` does.
"""

import os

import numpy as np

from data.images.decoding import Encoded
from data.images.split import BadDataError, Split
from data.preparing.tfds import NotPreparedError, open_builder


def open_tfds(name, data_dir, train_split, eval_split, others=()):
  """Opens a prepared TFDS set.

  Args:
    name: see `data.images.dataset.make_images`.
    data_dir: see there.
    train_split: see there.
    eval_split: see there.
    others: names of other sets, to suggest for a misspelt one.

  Returns:
    The stored shape (None where it varies), the number of classes, and the two
    splits.

  Raises:
    NotPreparedError: if it is not prepared, or not as ArrayRecord.
    ValueError: if there is no such set or split, or it is not one of images.
  """
  builder = open_builder(
    name, data_dir, folder_key='TFDS_DATA_DIR', others=others
  )
  shape, num_classes, keys = _describe(builder)

  def make_split(split):
    _check_split(builder, name, split)
    # Left encoded: labels are then cheap, and decoding with OpenCV alone takes
    # half as long as through TFDS.
    source = builder.as_data_source(
      split,
      decoders={keys[0]: _tfds().decode.SkipDecoding()},
      file_format='array_record',
    )

    def read_encoded(indices):
      try:
        examples = source.__getitems__(indices.tolist())
      except RuntimeError as error:  # ArrayRecord's for any fault.
        raise BadDataError(
          f'{name} {split} cannot be read in {builder.data_dir} '
          f'({_one_line(error)}); prepare it again'
        ) from error
      images, labels = ([ex[key] for ex in examples] for key in keys)
      return images, np.array(labels, np.int32)

    def read(indices):
      images, labels = read_encoded(indices)
      return [Encoded(image, shape[-1]) for image in images], labels

    def name_of(index):
      file_name = source[index].get('file_name', b'').decode()
      return f'{name} {split}[{index}]' + (file_name and f' ({file_name})')

    return Split(
      len(source), read, lambda indices: read_encoded(indices)[1], name_of
    )

  return shape, num_classes, (make_split(train_split), make_split(eval_split))


def _check_split(builder, name, split):
  """Refuses a missing or incomplete split."""
  splits = builder.info.splits
  try:
    parts = splits[split].file_instructions
  # KeyError for an unknown name, ValueError for a malformed part.
  except (KeyError, ValueError) as error:
    raise ValueError(
      f'{name} in {builder.data_dir} has the splits {" and ".join(splits)}, no '
      f'{split!r} ({_one_line(error)})'
    ) from error
  there = {path.name for path in builder.data_path.iterdir()}
  for part in parts:
    file = os.path.basename(part.filename)
    if file not in there:
      raise NotPreparedError(
        f'{file} is missing in {builder.data_dir}: bring it back, or remove '
        f'that folder and prepare {name} again.'
      )


def _one_line(error):
  return ' '.join(str(error).split())[:300]


def _tfds():
  # The import takes half a second, and digits do not need it.
  import tensorflow_datasets

  return tensorflow_datasets


def _describe(builder):
  """Returns the image's shape, the number of classes, and their two keys."""
  tfds, features = _tfds(), builder.info.features
  # A few sets have a third key, with more about the example.
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

"""How fast images reach a model: read, decoded, augmented, batched.

The photographs are made up, of ImageNet's usual size (500 × 375, quality 90,
about 110 kB), stored in imagenet2012's form, and cut to 224 pixels. A rate is
images a second of one core, by the processor time of all processes involved:
first of each stage alone, then of the pipeline as training runs it, with 0, 1
and 2 worker processes, a few batches of each in turn. Large photographs (2,000
× 1,500), which the decoder scales down itself, are measured, too, and the same
augmentation in tf.data if TensorFlow is installed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import psutil

from data.images import augmentation, imagenet_sample
from data.images.dataset import ImageSet, make_images
from data.images.decoding import Encoded
from scripts.benchmark.measure import Measure, Measures

TITLE = 'images, 500 × 375 → 224 × 224'
ROUNDS = 'rounds of each stage and each pipeline'
COPIES = 16
REST_SECONDS = 1.0
RATE = 'images/s a core'


class Shapes(NamedTuple):
  """Shapes of images and batches.

  Attributes:
    size: height and width of a photograph.
    large: height and width of a large one.
    image_size: the size that they are cut to.
    num_images: number of photographs.
    num_large: number of large ones.
    batch_size: images in a batch.
    num_batches: batches of a pipeline in a round.
    workers: number of processes, for each pipeline.
  """

  size: tuple[int, int]
  large: tuple[int, int]
  image_size: int
  num_images: int
  num_large: int
  batch_size: int
  num_batches: int
  workers: tuple[int, ...]


FULL = Shapes(
  size=(375, 500),
  large=(1_500, 2_000),
  image_size=224,
  num_images=64,
  num_large=4,
  batch_size=128,
  num_batches=4,
  workers=(0, 1, 2),
)
SMALL = FULL._replace(num_images=32, num_large=2, batch_size=64)


def measure(rounds: int, shapes: Shapes) -> Iterator[list[Measure]]:
  """Times stages and pipelines in turn.

  Args:
    rounds: how many; an uncounted one goes first.
    shapes: of images and batches.

  Yields:
    All measurements so far, after each round.
  """
  rng = np.random.default_rng(0)
  files = photographs(rng, shapes.num_images, *shapes.size)
  large = photographs(rng, shapes.num_large, *shapes.large)
  found = Measures()
  found.note('file', 'kB', sum(map(len, files)) / len(files) / 1e3)
  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    write(folder, files)
    pipelines = {}
    for num_workers in shapes.workers:
      image_set = _open(folder, num_workers, shapes.image_size)
      batches = image_set.train(
        member=0,
        members=1,
        partition='shared',
        seed=0,
        batch_size=shapes.batch_size,
      )
      pipelines[num_workers] = stack.enter_context(contextlib.closing(batches))
    size = shapes.image_size
    stages = _stages(_open(folder, 0, size), files, large, size)
    tf_batches = _tf_batches(files, shapes)
    for number in range(rounds + 1):
      rates = {}
      for name, (stage, count) in stages.items():
        began = time.process_time()
        stage()
        rates[name] = count / (time.process_time() - began)
      for num_workers, batches in pipelines.items():
        rates[f'pipeline, {num_workers} workers'] = _pull(batches, shapes)
      if tf_batches is not None:
        rates['tf.data'] = _pull(tf_batches, shapes)
      if number:
        for name, rate in rates.items():
          found.note(name, RATE, rate)
        yield found.all()
  if tf_batches is None:
    print('TensorFlow is not installed, so tf.data was not measured.')


def photographs(
  rng: np.random.Generator, count: int, height: int, width: int
) -> list[bytes]:
  """Makes up photographs, as JPEGs."""
  return [
    imagenet_sample.encode(imagenet_sample.photograph(rng, height, width))
    for _ in range(count)
  ]


def write(folder: str, files: list[bytes]) -> None:
  """Stores files in imagenet2012's form, each many times for training."""
  examples = [
    {'image': data, 'label': number, 'file_name': str(number)}
    for number, data in enumerate(files)
  ]
  # Grain takes longer to shuffle few examples than many.
  splits = {'train': COPIES * examples, 'validation': examples[:1]}
  imagenet_sample.write(folder, splits)


def _open(folder: str, num_workers: int, image_size: int) -> ImageSet:
  return make_images(
    imagenet_sample.NAME,
    train_split='train',
    eval_split='validation',
    unlabelled_split=None,
    data_dir=folder,
    augmentation='inception',
    padding=None,
    image_size=image_size,
    cache=False,
    num_workers=num_workers,
    num_threads=1,
    prefetch_batches=1,
  )


def _stages(
  image_set: ImageSet, files: list[bytes], large: list[bytes], image_size: int
) -> dict[str, tuple[Callable[[], object], int]]:
  """Each stage alone, and its number of images."""
  encoded = [Encoded(data, 3) for data in files]
  decoded = [image.whole for image in encoded]

  def crop(images):
    rng = np.random.default_rng(0)
    for image in images:
      augmentation.random_resized_crop(image, rng, image_size)

  def decode(files):
    for data in files:
      # A new one each time, because it keeps what it has decoded.
      _ = Encoded(data, 3).whole

  everything = np.arange(len(files))
  return {
    'read': (lambda: image_set.train_split.read(everything), len(files)),
    'decode': (lambda: decode(files), len(files)),
    'augment': (lambda: crop(decoded), len(files)),
    'decode and augment': (
      lambda: crop([Encoded(data, 3) for data in files]),
      len(files),
    ),
    'large: decode': (lambda: decode(large), len(large)),
    'large: decode in part and augment': (
      lambda: crop([Encoded(data, 3) for data in large]),
      len(large),
    ),
  }


def _pull(batches: Iterator[dict[str, np.ndarray]], shapes: Shapes) -> float:
  """Images a second of processor time."""
  # From rest to rest, so that reading ahead counts once, and only for these
  # batches.
  spent = _rest()
  for _ in range(shapes.num_batches):
    next(batches)
  num_images = shapes.num_batches * shapes.batch_size
  return num_images / (_rest() - spent)


def _rest() -> float:
  """Waits until nothing is read ahead; returns the processor time so far."""
  before, now = -1.0, _processor_seconds()
  while now - before > 0.01:
    time.sleep(REST_SECONDS)
    before, now = now, _processor_seconds()
  return now


def _processor_seconds() -> float:
  this = psutil.Process()
  times = [one.cpu_times() for one in (this, *this.children(recursive=True))]
  return sum(each.user + each.system for each in times)


def _tf_batches(
  files: list[bytes], shapes: Shapes
) -> Iterator[dict[str, np.ndarray]] | None:
  """The same augmentation in tf.data, from files in memory."""
  if importlib.util.find_spec('tensorflow') is None:
    return None
  import tensorflow as tf

  def augment(data):
    window, size, _ = tf.image.sample_distorted_bounding_box(
      tf.io.extract_jpeg_shape(data),
      tf.zeros([1, 0, 4]),
      aspect_ratio_range=(3 / 4, 4 / 3),
      area_range=(0.08, 1.0),
      max_attempts=10,
      use_image_if_no_bounding_boxes=True,
    )
    window = tf.concat([window[:2], size[:2]], 0)
    image = tf.io.decode_and_crop_jpeg(data, window, channels=3)
    image = tf.image.resize(image, (shapes.image_size, shapes.image_size))
    return tf.cast(tf.image.random_flip_left_right(image), tf.uint8)

  images = tf.data.Dataset.from_tensor_slices(files).repeat()
  batches = images.map(augment, num_parallel_calls=1).batch(shapes.batch_size)
  return batches.as_numpy_iterator()

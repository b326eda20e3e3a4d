"""Images with labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from codistill import losses
from codistill.models import Model, with_pixels
from data.images.dataset import BadDataError, NotPreparedError, make_images
from experiments.errors import UserError, check_least, user_errors
from experiments.tasks import Dataset, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind(Task):
  """Images; experiments/configs/imagenet_sync.py explains the keys."""

  kind = 'images'
  must_agree = ('image_shape', 'num_classes')
  bad_data = (BadDataError, ChildProcessError)

  name: str
  train_split: str
  eval_split: str
  unlabelled_split: str | None
  data_dir: str | None
  image_shape: tuple[int, int, int]
  num_classes: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  augmentation: str
  padding: int
  cache: bool
  num_workers: int
  num_threads: int
  prefetch_batches: int

  def __post_init__(self):
    shape = tuple(self.image_shape)
    if len(shape) != 3 or min(shape) < 1:
      raise UserError(
        f'data.image_shape is {shape}; it must be (height, width, channels)'
      )
    counts = ('padding', 'num_workers', 'num_threads', 'prefetch_batches')
    check_least(
      {f'data.{key}': (getattr(self, key), 0) for key in counts}
      | {'data.num_classes': (self.num_classes, 1)}
    )

  def make_dataset(self) -> Dataset:
    """Digits, ImageNet's sample or a set of TFDS."""
    with user_errors(ValueError, NotPreparedError):
      dataset = make_images(
        self.name,
        train_split=self.train_split,
        eval_split=self.eval_split,
        unlabelled_split=self.unlabelled_split,
        data_dir=self.data_dir,
        augmentation=self.augmentation,
        padding=self.padding,
        image_size=self.image_shape[0],
        cache=self.cache,
        num_workers=self.num_workers,
        num_threads=self.num_threads,
        prefetch_batches=self.prefetch_batches,
      )
    found = (tuple(dataset.image_shape), dataset.num_classes)
    wanted = (tuple(self.image_shape), self.num_classes)
    if found != wanted:
      raise UserError(
        f'{self.name} has images of shape {found[0]} in {found[1]} classes; '
        'set data.image_shape and data.num_classes to that, instead of '
        f'{wanted[0]} and {wanted[1]}'
      )
    return dataset

  def make_model(self, make: Callable[..., Model], **arguments: Any) -> Model:
    """A network that normalises pixels itself."""
    model = super().make_model(make, **arguments)
    channels = self.image_shape[-1]
    if not len(self.mean) == len(self.std) == channels:
      raise UserError(
        'data.mean and data.std need one number per channel: images have '
        f'{channels}, got {len(self.mean)} and {len(self.std)} numbers'
      )
    return with_pixels(model, mean=self.mean, std=self.std)

  def abstract_batch(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Pixels as they are stored, and numbers of classes."""
    shape = (batch_size, *self.image_shape)
    return {
      'inputs': jax.ShapeDtypeStruct(shape, jnp.uint8),
      'labels': jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    }

  @property
  def input_shape(self) -> tuple[int, int, int]:
    """Height, width, channels."""
    return tuple(self.image_shape)

  @property
  def input_limit(self) -> int:
    """Pixels are bytes."""
    return 256

  @property
  def task_loss(self) -> Callable[[Array, Array], Array]:
    """φ of the images that have a label."""
    if self.unlabelled_split is None:
      return losses.task_cross_entropy
    return losses.labelled_cross_entropy

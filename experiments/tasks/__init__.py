"""The kinds of data: a module per kind, behind one class.

`make_task` is the only place that looks a kind up. To add a kind, write a
module here with a class `Kind`, and add its name to KINDS (docs/extend.md shows
how).
"""

from __future__ import annotations

import abc
import dataclasses
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from codistill import losses
from codistill.models import Model
from experiments.errors import check_choice, check_keywords

PyTree = Any
KINDS = ['images', 'text', 'clicks']


class Dataset(Protocol):
  """Examples; `data.images.dataset.ImageSet` says what each method does."""

  num_train: int

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
    """Endless batches, batch t a pure function of the arguments and t."""
    ...

  def eval(
    self, split: str, *, batch_size: int, rows: np.ndarray | None = None
  ) -> Iterator[dict[str, np.ndarray]]:
    """Every example once, with a mask."""
    ...

  def num_examples(self, split: str) -> int:
    """The number of examples that `eval` counts."""
    ...

  def label_distribution(self) -> np.ndarray:
    """The training split's share of each label."""
    ...


class Task(abc.ABC):
  """A kind of data; its fields are the keys of a config's section `data`.

  Attributes:
    kind: its name.
    unit: the unit of its examples.
    must_agree: keys that teachers and students must share.
    bad_data: what a data set raises if an example cannot be read; the message
      is for the user.
    num_classes: number of classes.
    input_shape: of one example, without the batch; a tree if inputs are one.
  """

  kind: ClassVar[str]
  unit: ClassVar[str] = 'examples'
  must_agree: ClassVar[tuple[str, ...]]
  bad_data: ClassVar[tuple[type[Exception], ...]] = ()
  num_classes: int
  input_shape: PyTree

  @abc.abstractmethod
  def make_dataset(self) -> Dataset:
    """Opens the data set that the keys name.

    Raises:
      UserError: if it is not prepared, or differs from what the keys say.
    """

  def make_model(self, make: Callable[..., Model], **arguments: Any) -> Model:
    """A network for these examples.

    Args:
      make: of `codistill.models.MODELS`.
      **arguments: its own; the shape and the classes come from here.
    """
    return make(
      input_shape=self.input_shape, num_classes=self.num_classes, **arguments
    )

  @abc.abstractmethod
  def abstract_batch(self, batch_size: int) -> dict[str, PyTree]:
    """Shapes and types of the `inputs` and `labels` of a batch."""

  @property
  def input_limit(self) -> int:
    """Integers among the inputs are at least 0 and below this."""
    return self.num_classes

  @property
  def units_per_row(self) -> int:
    """How many units a row of a batch has."""
    return 1

  @property
  def task_loss(self) -> Callable[[Array, Array], Array]:
    """φ(labels, logits) → [*batch]."""
    return losses.task_cross_entropy

  def made_up_batch(self, batch_size: int, seed: int) -> dict[str, PyTree]:
    """A batch of random numbers on the host, for benchmarks."""
    rng, shapes = np.random.default_rng(seed), self.abstract_batch(batch_size)

    def fill(shape: jax.ShapeDtypeStruct, below: int) -> np.ndarray:
      if jnp.issubdtype(shape.dtype, jnp.floating):
        return rng.standard_normal(shape.shape, shape.dtype)
      return rng.integers(below, size=shape.shape, dtype=shape.dtype)

    inputs = jax.tree.map(
      lambda shape: fill(shape, self.input_limit), shapes['inputs']
    )
    return {
      'inputs': inputs,
      'labels': fill(shapes['labels'], self.num_classes),
    }

  def without_examples(self) -> Dataset:
    """A stand-in for a data set when only shapes and classes are needed."""
    return NoExamples(self.num_classes)


@dataclasses.dataclass(frozen=True)
class NoExamples:
  """A data set without examples; its labels are equally frequent."""

  num_classes: int
  num_train: int = 0

  def train(self, **_: Any) -> Iterator[dict[str, np.ndarray]]:
    """No batch."""
    return iter(())

  def eval(self, split: str, **_: Any) -> Iterator[dict[str, np.ndarray]]:
    """No batch."""
    return iter(())

  def num_examples(self, split: str) -> int:
    """None."""
    return 0

  def label_distribution(self) -> np.ndarray:
    """All labels alike."""
    return np.full(self.num_classes, 1 / self.num_classes, np.float32)


def make_task(data: Mapping[str, Any]) -> Task:
  """Makes the task that a config's section `data` describes.

  Raises:
    UserError: for an unknown kind, or values that it cannot have.
  """
  keys = dict(data.items())
  kind = keys.pop('kind')
  check_choice('data.kind', kind, KINDS)
  # Imported here, because the libraries of another kind take a second.
  make = importlib.import_module(f'experiments.tasks.{kind}').Kind
  check_keywords(make, 'data', keys)
  return make(**keys)

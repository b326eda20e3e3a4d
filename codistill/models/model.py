"""The seam between networks and everything else: four functions.

F(θ, f) of Algorithm 1 comes in two: `predict` for peers and evaluation, which
changes nothing, and `forward` for training, which also returns new batch
statistics. Both give features and head apart, so that a loss may take the two
and never hold all logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

PyTree = Any


@jax.custom_vjp
def matmul(
  x: Float[Array, '*batch rows'], kernel: Float[Array, 'rows columns']
) -> Float[Array, '*batch columns']:
  """A product of two arrays of one precision, in float32 or better.

  Its own gradient, because JAX's has the kernel's as a product of transposed
  copies, which XLA takes three times as long for on a CPU, and multiplies what
  comes back in float32 even where all else is bfloat16.
  """
  exact = jnp.promote_types(x.dtype, jnp.float32)
  return jnp.matmul(x, kernel, preferred_element_type=exact)


def _matmul_forward(x, kernel):
  return matmul(x, kernel), (x, kernel)


def _matmul_backward(residuals, cotangent):
  x, kernel = residuals
  cotangent = cotangent.astype(x.dtype)
  # Over each axis of the batch by itself: joined into one, examples that are
  # split over devices would be gathered on each of them.
  axes = tuple(range(x.ndim - 1))
  exact = jnp.promote_types(x.dtype, jnp.float32)
  d_kernel = jnp.tensordot(
    x, cotangent, axes=(axes, axes), preferred_element_type=exact
  )
  d_x = matmul(cotangent, kernel.T)
  return d_x.astype(x.dtype), d_kernel.astype(kernel.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


@flax.struct.dataclass
class Head:
  """The last linear layer: logits = features · kernel + bias.

  Attributes:
    kernel: [width, classes].
    bias: [classes].
  """

  kernel: Any
  bias: Any

  def __call__(
    self, features: Float[Array, '*batch width']
  ) -> Float[Array, '*batch classes']:
    """Logits in float32 or better, whatever the features' precision."""
    logits = matmul(features, self.kernel.astype(features.dtype))
    return logits + self.bias.astype(logits.dtype)


class Prediction(NamedTuple):
  """What F gives: features, and the head that turns them into logits."""

  features: Float[Array, '*batch width']
  head: Head

  @property
  def logits(self) -> Float[Array, '*batch classes']:
    """All of them at once."""
    return self.head(self.features)


@dataclasses.dataclass(frozen=True)
class Model:
  """A network as pure functions of inputs: an array, or a tree of arrays.

  Attributes:
    init: key → variables: {'params': …, 'batch_stats': …}.
    predict: (variables, inputs, memory) → (Prediction, memory).
    forward: (variables, inputs, memory, key) → (Prediction, new non-parameter
      variables, memory); the key serves dropout and its kin.
    memory: batch size → the zero carry; () for networks without one.
    teach: what a peer predicts with during training, if it is not `predict`.
  """

  init: Callable[[jax.Array], PyTree]
  predict: Callable[[PyTree, PyTree, PyTree], tuple[Prediction, PyTree]]
  forward: Callable[
    [PyTree, PyTree, PyTree, jax.Array], tuple[Prediction, PyTree, PyTree]
  ]
  memory: Callable[[int], PyTree]
  teach: (
    Callable[[PyTree, PyTree, PyTree], tuple[Prediction, PyTree]] | None
  ) = None

  def predict_each(
    self, members: Sequence[PyTree], inputs: PyTree, memories: Sequence[PyTree]
  ) -> tuple[list[Prediction], tuple[PyTree, ...]]:
    """`predict` by several members, each with its own carry."""
    return self._each(self.predict, members, inputs, memories)

  def teach_each(
    self, peers: Sequence[PyTree], inputs: PyTree, memories: Sequence[PyTree]
  ) -> tuple[list[Prediction], tuple[PyTree, ...]]:
    """What several peers tell a student of its batch."""
    return self._each(self.teach or self.predict, peers, inputs, memories)

  def _each(self, function, members, inputs, memories):
    results = [
      function(variables, inputs, memory)
      for variables, memory in zip(members, memories, strict=True)
    ]
    return (
      [prediction for prediction, _ in results],
      tuple(memory for _, memory in results),
    )


def with_pixels(
  model: Model, *, mean: Sequence[float], std: Sequence[float]
) -> Model:
  """The same network on images as they are stored, uint8 or [0, 255].

  A batch goes to the device at a quarter of the bytes, and is normalised there.

  Args:
    model: whose inputs are float32 [batch, height, width, channels].
    mean: per channel, subtracted from pixels scaled to [0, 1].
    std: per channel, divides the result.

  Raises:
    ValueError: if there are not as many of one as of the other.
  """
  if len(mean) != len(std):
    raise ValueError(
      'mean and std need one number per channel each, got '
      f'{len(mean)} and {len(std)} numbers'
    )
  shift, scale = np.asarray(mean, np.float32), np.asarray(std, np.float32)

  def normalise(pixels: jax.typing.ArrayLike) -> Array:
    if pixels.shape[-1] != len(shift):
      raise ValueError(
        f'mean and std have {len(shift)} numbers, images {pixels.shape[-1]} '
        'channels'
      )
    return (jnp.asarray(pixels, jnp.float32) / 255 - shift) / scale

  def on_pixels(function):
    return lambda variables, inputs, *rest: function(
      variables, normalise(inputs), *rest
    )

  # Whatever takes inputs, so that none is forgotten.
  functions = {
    field.name: on_pixels(getattr(model, field.name))
    for field in dataclasses.fields(model)
    if field.name not in ('init', 'memory') and getattr(model, field.name)
  }
  return dataclasses.replace(model, **functions)


class LinearHead(nn.Module):
  """Holds the parameters of a `Head`."""

  num_classes: int
  param_dtype: Any
  kernel_init: Callable[..., Array]

  @nn.compact
  def __call__(self, features: Array) -> Head:
    """The head for these features."""
    shape = (features.shape[-1], self.num_classes)
    return Head(
      self.param('kernel', self.kernel_init, shape, self.param_dtype),
      self.param(
        'bias', nn.initializers.zeros, (self.num_classes,), self.param_dtype
      ),
    )


def make_feedforward(
  module: nn.Module,
  input_shape: PyTree,
  input_dtype: PyTree = jnp.float32,
) -> Model:
  """A `Model` of a Linen module without memory.

  Args:
    module: called as `module(inputs, train)`, returns a `Prediction`.
    input_shape: of one example, without the batch axis; of a tree of arrays,
      a tree of shapes.
    input_dtype: of the inputs; likewise.

  Returns:
    The model; its memory is ().
  """

  @jax.jit  # Op by op, a large network takes a minute.
  def init(key: jax.Array) -> PyTree:
    inputs = jax.tree.map(
      lambda dtype, shape: jnp.zeros((1, *shape), dtype),
      input_dtype,
      input_shape,
    )
    return module.init(key, inputs, train=False)

  def predict(variables: PyTree, inputs: PyTree, memory: PyTree):
    return module.apply(variables, inputs, train=False), memory

  def forward(
    variables: PyTree, inputs: PyTree, memory: PyTree, key: jax.Array
  ):
    prediction, updated = module.apply(
      variables,
      inputs,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': key},
    )
    return prediction, updated, memory

  return Model(init, predict, forward, memory=lambda batch_size: ())

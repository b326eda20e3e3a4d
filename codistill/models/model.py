"""The seam between networks and everything else: a few functions.

F(θ, f) of Algorithm 1 has two forms: `predict` for peers and evaluation, which
changes nothing, and `forward` for training, which also returns new batch
statistics. Both return features and head separately, so that a loss need not
keep all logits in memory.
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
  """Multiplies two arrays of one precision, in float32 or better.

  It has its own gradient. JAX computes the kernel's as a product of transposed
  copies, for which XLA takes three times as long on a CPU, and multiplies
  cotangents in float32 even if the rest is bfloat16.
  """
  exact = jnp.promote_types(x.dtype, jnp.float32)
  return jnp.matmul(x, kernel, preferred_element_type=exact)


def _matmul_forward(x, kernel):
  return matmul(x, kernel), (x, kernel)


def _matmul_backward(residuals, cotangent):
  x, kernel = residuals
  cotangent = cotangent.astype(x.dtype)
  # Each axis of the batch stays separate: joining them would gather examples
  # that are split over devices on each device.
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
    """Logits in float32 or better, for features of any precision."""
    logits = matmul(features, self.kernel.astype(features.dtype))
    return logits + self.bias.astype(logits.dtype)


class Prediction(NamedTuple):
  """The result of F: features, and the head that turns them into logits."""

  features: Float[Array, '*batch width']
  head: Head

  @property
  def logits(self) -> Float[Array, '*batch classes']:
    """All logits at once."""
    return self.head(self.features)


@dataclasses.dataclass(frozen=True)
class Model:
  """A network as pure functions of inputs: an array, or a tree of arrays.

  Attributes:
    init: key → variables: {'params': …, 'batch_stats': …}.
    predict: (variables, inputs, memory) → (Prediction, memory).
    forward: (variables, inputs, memory, key) → (Prediction, new non-parameter
      variables, memory); the key serves dropout and the like.
    memory: batch size → the zero carry; () for networks without one.
    teach: a peer's `predict` during training; None to use `predict`.
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
  models: Sequence[Model],
  members: Sequence[PyTree],
  inputs: PyTree,
  memories: Sequence[PyTree],
) -> tuple[list[Prediction], tuple[PyTree, ...]]:
  """Runs `predict` for several members, each with its own network and carry."""
  return _each([one.predict for one in models], members, inputs, memories)


def teach_each(
  models: Sequence[Model],
  peers: Sequence[PyTree],
  inputs: PyTree,
  memories: Sequence[PyTree],
) -> tuple[list[Prediction], tuple[PyTree, ...]]:
  """Predicts a student's batch with several peers, as in training."""
  functions = [one.teach or one.predict for one in models]
  return _each(functions, peers, inputs, memories)


def _each(functions, members, inputs, memories):
  results = [
    function(variables, inputs, memory)
    for function, variables, memory in zip(
      functions, members, memories, strict=True
    )
  ]
  return (
    [prediction for prediction, _ in results],
    tuple(memory for _, memory in results),
  )


def with_pixels(
  model: Model, *, mean: Sequence[float], std: Sequence[float]
) -> Model:
  """Makes a network take stored images, uint8 or [0, 255].

  A batch goes to the device at a quarter of the bytes, and is normalised there.

  Args:
    model: takes inputs float32 [batch, height, width, channels].
    mean: per channel, subtracted from pixels scaled to [0, 1].
    std: per channel, divides the result.

  Raises:
    ValueError: if mean and std differ in length.
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

  # Every function that takes inputs, so that none is forgotten.
  functions = {
    field.name: on_pixels(getattr(model, field.name))
    for field in dataclasses.fields(model)
    if field.name not in ('init', 'memory') and getattr(model, field.name)
  }
  return dataclasses.replace(model, **functions)


class LinearHead(nn.Module):
  """The parameters of a `Head`."""

  num_classes: int
  param_dtype: Any
  kernel_init: Callable[..., Array]

  @nn.compact
  def __call__(self, features: Array) -> Head:
    """Returns the head for these features."""
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
  """Makes a `Model` of a Linen module without memory.

  Args:
    module: called as `module(inputs, train)`, returns a `Prediction`.
    input_shape: shape of one example, without the batch axis; a tree of shapes
      for a tree of arrays.
    input_dtype: dtype of the inputs, or a tree of dtypes.

  Returns:
    The model; its memory is ().
  """

  @jax.jit  # Without it, a large network takes a minute.
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

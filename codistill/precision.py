"""Precision of teachers: float32, bfloat16, or int8 weights.

Students need a peer's predictions, not its training state, and rounding hardly
changes those. It rounds weights, arrays of two axes or more. Biases, scales and
statistics, less than one number in a hundred, stay unrounded.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

PyTree = Any
# The training precision; float32 unless a model's parameters have another type.
FULL = 'float32'
PRECISIONS = (FULL, 'bfloat16', 'int8')


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
  """A weight as scale · values, symmetric, with a scale for each channel.

  Attributes:
    values: int8 [..., channels], from −127 to 127.
    scale: float32 [channels].
  """

  values: Any
  scale: Any


def encode(variables: PyTree, precision: str) -> PyTree:
  """Rounds weights; traceable.

  Args:
    variables: parameters and batch statistics.
    precision: one of `PRECISIONS`.

  Returns:
    The same tree; for int8 with `Quantized` in place of the weights.
  """

  def round_(leaf):
    if (
      precision == FULL
      or leaf.ndim < 2
      or not jnp.issubdtype(leaf.dtype, jnp.floating)
    ):
      return leaf
    return _quantize(leaf) if precision == 'int8' else leaf.astype(precision)

  return jax.tree.map(round_, variables)


def decode(encoded: PyTree, like: PyTree) -> PyTree:
  """Makes weights that a network can use; traceable.

  Args:
    encoded: a result of `encode`.
    like: variables of the same network, for their dtypes.
  """

  def restore(leaf, part):
    if isinstance(part, Quantized):
      return (part.values * part.scale).astype(leaf.dtype)
    return part.astype(leaf.dtype)

  return jax.tree.map(restore, like, encoded)


def convert(encoded: PyTree, like: PyTree, before: str, after: str) -> PyTree:
  """Converts one precision into another; traceable.

  Args:
    encoded: in precision `before`.
    like: variables of the same network, for their dtypes.
    before: one of `PRECISIONS`.
    after: one of `PRECISIONS`.
  """
  return encoded if before == after else encode(decode(encoded, like), after)


def abstract(
  variables: PyTree, precision: str, place: Sharding | None = None
) -> PyTree:
  """Returns the shapes and dtypes of `encode`, all with one sharding."""
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
    jax.eval_shape(functools.partial(encode, precision=precision), variables),
  )


def place_like(encoded: PyTree, like: PyTree) -> PyTree:
  """Puts weights from the host or one device where a network's are.

  Args:
    encoded: in any precision; arrays of the host, or of one device.
    like: the network's variables, or abstract ones with shardings, which may
      extend over several processes.
  """

  def place(leaf, part):
    return jax.tree.map(
      lambda array: jax.make_array_from_callback(
        array.shape,
        # A scale for each channel is small, and each device needs all of it.
        leaf.sharding if array.ndim == leaf.ndim else _whole(leaf.sharding),
        np.asarray(array).__getitem__,
      ),
      part,
    )

  return jax.tree.map(place, like, encoded)


def num_bytes(variables: PyTree) -> int:
  """Returns the bytes of all arrays, uncompressed."""
  return sum(
    leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables)
  )


def check_precision(precision: str, name: str) -> None:
  """Raises a ValueError for an unknown precision; `name` is its key."""
  if precision not in PRECISIONS:
    raise ValueError(
      f'{name} is {precision!r}; it can be {", ".join(PRECISIONS)}'
    )


def _whole(sharding: Sharding) -> Sharding:
  """Returns a sharding over the same devices, each with the whole array."""
  if isinstance(sharding, NamedSharding):
    return NamedSharding(sharding.mesh, PartitionSpec())
  return sharding


def _quantize(leaf: jax.Array | np.ndarray) -> Quantized:
  weights = leaf.astype(jnp.float32)
  largest = jnp.max(jnp.abs(weights), axis=tuple(range(leaf.ndim - 1)))
  # A channel of zeros may have any scale.
  scale = jnp.where(largest > 0, largest, 127.0) / 127.0
  return Quantized(jnp.round(weights / scale).astype(jnp.int8), scale)

"""Shardings: one mesh axis, `data`; weights replicated, batches split.

With jit and NamedSharding the compiler inserts the all-reduce of synchronous
SGD. So the mean over a batch, and BatchNorm's statistics, are those of the
member's *global* batch. The member's devices may belong to many processes
(`codistill.hosts`).
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from codistill import hosts

PyTree = Any
DATA_AXIS = 'data'


def make_mesh(num_devices: int | None) -> Mesh:
  """Makes a mesh of the first `num_devices` devices; of all if None.

  Raises:
    ValueError: if there are fewer.
  """
  devices = hosts.devices()
  wanted = len(devices) if num_devices is None else num_devices
  if not 1 <= wanted <= len(devices):
    raise ValueError(
      f'num_devices is {wanted}, but there are {len(devices)} devices here'
    )
  return jax.make_mesh(
    (wanted,),
    (DATA_AXIS,),
    axis_types=(AxisType.Auto,),
    devices=devices[:wanted],
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Makes a sharding with the whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
  """Makes a sharding that divides the leading axis, a batch's examples."""
  return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def check_batch_size(batch_size: int, mesh: Mesh, name: str) -> None:
  """Raises an error if devices cannot share a global batch evenly.

  Args:
    batch_size: number of examples.
    mesh: the devices.
    name: name of the number in the error.

  Raises:
    ValueError: if `batch_size` is not a multiple of the number of devices.
  """
  if batch_size < 1 or batch_size % mesh.size:
    raise ValueError(
      f'{name} {batch_size} is not divisible by {mesh.size} devices; change '
      f'{name} or num_devices'
    )


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
  """Puts a copy of each leaf on every device of the mesh."""
  return jax.device_put(tree, replicated(mesh))


def local_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
  """Returns the examples of a global batch that this process reads.

  Args:
    batch_size: number of examples for the whole mesh.
    mesh: the member's devices, of one process or several.

  Returns:
    int [rows], ascending; all of them if every device is this process's.
  """
  rows = np.arange(batch_size)
  parts = split(mesh).addressable_devices_indices_map((batch_size,))
  return np.concatenate(
    sorted((rows[index] for index in parts.values()), key=lambda part: part[0])
  )


def split_batch(batch: PyTree, mesh: Mesh) -> PyTree:
  """Puts a batch on the mesh, divided along the leading axis.

  Args:
    batch: arrays of the host with the examples of `local_rows`.
    mesh: the devices.
  """
  place = split(mesh)
  if place.is_fully_addressable:
    # The code below does the same, but takes several times as long, which
    # matters for small networks.
    return jax.device_put(batch, place)
  return jax.tree.map(
    lambda rows: jax.make_array_from_process_local_data(place, rows), batch
  )


def to_microbatches(tree: PyTree, num_parts: int, mesh: Mesh) -> PyTree:
  """Divides a split batch into parts that are split as evenly; traceable.

  It divides each device's own examples into neighbours, so that no example
  moves to another device.

  Args:
    tree: arrays [batch, …], split over the mesh.
    num_parts: number of parts; it divides each device's examples.
    mesh: the devices.

  Returns:
    The same, [parts, batch / parts, …].
  """
  part = NamedSharding(mesh, PartitionSpec(None, DATA_AXIS))

  def divide(leaf: jax.Array) -> jax.Array:
    shape = leaf.shape[1:]
    leaf = leaf.reshape(mesh.size, num_parts, -1, *shape).swapaxes(0, 1)
    leaf = leaf.reshape(num_parts, -1, *shape)
    return jax.lax.with_sharding_constraint(leaf, part)

  return jax.tree.map(divide, tree)


def from_microbatches(tree: PyTree, mesh: Mesh) -> PyTree:
  """Reverses `to_microbatches`; traceable."""

  def join(leaf: jax.Array) -> jax.Array:
    num_parts, _, *shape = leaf.shape
    leaf = leaf.reshape(num_parts, mesh.size, -1, *shape).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(
      leaf.reshape(-1, *shape), split(mesh)
    )

  return jax.tree.map(join, tree)

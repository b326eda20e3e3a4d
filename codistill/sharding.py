"""Where arrays live: one mesh axis, `data`; weights replicated, batches split.

With jit and NamedSharding the compiler inserts the all-reduce of synchronous
SGD. The mean over a batch, and what BatchNorm takes over it, is therefore over
the *global* batch of the member, whose devices may belong to many processes
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
  """A mesh of the first `num_devices` devices, of all if None.

  Raises:
    ValueError: if there are not that many.
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
  """Every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
  """The leading axis, a batch's examples, is divided among the devices."""
  return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def check_batch_size(batch_size: int, mesh: Mesh, name: str) -> None:
  """Refuses a global batch that the devices cannot share evenly.

  Args:
    batch_size: the number of examples.
    mesh: the devices.
    name: what to call the number in the error.

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
  """Which examples of a global batch this process feeds to its devices.

  Args:
    batch_size: of the whole mesh.
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
    # The same, all arrays at once: what is below takes several times as long,
    # which small networks would wait for.
    return jax.device_put(batch, place)
  return jax.tree.map(
    lambda rows: jax.make_array_from_process_local_data(place, rows), batch
  )


def to_microbatches(tree: PyTree, num_parts: int, mesh: Mesh) -> PyTree:
  """Divides a split batch into parts that are split as evenly; traceable.

  Each device's own examples are divided, neighbours staying together, so that
  none moves to another device.

  Args:
    tree: arrays [batch, …], split over the mesh.
    num_parts: which divides each device's examples.
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
  """What `to_microbatches` divided, as it was; traceable."""

  def join(leaf: jax.Array) -> jax.Array:
    num_parts, _, *shape = leaf.shape
    leaf = leaf.reshape(num_parts, mesh.size, -1, *shape).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(
      leaf.reshape(-1, *shape), split(mesh)
    )

  return jax.tree.map(join, tree)

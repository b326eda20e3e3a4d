"""Simulates asynchronous SGD: gradients of weights that are some updates old.

W workers take turns. A worker sends its gradient, fetches the weights and
computes its next gradient, which arrives after the W − 1 of the others: it is
applied to weights W − 1 updates newer than those it was computed on, as if all
workers took equally long. All this happens in one process, so that a run can be
repeated. The paper compares stale predictions with stale gradients in words
(§2.1), and reports that asynchronous training was hard to keep stable.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def remember(params: PyTree, num_workers: int) -> PyTree:
  """The weights that the workers begin with, all the same.

  Args:
    params: before the first update.
    num_workers: W.

  Returns:
    Arrays with an axis of W − 1 in front, to be used in turn; () for W = 1.
  """
  if num_workers == 1:
    return ()
  return jax.tree.map(
    lambda leaf: jnp.repeat(leaf[None], num_workers - 1, axis=0), params
  )


def exchange_weights(
  past: PyTree, params: PyTree, num_workers: int, step: jax.Array
) -> tuple[PyTree, PyTree]:
  """Exchanges a worker's old weights for the newest; traceable.

  Args:
    past: of `remember`, or as this function returned it.
    params: the newest weights, before the update.
    num_workers: W.
    step: number of updates so far.

  Returns:
    The weights from W − 1 updates ago, and the new past.
  """
  if num_workers == 1:
    return params, past
  place = step % (num_workers - 1)
  old = jax.tree.map(lambda leaf: leaf[place], past)
  past = jax.tree.map(lambda leaf, new: leaf.at[place].set(new), past, params)
  return old, past


def stack_carries(memory: PyTree, num_workers: int) -> PyTree:
  """A carry for each worker: [lanes, W, …]; unchanged for W = 1."""
  if num_workers == 1:
    return memory
  return jax.tree.map(
    lambda leaf: jnp.repeat(leaf[:, None], num_workers, axis=1), memory
  )


def carry_of(memory: PyTree, num_workers: int, step: jax.Array | int) -> PyTree:
  """The carry of the worker that is next; traceable."""
  if num_workers == 1:
    return memory
  return jax.tree.map(lambda leaf: leaf[:, step % num_workers], memory)


def put_carry(
  memory: PyTree, num_workers: int, step: jax.Array, carry: PyTree
) -> PyTree:
  """The carries of all workers with that of one replaced; traceable."""
  if num_workers == 1:
    return carry
  return jax.tree.map(
    lambda leaf, new: leaf.at[:, step % num_workers].set(new), memory, carry
  )

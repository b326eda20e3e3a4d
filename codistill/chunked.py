"""Computes losses over a vocabulary without holding all logits at once.

A batch of 4,096 tokens has 98 million logits over 24,006 word pieces, and φ, ψ,
the teachers and the gradient hold several arrays of that size. Here a scan goes
over the tokens a chunk at a time. The gradient is computed in the same pass,
because it needs the same logits; only its parts with respect to the features
and the head are kept. Each device goes over its own part of the batch, and the
devices' sums are added up once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from codistill.losses import weigh
from codistill.models import Prediction
from codistill.sharding import DATA_AXIS

PyTree = Any
Metrics = dict[str, Array]
# Of one array of logits; a loss holds a few. A processor is fastest where they
# stay in its cache (docs/performance.md). An accelerator is fastest with large
# products, and 16 GB of memory hold an update of the paper's size so.
_CPU_BYTES = 2**24
_ACCELERATOR_BYTES = 2**29


def fitting_tokens(num_classes: int, platform: str) -> int:
  """How many tokens a device should hold the float32 logits of at a time.

  It is a power of two, as batches often are, so that no chunk is filled up.

  Args:
    num_classes: size of the vocabulary.
    platform: of the device, as JAX names it: 'cpu', 'gpu', 'tpu'.
  """
  limit = _CPU_BYTES if platform == 'cpu' else _ACCELERATOR_BYTES
  return 1 << (max(1, limit // (4 * num_classes)).bit_length() - 1)


def sum_in_chunks(
  function: Callable[[PyTree, PyTree, Array], tuple[PyTree, PyTree]],
  whole: PyTree,
  rows: PyTree,
  *,
  num_axes: int,
  chunk_tokens: int,
  mesh: Mesh,
) -> tuple[PyTree, PyTree]:
  """Adds up a function of tokens, a chunk at a time on each device.

  Args:
    function: (whole, rows [tokens, …], counted [tokens]) → (sums, an output
      for each row). `counted` is 1.0, or 0.0 for a row of zeros that fills up
      the last chunk and must add nothing to the sums.
    whole: arrays that every chunk needs whole.
    rows: arrays with the axes of the tokens first; the very first is split over
      the mesh.
    num_axes: number of axes of the tokens; 2 for [batch, time].
    chunk_tokens: most tokens that a device holds at a time.
    mesh: the devices.

  Returns:
    The sums over all tokens, and the outputs for all rows.
  """

  def on_device(whole, rows):
    leading = jax.tree.leaves(rows)[0].shape[:num_axes]
    num_tokens = 1
    for size in leading:
      num_tokens *= size
    num_chunks = max(1, -(-num_tokens // chunk_tokens))
    size = -(-num_tokens // num_chunks)  # Even chunks need the least filling.
    excess = num_chunks * size - num_tokens

    def cut(leaf):
      leaf = leaf.reshape(num_tokens, *leaf.shape[num_axes:])
      leaf = jnp.pad(leaf, [(0, excess)] + [(0, 0)] * (leaf.ndim - 1))
      return leaf.reshape(num_chunks, size, *leaf.shape[1:])

    def join(leaf):
      leaf = leaf.reshape(num_chunks * size, *leaf.shape[2:])[:num_tokens]
      return leaf.reshape(*leading, *leaf.shape[1:])

    def step(sums, chunk):
      more, outputs = function(whole, *chunk)
      return jax.tree.map(jnp.add, sums, more), outputs

    chunks = jax.tree.map(cut, rows), cut(jnp.ones(leading, jnp.float32))
    shapes, _ = jax.eval_shape(
      function, whole, *jax.tree.map(lambda leaf: leaf[0], chunks)
    )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    sums, outputs = jax.lax.scan(step, zeros, chunks)
    return jax.lax.psum(sums, DATA_AXIS), jax.tree.map(join, outputs)

  everywhere, part = PartitionSpec(), PartitionSpec(DATA_AXIS)
  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(everywhere, part),
    out_specs=(everywhere, part),
    # Otherwise each chunk would add up its sums over devices.
    check_vma=False,
  )(whole, rows)


def mean_in_chunks(
  measure: Callable[..., Metrics],
  weights: tuple[ArrayLike, ArrayLike],
  student: Prediction,
  teachers: Sequence[Prediction],
  labels: Int[Array, '*batch'],
  *,
  chunk_tokens: int,
  mesh: Mesh,
) -> tuple[Array, Metrics]:
  """Means over tokens, and a weighted sum of them that has a gradient.

  The gradient is with respect to the student alone: none flows to teachers,
  and none from the means.

  Args:
    measure: (student, teachers, labels) → name → [tokens]. Called on chunks.
    weights: of φ and ψ in the weighted sum.
    student: prediction of the member.
    teachers: predictions of its peers.
    labels: the right classes.
    chunk_tokens: as `sum_in_chunks`.
    mesh: likewise.

  Returns:
    (the weighted sum, the means by name).
  """
  num_tokens = labels.size

  def over_chunks(function, student, teachers, labels):
    def of_chunk(whole, rows, counted):
      (head, heads), (own, features, labels) = whole, rows
      others = [Prediction(*one) for one in zip(features, heads, strict=True)]
      return function(Prediction(own, head), others, labels, counted)

    return sum_in_chunks(
      of_chunk,
      (student.head, [one.head for one in teachers]),
      (student.features, [one.features for one in teachers], labels),
      num_axes=labels.ndim,
      chunk_tokens=chunk_tokens,
      mesh=mesh,
    )

  def part(student, teachers, labels, counted):
    """A chunk's part in the means and, linear in them, in their sum."""
    means = {
      name: jnp.where(counted > 0, values, 0).sum() / num_tokens
      for name, values in measure(student, teachers, labels).items()
    }
    return weigh(means, weights), means

  @jax.custom_vjp
  def mean(student, teachers, labels):
    return over_chunks(
      lambda *chunk: (part(*chunk), ()), student, teachers, labels
    )[0]

  def forward(student, teachers, labels):
    def add(*chunk):
      found, gradient = jax.value_and_grad(part, has_aux=True)(*chunk)
      return (found, _exact(gradient.head)), gradient.features

    (found, d_head), d_features = over_chunks(add, student, teachers, labels)
    d_head = jax.tree.map(
      lambda x, like: x.astype(like.dtype), d_head, student.head
    )
    return found, Prediction(d_features, d_head)

  def backward(gradient, cotangents):
    scale, _ = cotangents
    gradient = jax.tree.map(lambda x: x * scale.astype(x.dtype), gradient)
    return gradient, None, None

  mean.defvjp(forward, backward)
  return mean(student, list(teachers), labels)


def _exact(tree: PyTree) -> PyTree:
  """Converts to float32 or better, because many chunks are added up."""
  return jax.tree.map(
    lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree
  )

"""Exact evaluation: every example counted once, members and their ensemble.

The ensemble is the mean of the members' predictions, as the teacher in
Algorithm 1 is. Members disagree on an example when their most likely classes
differ; how far apart their predictions are is the total variation distance.
That is between members of one run; between runs: `codistill.churn`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from codistill import chunked, sharding
from codistill.losses import task_cross_entropy
from codistill.models import Model, Prediction

PyTree = Any
# Tokens of a lane after which a network should have forgotten how it began,
# and after which it is no longer asked.
_SETTLED, _ASKED = 256, 512


class Score(NamedTuple):
  """Of one predictor: its accuracy, and its mean φ in nats."""

  accuracy: float
  task_loss: float


class Evaluation(NamedTuple):
  """Of a set of members on a set of examples.

  Attributes:
    members: a score each.
    ensemble: of the mean of their predictions; None for a single member.
    disagreement: share of examples on which two members predict different
      classes, mean over pairs; None for a single member.
    total_variation: ½ Σ |p − q| over the classes, mean over examples and over
      pairs of members, in [0, 1]; None for a single member.
    num_examples: how many were counted; of text, tokens.
    memory_gap: for each member, by how many nats its mean φ over tokens 257 to
      512 of each lane is worse if its memory starts at zero than if it starts
      as training left it. Near zero for a memory that forgets; None without
      memories, or if lanes are shorter.
  """

  members: tuple[Score, ...]
  ensemble: Score | None
  disagreement: float | None
  total_variation: float | None
  num_examples: int
  memory_gap: tuple[float, ...] | None


Evaluate = Callable[..., Evaluation]


def make_evaluate(
  model: Model, mesh: Mesh, *, loss_chunk_tokens: int | None
) -> Evaluate:
  """An exact evaluation of any number of members.

  Args:
    model: the members' network.
    mesh: the devices; each batch is split over them.
    loss_chunk_tokens: of how many tokens a device holds the logits at a time;
      None or 0 for all of its part of the batch.

  Returns:
    evaluate(members' variables, batches, memories=None, write=None) →
    Evaluation. Batches hold `inputs`, `labels` and, shaped like these, a
    `mask`: 1 for an example, 0 for padding; each process gives its rows
    (`sharding.local_rows`). At most two of them are held at a time. Memories
    start at zero and are carried from batch to batch. `memories` are the carry
    of each member in training, from which `memory_gap` starts, too; if there
    are too few lanes in them, they are repeated. `write`, if there is one, is
    called for each batch in order, and in each process with all of it, as
    `predictions.Writer.write`: with the labels, and what each member predicts,
    and then, of several, their ensemble.
  """

  @functools.partial(
    jax.jit,
    static_argnames='keep',
    out_shardings=(sharding.replicated(mesh), sharding.split(mesh)),
  )
  def batch_sums(variables, memories, batch, keep):
    labels, mask = batch['labels'], batch['mask']
    predictions, memories = model.predict_each(
      variables, batch['inputs'], memories
    )
    sums, kept = total(
      functools.partial(compare, keep=keep), predictions, labels, mask
    )
    return (sums, (labels, mask, kept) if keep else None), memories

  @functools.partial(
    jax.jit, out_shardings=(sharding.replicated(mesh), sharding.split(mesh))
  )
  def settled_sums(variables, memories, batch, position):
    predictions, memories = model.predict_each(
      variables, batch['inputs'], memories
    )
    times = position + jnp.arange(batch['labels'].shape[1])
    asked = (times >= _SETTLED) & (times < _ASKED)
    mask = jnp.where(asked, batch['mask'], 0)
    return total(add_losses, predictions, batch['labels'], mask)[0], memories

  def total(function, predictions, labels, mask):
    if not loss_chunk_tokens:
      return function(predictions, labels, mask)

    def of_chunk(heads, rows, _):
      features, labels, mask = rows
      predictions = [
        Prediction(*one) for one in zip(features, heads, strict=True)
      ]
      # What fills up a chunk is zero, its mask, too.
      return function(predictions, labels, mask)

    return chunked.sum_in_chunks(
      of_chunk,
      [one.head for one in predictions],
      ([one.features for one in predictions], labels, mask),
      num_axes=labels.ndim,
      chunk_tokens=loss_chunk_tokens,
      mesh=mesh,
    )

  def compare(predictions, labels, mask, keep):
    log_probs = [jax.nn.log_softmax(one.logits) for one in predictions]

    def score(log_probs):
      hits = log_probs.argmax(-1) == labels
      loss = task_cross_entropy(labels, log_probs)
      return jnp.sum(hits * mask), jnp.sum(loss * mask)

    mean = jax.nn.logsumexp(jnp.stack(log_probs), axis=0) - jnp.log(
      len(log_probs)
    )
    classes = jnp.stack([one.argmax(-1) for one in log_probs])
    first, second = np.triu_indices(len(log_probs), k=1)
    disagree = jnp.sum((classes[first] != classes[second]) * mask)
    probs = [jnp.exp(one) for one in log_probs]
    # Pair by pair: a stack of all pairs would not fit large vocabularies.
    distances = [
      jnp.abs(probs[i] - probs[j]).sum(-1) / 2
      for i, j in zip(first, second, strict=True)
    ]
    apart = sum(jnp.sum(one * mask) for one in distances)
    sums = (
      *map(score, log_probs),
      score(mean),
      disagree,
      apart,
      jnp.sum(mask),
    )
    several = len(probs) > 1
    kept = [*probs, jnp.exp(mean)] if several else probs
    return sums, [_compact(one) for one in kept] if keep else ()

  def add_losses(predictions, labels, mask):
    losses = [task_cross_entropy(labels, one.logits) for one in predictions]
    return ([jnp.sum(one * mask) for one in losses], jnp.sum(mask)), ()

  zero_memory = jax.jit(
    model.memory, static_argnums=0, out_shardings=sharding.split(mesh)
  )

  @functools.partial(
    jax.jit, static_argnums=1, out_shardings=sharding.split(mesh)
  )
  def take_lanes(memories, batch_size):
    def take(leaf):
      return leaf[jnp.arange(batch_size) % len(leaf)]

    return jax.tree.map(take, memories)

  def evaluate(variables, batches, memories=None, write=None):
    variables = tuple(variables)
    carried = tuple(memories or ())
    if not jax.tree.leaves(carried):
      carried = None  # Nothing to start from.
    running, starts, position = None, [], 0
    # In float64 and in order, so that the sum does not depend on timing.
    late, totals, settled = None, np.float64(0), []
    for batch in batches:
      batch = sharding.split_batch(batch, mesh)
      batch_size = len(batch['labels'])
      if running is None:
        running = (zero_memory(batch_size),) * len(variables)
        if carried is not None:
          starts = [running, take_lanes(carried, batch_size)]
      found, running = batch_sums(
        variables, running, batch, keep=write is not None
      )
      if starts and position < _ASKED:
        losses, starts = zip(
          *(settled_sums(variables, one, batch, position) for one in starts),
          strict=True,
        )
        settled.append(losses)
        position += batch['labels'].shape[1]
      if late is not None:
        # While the device works on this one, and before there is another.
        totals = totals + _fetch(late, write)
      late = found
    if late is None:
      raise ValueError('evaluation on no examples: the split is empty')
    *scores, disagree, apart, count = totals + _fetch(late, write)
    hits, losses = np.asarray(scores[0::2]), np.asarray(scores[1::2])
    result = [
      Score(float(h / count), float(l / count))
      for h, l in zip(hits, losses, strict=True)
    ]
    num = len(variables)
    several = num > 1
    pairs = num * (num - 1) / 2
    return Evaluation(
      members=tuple(result[:num]),
      ensemble=result[num] if several else None,
      disagreement=float(disagree / (count * pairs)) if several else None,
      total_variation=float(apart / (count * pairs)) if several else None,
      num_examples=round(float(count)),
      memory_gap=_memory_gap(settled),
    )

  return evaluate


def _compact(probs: jax.Array) -> jax.Array:
  """As `experiments.predictions` stores it: of two classes p of class 1."""
  probs = probs.astype(jnp.float32)
  return probs[..., 1] if probs.shape[-1] == 2 else probs


def _fetch(found: PyTree, write: Callable[..., None] | None) -> np.ndarray:
  """A batch's sums; its predictions go to whoever wants them."""
  sums, kept = jax.device_get(found)
  if write is not None:
    labels, mask, predictions = kept
    there = mask > 0
    write(labels[there], [one[there] for one in predictions])
  return np.asarray(jax.tree.leaves(sums), np.float64)


def _memory_gap(settled: Sequence[PyTree]) -> tuple[float, ...] | None:
  """What sums over batches, begun at zero and as training ended, come to."""
  if not settled:
    return None
  sums = jax.tree.map(
    lambda *parts: np.sum(np.asarray(parts, np.float64)),
    *jax.device_get(settled),
  )
  (zero, count), (warm, _) = sums
  if not count:
    return None
  return tuple(
    float((cold - warm) / count) for cold, warm in zip(zero, warm, strict=True)
  )

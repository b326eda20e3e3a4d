"""Exact evaluation: every example counted once, members and their ensemble.

The ensemble is the mean of the members' predictions, as the teacher in
Algorithm 1 is. Members disagree on an example when their most likely classes
differ; how far apart their predictions are is the total variation distance.
That is between members of one run; between runs: `codistill.churn`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from codistill import chunked, sharding
from codistill.losses import task_cross_entropy
from codistill.models import Model, Prediction
from codistill.models.model import predict_each

PyTree = Any
# Tokens of a lane after which a network should have forgotten how it began,
# and after which it is no longer asked.
_SETTLED, _ASKED = 256, 512


# (labels, log of the predictions) → a value for each example; float32 or bool.
Metric = Callable[[jax.Array, jax.Array], jax.Array]


class Score(NamedTuple):
  """Of one predictor: its accuracy, its mean φ in nats, other means by name."""

  accuracy: float
  task_loss: float
  metrics: dict[str, float]

  def numbers(self) -> dict[str, float]:
    """All of them by name."""
    own = {'accuracy': self.accuracy, 'task_loss': self.task_loss}
    return own | self.metrics


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
      as training left it. Near zero for a memory that forgets; None for one
      without a memory, and for all if none has one or lanes are shorter.
  """

  members: tuple[Score, ...]
  ensemble: Score | None
  disagreement: float | None
  total_variation: float | None
  num_examples: int
  memory_gap: tuple[float | None, ...] | None


Evaluate = Callable[..., Evaluation]


def make_evaluate(
  mesh: Mesh,
  *,
  loss_chunk_tokens: int | None,
  metrics: Mapping[str, Metric] | None = None,
) -> Evaluate:
  """An exact evaluation of any number of members.

  Args:
    mesh: the devices; each batch is split over them.
    loss_chunk_tokens: of how many tokens a device holds the logits at a time;
      None or 0 for all of its part of the batch.
    metrics: what else to take the mean of, by name, of members and ensemble:
      (labels, log of the predictions) → a value for each label. Labels of text
      are [batch, time], or in chunks [tokens].

  Returns:
    evaluate(models, variables, batches, memories=None, write=None) →
    Evaluation. Models and variables are those of the members; an evaluation is
    compiled once for the same models. Batches hold `inputs`, `labels` and,
    shaped like these, a `mask`: 1 for an example, 0 for padding; each process
    gives its rows (`sharding.local_rows`). At most two are held at a time.
    Memories start at zero and are carried from batch to batch. `memories` are
    the carry of each member in training, from which `memory_gap` starts, too;
    if there are too few lanes in them, they are repeated. `write` is called for
    each batch in order, in each process with all of it: with the labels, what
    each member predicts, and then, of several, their ensemble.
  """
  whole, part = sharding.replicated(mesh), sharding.split(mesh)
  metrics = dict(metrics or {})
  add_up = functools.partial(_add_up, chunk_tokens=loss_chunk_tokens, mesh=mesh)

  @functools.partial(
    jax.jit, static_argnames=('models', 'keep'), out_shardings=(whole, part)
  )
  def batch_sums(models, variables, memories, batch, keep):
    labels, mask = batch['labels'], batch['mask']
    predictions, memories = predict_each(
      models, variables, batch['inputs'], memories
    )
    sums, kept = add_up(
      functools.partial(_compare, measures=tuple(metrics.values()), keep=keep),
      predictions,
      labels,
      mask,
    )
    return (sums, (labels, mask, kept) if keep else None), memories

  zero_memory = jax.jit(
    lambda model, size: model.memory(size),
    static_argnums=(0, 1),
    out_shardings=part,
  )
  make_gap = _make_gap(mesh, add_up)

  def evaluate(models, variables, batches, memories=None, write=None):
    models, variables = tuple(models), tuple(variables)
    running = gap = late = None
    # In float64 and in order, so that the sum does not depend on timing.
    totals = np.float64(0)
    for batch in batches:
      batch = sharding.split_batch(batch, mesh)
      if running is None:
        size = len(batch['labels'])
        running = tuple(zero_memory(model, size) for model in models)
        gap = make_gap(models, variables, running, tuple(memories or ()))
      found, running = batch_sums(
        models, variables, running, batch, keep=write is not None
      )
      gap.add(batch)
      if late is not None:
        # While the device works on this one, and before there is another.
        totals = totals + _fetch(late, write)
      late = found
    if late is None:
      raise ValueError('evaluation on no examples: the split is empty')
    totals = totals + _fetch(late, write)
    return _evaluation(totals, len(variables), tuple(metrics), gap.per_token())

  return evaluate


def average(log_probs: Sequence[jax.Array]) -> jax.Array:
  """The logarithm of the mean of predictions that are given as logarithms."""
  total = jax.nn.logsumexp(jnp.stack(log_probs), axis=0)
  return total - jnp.log(len(log_probs))


def predict_together(
  models: Sequence[Model],
  members: Sequence[PyTree],
  inputs: PyTree,
  memories: Sequence[PyTree],
) -> tuple[jax.Array, tuple[PyTree, ...]]:
  """What a member predicts, or several as an ensemble.

  Args:
    models: F of each.
    members: the variables of one or more.
    inputs: of a batch.
    memories: a carry for each member.

  Returns:
    Log-probabilities [*batch, classes], and the members' new memories.
  """
  predictions, memories = predict_each(models, members, inputs, memories)
  log_probs = [jax.nn.log_softmax(one.logits) for one in predictions]
  return average(log_probs), memories


def probabilities(
  models: Sequence[Model], members: Sequence[PyTree], inputs: PyTree
) -> jax.Array:
  """Likewise as probabilities, with memories that are empty before."""
  size = jax.tree.leaves(inputs)[0].shape[0]
  memories = [model.memory(size) for model in models]
  log_probs, _ = predict_together(models, members, inputs, memories)
  return jnp.exp(log_probs)


Sum = Callable[..., tuple[PyTree, PyTree]]


def _add_up(
  function: Sum,
  predictions: Sequence[Prediction],
  labels: jax.Array,
  mask: jax.Array,
  *,
  chunk_tokens: int | None,
  mesh: Mesh,
) -> tuple[PyTree, PyTree]:
  """(predictions, labels, mask) → (sums, rows) of a batch, maybe in chunks."""
  if not chunk_tokens:
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
    chunk_tokens=chunk_tokens,
    mesh=mesh,
  )


def _compare(
  predictions: Sequence[Prediction],
  labels: jax.Array,
  mask: jax.Array,
  *,
  measures: Sequence[Metric],
  keep: bool,
) -> tuple[PyTree, PyTree]:
  """Sums over the examples, in the order in which `_evaluation` takes them.

  Returns:
    Hits, φ and what else is measured of each member and of the ensemble, on how
    many examples each pair disagrees, the pairs' distances, how many examples
    there are; and, to be kept, what each predicts.
  """
  log_probs = [jax.nn.log_softmax(one.logits) for one in predictions]

  def score(log_probs):
    hits = log_probs.argmax(-1) == labels
    loss = task_cross_entropy(labels, log_probs)
    # What is made of padding may not be finite.
    others = (jnp.where(mask > 0, of(labels, log_probs), 0) for of in measures)
    return jnp.sum(hits * mask), jnp.sum(loss * mask), *map(jnp.sum, others)

  mean = average(log_probs)
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
  sums = (*map(score, log_probs), score(mean), disagree, apart, jnp.sum(mask))
  several = len(probs) > 1
  kept = [*probs, jnp.exp(mean)] if several else probs
  return sums, [_compact(one) for one in kept] if keep else ()


def _evaluation(
  totals: np.ndarray,
  num_members: int,
  names: Sequence[str],
  memory_gap: tuple[float | None, ...] | None,
) -> Evaluation:
  """The means, of the sums of `_compare`."""
  *scores, disagree, apart, count = totals
  means = np.reshape(scores, (-1, 2 + len(names))) / count
  result = [
    Score(accuracy, loss, dict(zip(names, others, strict=True)))
    for accuracy, loss, *others in means.tolist()
  ]
  several = num_members > 1
  pairs = num_members * (num_members - 1) / 2
  return Evaluation(
    members=tuple(result[:num_members]),
    ensemble=result[num_members] if several else None,
    disagreement=float(disagree / (count * pairs)) if several else None,
    total_variation=float(apart / (count * pairs)) if several else None,
    num_examples=round(float(count)),
    memory_gap=memory_gap,
  )


def _compact(probs: jax.Array) -> jax.Array:
  """As `experiments.predictions` stores it: of two classes p of class 1."""
  probs = probs.astype(jnp.float32)
  return probs[..., 1] if probs.shape[-1] == 2 else probs


def _fetch(found: PyTree, write: Callable[..., None] | None) -> np.ndarray:
  """The sums of a batch, after its predictions were handed on."""
  sums, kept = jax.device_get(found)
  if write is not None:
    labels, mask, predictions = kept
    there = mask > 0
    write(labels[there], [one[there] for one in predictions])
  return np.asarray(jax.tree.leaves(sums), np.float64)


class _Gap:
  """Adds up φ of settled tokens, from memories of zero and of training."""

  def __init__(
    self,
    sums: Callable[..., PyTree],
    variables: Sequence[PyTree],
    starts: Sequence[PyTree],
  ):
    """Holds what it needs of an evaluation.

    Args:
      sums: (variables, memories, batch, position) → (sums, memories).
      variables: of the members.
      starts: the members' memories, once zero and once as training left them;
        () if there are none.
    """
    self._sums, self._variables, self._carries = sums, variables, starts
    self._position, self._found = 0, []

  def add(self, batch: PyTree) -> None:
    """Goes on with the next batch, unless what is asked for is over."""
    if not self._carries or self._position >= _ASKED:
      return
    found, self._carries = zip(
      *(
        self._sums(self._variables, one, batch, self._position)
        for one in self._carries
      ),
      strict=True,
    )
    self._found.append(found)
    self._position += batch['labels'].shape[1]

  def per_token(self) -> tuple[float | None, ...] | None:
    """The gap of each member in nats; None if nothing was asked."""
    if not self._found:
      return None
    (zero, count), (warm, _) = jax.tree.map(
      lambda *parts: np.sum(np.asarray(parts, np.float64)),
      *jax.device_get(self._found),
    )
    if not count:
      return None
    return tuple(
      float((cold - warm) / count) if jax.tree.leaves(carry) else None
      for cold, warm, carry in zip(zero, warm, self._carries[0], strict=True)
    )


def _make_gap(mesh: Mesh, add_up: Sum) -> Callable[..., _Gap]:
  """(models, variables, zero memories, those of training or ()) → a `_Gap`."""
  whole, part = sharding.replicated(mesh), sharding.split(mesh)

  @functools.partial(jax.jit, static_argnums=0, out_shardings=(whole, part))
  def settled_sums(models, variables, memories, batch, position):
    predictions, memories = predict_each(
      models, variables, batch['inputs'], memories
    )
    times = position + jnp.arange(batch['labels'].shape[1])
    asked = (times >= _SETTLED) & (times < _ASKED)
    mask = jnp.where(asked, batch['mask'], 0)
    return add_up(_add_losses, predictions, batch['labels'], mask)[0], memories

  @functools.partial(jax.jit, static_argnums=1, out_shardings=part)
  def take_lanes(memories, batch_size):
    def take(leaf):
      return leaf[jnp.arange(batch_size) % len(leaf)]

    return jax.tree.map(take, memories)

  def make(models, variables, zero, carried):
    starts = ()
    if jax.tree.leaves(carried):
      batch_size = len(jax.tree.leaves(zero)[0])
      starts = (zero, take_lanes(carried, batch_size))
    sums = functools.partial(settled_sums, models)
    return _Gap(sums, variables, starts)

  return make


def _add_losses(
  predictions: Sequence[Prediction], labels: jax.Array, mask: jax.Array
) -> tuple[PyTree, PyTree]:
  losses = [task_cross_entropy(labels, one.logits) for one in predictions]
  return ([jnp.sum(one * mask) for one in losses], jnp.sum(mask)), ()

"""Exact evaluation: every example counted once, members and their ensemble.

The ensemble is the mean of the members' predictions, as the teacher in
Algorithm 1 is. Members disagree on an example when their most likely classes
differ; how far apart their predictions are is the total variation distance.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from codistill import sharding
from codistill.losses import task_cross_entropy
from codistill.models import Model

PyTree = Any


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
    num_examples: how many were counted.
  """

  members: tuple[Score, ...]
  ensemble: Score | None
  disagreement: float | None
  total_variation: float | None
  num_examples: int


Evaluate = Callable[[Sequence[PyTree], Iterable[dict[str, Any]]], Evaluation]


def make_evaluate(model: Model, mesh: Mesh) -> Evaluate:
  """An exact evaluation of any number of members.

  Args:
    model: the members' network.
    mesh: the devices; each batch is split over them.

  Returns:
    evaluate(members' variables, batches) → Evaluation. Batches hold `inputs`,
    `labels` and a `mask`: 1 for an example, 0 for padding; each process gives
    its rows (`sharding.local_rows`).
  """

  @functools.partial(
    jax.jit, out_shardings=(sharding.replicated(mesh), sharding.split(mesh))
  )
  def batch_sums(variables, memories, batch):
    labels, mask = batch['labels'], batch['mask']
    predictions, memories = model.predict_each(
      variables, batch['inputs'], memories
    )
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
    return sums, memories

  def evaluate(variables, batches):
    variables = tuple(variables)
    memories = None
    pending = []
    for batch in batches:
      batch = sharding.split_batch(batch, mesh)
      if memories is None:
        memories = (model.memory(len(batch['labels'])),) * len(variables)
      sums, memories = batch_sums(variables, memories, batch)
      pending.append(sums)
    if not pending:
      raise ValueError('evaluation on no examples: the split is empty')
    # In float64 and in order, so that the sum does not depend on timing.
    flat = [jax.tree.leaves(sums) for sums in jax.device_get(pending)]
    *scores, disagree, apart, count = np.sum(
      np.asarray(flat, np.float64), axis=0
    )
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
    )

  return evaluate

"""φ, ψ and the teachers of Algorithm 1, and the objective made of them.

φ(label, prediction) and ψ(aggregated label, prediction) return one loss an
example; the train step takes the mean over examples. ψ sums over classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

Logits = Float[Array, '*batch classes']
Probabilities = Float[Array, '*batch classes']
PerExample = Float[Array, '*batch']
Weight = float | Callable[[Array], ArrayLike]


def task_cross_entropy(
  labels: Int[Array, '*batch'], logits: Logits
) -> PerExample:
  """φ: −log softmax(logits)[label], in nats."""
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def soft_cross_entropy(targets: Probabilities, logits: Logits) -> PerExample:
  """ψ of the paper: −Σₖ p̄ₖ log softmax(logits)ₖ, in nats (§2)."""
  return optax.softmax_cross_entropy(logits, targets)


def kl_divergence(targets: Probabilities, logits: Logits) -> PerExample:
  """ψ as KL(p̄ ‖ softmax(logits)) = Σₖ p̄ₖ (log p̄ₖ − log qₖ), in nats.

  Differs from `soft_cross_entropy` by the entropy of p̄ and so has the same
  gradient; it is zero when student and teacher agree.
  """
  return optax.kl_divergence(jax.nn.log_softmax(logits), targets)


def reverse_kl(targets: Probabilities, logits: Logits) -> PerExample:
  """ψ as KL(softmax(logits) ‖ p̄) = Σₖ qₖ (log qₖ − log p̄ₖ), in nats.

  The student may leave out what the teacher thinks possible (Gu et al. 2024,
  MiniLLM, eq. 2).
  """
  log_q = jax.nn.log_softmax(logits)
  return (jnp.exp(log_q) * (log_q - _log(targets))).sum(-1)


def jensen_shannon(targets: Probabilities, logits: Logits) -> PerExample:
  """ψ as ½ KL(p̄ ‖ m) + ½ KL(q ‖ m) with m = ½ (p̄ + q), in nats.

  Symmetric and at most log 2 (Lin 1991; Agarwal et al. 2024, GKD, eq. 1 with
  β = ½).
  """
  log_p, log_q = _log(targets), jax.nn.log_softmax(logits)
  log_m = jnp.logaddexp(log_p, log_q) - jnp.log(2)
  of_teacher = targets * (log_p - log_m)
  of_student = jnp.exp(log_q) * (log_q - log_m)
  return 0.5 * (of_teacher + of_student).sum(-1)


def squared_logit_error(targets: Probabilities, logits: Logits) -> PerExample:
  """ψ as ½ Σₖ (zₖ − z̄ₖ)² between logits (Ba & Caruana 2014, eq. 1).

  A teacher's distribution fixes its logits up to a constant, so both sides are
  centred over the classes first; the teacher's logits are log p̄.
  """
  teacher = _log(targets)
  teacher -= teacher.mean(-1, keepdims=True)
  student = logits - logits.mean(-1, keepdims=True)
  return 0.5 * jnp.square(student - teacher).sum(-1)


def squared_log_softmax_error(
  targets: Probabilities, logits: Logits
) -> PerExample:
  """ψ as ½ Σₖ (log qₖ − log p̄ₖ)².

  `squared_logit_error` with logits that are normalised instead of centred.
  """
  return 0.5 * jnp.square(jax.nn.log_softmax(logits) - _log(targets)).sum(-1)


def top_k_kl(targets: Probabilities, logits: Logits, *, k: int) -> PerExample:
  """ψ as KL(p̃ ‖ softmax(logits)) with p̄'s k likeliest classes as p̃.

  p̃ is zero elsewhere and normalised again; the student's softmax is over all
  classes (Gemma Team 2025, Gemma 3, §2.3, which samples the classes).

  Args:
    targets: p̄.
    logits: the student's.
    k: at most the number of classes.
  """
  kept, classes = jax.lax.top_k(targets, k)
  kept /= kept.sum(-1, keepdims=True)
  log_q = jnp.take_along_axis(jax.nn.log_softmax(logits), classes, axis=-1)
  return (kept * (_log(kept) - log_q)).sum(-1)


def _log(probabilities: Probabilities) -> Logits:
  """The logarithm of at least 1e-30, which keeps float32 finite."""
  return jnp.log(jnp.maximum(probabilities, 1e-30))


DISTILL_LOSSES: dict[str, Callable[..., Array]] = {
  'cross_entropy': soft_cross_entropy,
  'kl': kl_divergence,
  'reverse_kl': reverse_kl,
  'jensen_shannon': jensen_shannon,
  'squared_logit_error': squared_logit_error,
  'squared_log_softmax_error': squared_log_softmax_error,
  'top_k_kl': top_k_kl,
}


def average_of_peers(logits: Sequence[Logits]) -> Probabilities:
  """1/(N−1) Σ_{j≠i} F(θⱼ, f): the mean of the peers' predictions.

  Args:
    logits: one entry a peer, at least one.

  Returns:
    The mean of their softmax distributions; no gradient flows through it.
  """
  total = sum(jax.nn.softmax(one) for one in logits)
  return jax.lax.stop_gradient(total / len(logits))


def average_of_logits(logits: Sequence[Logits]) -> Probabilities:
  """softmax(1/(N−1) Σ_{j≠i} zⱼ): the normalised geometric mean instead."""
  return jax.lax.stop_gradient(jax.nn.softmax(sum(logits) / len(logits)))


PEER_AVERAGES = {
  'probabilities': average_of_peers,
  'logits': average_of_logits,
}


def labelled_cross_entropy(
  labels: Int[Array, '*batch'], logits: Logits
) -> PerExample:
  """φ; 0 for examples without a label, which have a negative one.

  The mean over a batch is over all of it, so that such an example has ψ alone
  (Hinton et al. 2015, §2: a transfer set may be unlabelled).
  """
  known = labels >= 0
  losses = task_cross_entropy(jnp.where(known, labels, 0), logits)
  return jnp.where(known, losses, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """The loss of a member: w₁·φ(y, F(θᵢ, f)) + w₂·ψ(teacher, F(θᵢ, f)).

  Attributes:
    task_loss: φ(labels, logits) → [*batch].
    distill_loss: ψ(targets, logits) → [*batch].
    task_weight: w₁, once ψ is on; during burn-in φ has weight 1. A number, or a
      function of the number of updates so far, an int32 [].
    distill_weight: w₂, likewise.
    temperature: T, which divides the logits of student and peers in ψ.
    temperature_scaling: whether ψ is multiplied by T², so that its gradient
      keeps its size (Hinton et al. 2015, §2).
    peer_average: the peers' logits → the targets [*batch, classes].
    constant_targets: a distribution over classes that replaces the peers in
      ψ's first argument (the label-smoothing controls, §3.2), or None.
    memory_reset_probability: probability that a lane's carry is zeroed before a
      batch, for the member and its teachers alike. The state's key and step
      draw the lanes.
    publish_average: whether peers get the average of the weights, which the
      optimizer keeps (`codistill.optim.averaging`), instead of the weights.
    loss_chunk_tokens: number of tokens for which a device holds logits at a
      time; None or 0 for all of its part of the batch.
  """

  task_loss: Callable[[Array, Array], Array]
  distill_loss: Callable[[Array, Array], Array]
  task_weight: Weight
  distill_weight: Weight
  temperature: float
  temperature_scaling: bool
  peer_average: Callable[[Sequence[Array]], Array]
  constant_targets: ArrayLike | None
  memory_reset_probability: float
  publish_average: bool
  loss_chunk_tokens: int | None

  @property
  def needs_peers(self) -> bool:
    """Whether peers are the teachers, rather than a constant distribution."""
    return self.constant_targets is None

  def distillation(
    self, logits: Logits, teachers: Sequence[Logits]
  ) -> PerExample:
    """ψ of a student's logits, with the teacher of this objective."""
    if self.temperature != 1:
      logits = logits / self.temperature
      teachers = [one / self.temperature for one in teachers]
    if self.needs_peers:
      targets = self.peer_average(teachers)
    else:
      targets = jnp.asarray(self.constant_targets, logits.dtype)
      targets = jnp.broadcast_to(targets, logits.shape)
    loss = self.distill_loss(targets, logits)
    if self.temperature != 1 and self.temperature_scaling:
      loss *= self.temperature**2
    return loss

  def weights(self, step: Array) -> tuple[ArrayLike, ArrayLike]:
    """w₁ and w₂ at the update after `step` others."""
    return tuple(
      weight(step) if callable(weight) else weight
      for weight in (self.task_weight, self.distill_weight)
    )

  @property
  def is_scheduled(self) -> bool:
    """Whether a weight changes from step to step."""
    return callable(self.task_weight) or callable(self.distill_weight)


def weigh(
  means: dict[str, Array], weights: tuple[ArrayLike, ArrayLike]
) -> Array:
  """w₁·φ + w₂·ψ of their means; φ alone where ψ was not computed."""
  if 'distill_loss' not in means:
    return means['task_loss']
  task_weight, distill_weight = weights
  return (
    task_weight * means['task_loss'] + distill_weight * means['distill_loss']
  )


# As in the paper (§2): both losses have weight one, and peers teach.
ALGORITHM_1 = Objective(
  task_loss=task_cross_entropy,
  distill_loss=soft_cross_entropy,
  task_weight=1.0,
  distill_weight=1.0,
  temperature=1.0,
  temperature_scaling=True,
  peer_average=average_of_peers,
  constant_targets=None,
  memory_reset_probability=0.0,
  publish_average=False,
  loss_chunk_tokens=None,
)

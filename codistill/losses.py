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

from codistill.models import Model

Logits = Float[Array, '*batch classes']
Probabilities = Float[Array, '*batch classes']
PerExample = Float[Array, '*batch']


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


def squared_logit_error(targets: Probabilities, logits: Logits) -> PerExample:
  """ψ as ½ Σₖ (zₖ − z̄ₖ)² between logits (Ba & Caruana 2014, eq. 1).

  Peers are averaged as predictions (Algorithm 1), and a prediction fixes its
  logits up to a constant: both sides are centred over the classes first, the
  teacher's being log p̄ (from 1e-30 up, which keeps float32 finite).
  """
  teacher = jnp.log(jnp.maximum(targets, 1e-30))
  teacher -= teacher.mean(-1, keepdims=True)
  student = logits - logits.mean(-1, keepdims=True)
  return 0.5 * jnp.square(student - teacher).sum(-1)


DISTILL_LOSSES: dict[str, Callable[[Array, Array], Array]] = {
  'cross_entropy': soft_cross_entropy,
  'kl': kl_divergence,
  'squared_logit_error': squared_logit_error,
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


def labelled_cross_entropy(
  labels: Int[Array, '*batch'], logits: Logits
) -> PerExample:
  """φ of examples some of which have no label, a negative one: 0 for those.

  So the mean over a batch is over all of it, and what such an example has of
  φ + ψ is ψ (Hinton et al. 2015, §2: a transfer set may be unlabelled).
  """
  known = labels >= 0
  losses = task_cross_entropy(jnp.where(known, labels, 0), logits)
  return jnp.where(known, losses, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """What a member descends: w₁·φ(y, F(θᵢ, f)) + w₂·ψ(teacher, F(θᵢ, f)).

  Attributes:
    task_loss: φ(labels, logits) → [*batch].
    distill_loss: ψ(targets, logits) → [*batch].
    task_weight: w₁, once ψ is on; during burn-in φ is undiminished.
    distill_weight: w₂.
    teacher: the peers' F; None if it is the members' own, as it is but for
      frozen peers of another architecture.
    constant_targets: a distribution over classes that replaces the peers in
      ψ's first argument (the label-smoothing controls, §3.2), or None.
    memory_reset_probability: with which each lane's carry, the member's and its
      teachers' alike, is zeroed before a batch. The lanes are drawn from the
      state's key and step.
    publish_average: peers get the average of the weights, which the optimizer
      keeps (`codistill.optim.averaging`), instead of the weights.
    loss_chunk_tokens: of how many tokens a device holds the logits at a time;
      None or 0 for all of its part of the batch.
  """

  task_loss: Callable[[Array, Array], Array]
  distill_loss: Callable[[Array, Array], Array]
  task_weight: float
  distill_weight: float
  teacher: Model | None
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
    """ψ of a student's logits, with the teacher that this objective has."""
    if self.needs_peers:
      targets = average_of_peers(teachers)
    else:
      targets = jnp.asarray(self.constant_targets, logits.dtype)
      targets = jnp.broadcast_to(targets, logits.shape)
    return self.distill_loss(targets, logits)

  def weigh(self, means: dict[str, Array]) -> Array:
    """w₁·φ + w₂·ψ of their means; φ alone where ψ was not computed."""
    if 'distill_loss' not in means:
      return means['task_loss']
    return (
      self.task_weight * means['task_loss']
      + self.distill_weight * means['distill_loss']
    )


# As the paper has it (§2): both losses with weight one, peers the teachers.
ALGORITHM_1 = Objective(
  task_loss=task_cross_entropy,
  distill_loss=soft_cross_entropy,
  task_weight=1.0,
  distill_weight=1.0,
  teacher=None,
  constant_targets=None,
  memory_reset_probability=0.0,
  publish_average=False,
  loss_chunk_tokens=None,
)

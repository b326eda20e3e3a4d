"""φ, ψ and the teachers against values worked out by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from codistill import losses

# Two classes; softmax of (log 3, 0) is (¾, ¼).
LOGITS = jnp.array([[np.log(3.0), 0.0], [0.0, 0.0]])
TARGETS = jnp.array([[0.5, 0.5], [1.0, 0.0]])


def test_task_loss_is_minus_the_log_of_the_labels_probability():
  loss = losses.task_cross_entropy(jnp.array([1, 0]), LOGITS)
  np.testing.assert_allclose(loss, [np.log(4), np.log(2)], rtol=1e-6)


def test_distill_losses_by_hand():
  wanted = [-0.5 * np.log(3 / 4) - 0.5 * np.log(1 / 4), np.log(2)]
  found = losses.soft_cross_entropy(TARGETS, LOGITS)
  np.testing.assert_allclose(found, wanted, rtol=1e-6)
  # It is less by the entropy of the targets, log 2 and 0.
  found, wanted[0] = (
    losses.kl_divergence(TARGETS, LOGITS),
    wanted[0] - np.log(2),
  )
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  # It compares centred logits (½ log 3, −½ log 3) with (0, 0).
  found = losses.squared_logit_error(TARGETS, LOGITS)[0]
  wanted = 0.5 * 2 * (0.5 * np.log(3)) ** 2
  np.testing.assert_allclose(found, wanted, rtol=1e-6)


FORMULAS = {
  'cross_entropy': lambda p, z, q: -p * np.log(q),
  'kl': lambda p, z, q: p * np.log(p / q),
  'reverse_kl': lambda p, z, q: q * np.log(q / p),
  'jensen_shannon': lambda p, z, q: (
    0.5 * (p * np.log(2 * p / (p + q)) + q * np.log(2 * q / (p + q)))
  ),
  'squared_logit_error': lambda p, z, q: (
    0.5 * (z - z.mean() - np.log(p) + np.log(p).mean()) ** 2
  ),
  'squared_log_softmax_error': lambda p, z, q: 0.5 * np.log(q / p) ** 2,
  'top_k_kl': lambda p, z, q: (
    lambda kept: kept * np.log(np.where(kept > 0, kept, 1) / q)
  )(np.where(p >= np.sort(p)[-2], p, 0) / np.sort(p)[-2:].sum()),
}
DISTILL_LOSSES = {
  **losses.DISTILL_LOSSES,
  'top_k_kl': functools.partial(losses.top_k_kl, k=2),
}


@pytest.mark.parametrize('name', DISTILL_LOSSES)
def test_a_distill_loss_is_its_formula_and_so_is_its_gradient(name):
  rng = np.random.default_rng(0)
  p, z = softmax(rng.normal(size=4)), rng.normal(size=4)

  def by_hand(z):
    return FORMULAS[name](p, z, softmax(z)).sum()

  with jax.enable_x64(True):
    found, gradient = jax.value_and_grad(DISTILL_LOSSES[name], argnums=1)(
      jnp.asarray(p), jnp.asarray(z)
    )
  assert found.dtype == np.float64
  np.testing.assert_allclose(found, by_hand(z), rtol=1e-12)
  eps = 1e-6 * np.eye(4)
  wanted = [(by_hand(z + e) - by_hand(z - e)) / 2e-6 for e in eps]
  np.testing.assert_allclose(gradient, wanted, rtol=1e-7, atol=1e-9)


# Each as one program, which compiles fast, instead of many operations.
every_psi = pytest.mark.parametrize(
  'loss',
  [
    jax.jit(loss)
    # On two classes there is nothing to leave out.
    for name, loss in DISTILL_LOSSES.items()
    if name != 'top_k_kl'
  ],
)


def gradient(loss, targets, logits):
  return jax.jit(jax.grad(lambda z: loss(targets, z).sum()))(logits)


@every_psi
def test_a_student_that_agrees_has_no_gradient(loss):
  logits = jnp.array([[1.0, -2.0, 0.5]])
  targets = jax.nn.softmax(logits)
  found = gradient(loss, targets, logits)
  np.testing.assert_allclose(found, np.zeros((1, 3)), atol=1e-6)
  away = logits + jnp.array([1.0, 0.0, 0.0])
  assert loss(targets, away)[0] > loss(targets, logits)[0]


@every_psi
def test_psi_is_a_sum_over_classes_and_finite_for_a_teacher_without_doubt(loss):
  targets, logits = jnp.array([[1.0, 0.0]]), jnp.array([[-90.0, 90.0]])
  assert np.isfinite(loss(targets, logits)[0])
  assert np.isfinite(gradient(loss, targets, logits)).all()
  # The student is sure of a wrong one of many classes: a mean would vanish.
  targets = jax.nn.one_hot(jnp.array([0]), 1000)
  logits = 20 * jax.nn.one_hot(jnp.array([1]), 1000)
  # Jensen and Shannon's has no more than this to give.
  assert loss(targets, logits)[0] > 15 or np.isclose(
    loss(targets, logits)[0], np.log(2), rtol=1e-4
  )


def test_cross_entropy_and_kl_have_the_same_gradient():
  ours, kl = (
    gradient(loss, TARGETS, LOGITS)
    for loss in (losses.soft_cross_entropy, losses.kl_divergence)
  )
  np.testing.assert_allclose(ours, kl, atol=1e-6)
  assert np.abs(ours).max() > 0.1


def test_of_a_click_it_is_the_binary_cross_entropy():
  # The click DNN's logits are 0 and z; the peer gives a click 0.7.
  q, z = 0.7, jnp.array([-1.5, 0.0, 2.0])

  def loss(z):
    logits = jnp.stack([jnp.zeros_like(z), z], axis=-1)
    targets = jnp.broadcast_to(jnp.array([1 - q, q]), logits.shape)
    return losses.soft_cross_entropy(targets, logits)

  p = 1 / (1 + np.exp(-np.asarray(z)))
  wanted = -q * np.log(p) - (1 - q) * np.log(1 - p)
  np.testing.assert_allclose(loss(z), wanted, rtol=1e-5)
  found = jax.jit(jax.grad(lambda z: loss(z).sum()))(z)
  np.testing.assert_allclose(found, p - q, rtol=1e-5)


def test_peers_are_averaged_as_predictions_not_as_logits():
  sure, unsure = jnp.array([[100.0, 0.0]]), jnp.array([[0.0, 0.0]])
  teacher = losses.average_of_peers([sure, unsure])
  np.testing.assert_allclose(teacher, [[0.75, 0.25]], rtol=1e-6)


def test_peers_may_be_averaged_as_logits():
  first, second = np.array([[2.0, 0.0, -1.0]]), np.array([[0.0, 3.0, 1.0]])
  teacher = losses.average_of_logits([jnp.asarray(first), jnp.asarray(second)])
  np.testing.assert_allclose(
    teacher, softmax((first + second) / 2, axis=-1), rtol=1e-6
  )


@pytest.mark.parametrize('average', losses.PEER_AVERAGES.values())
def test_no_gradient_flows_into_a_teacher(average):
  def loss(z):
    return losses.soft_cross_entropy(average([z]), LOGITS).sum()

  found = jax.jit(jax.grad(loss))(LOGITS + 1)
  np.testing.assert_array_equal(found, np.zeros((2, 2)))


@pytest.mark.parametrize('scaling', [True, False])
def test_a_temperature_softens_teachers_and_student_alike(scaling):
  student, *teachers = jax.random.normal(jax.random.key(0), (3, 4, 5))
  softened = dataclasses.replace(
    losses.ALGORITHM_1, temperature=3.0, temperature_scaling=scaling
  )
  targets = sum(softmax(one / 3, -1) for one in teachers) / 2
  wanted = -(targets * log_softmax(student / 3, -1)).sum(-1)
  found = softened.distillation(student, teachers)
  np.testing.assert_allclose(found, wanted * (9 if scaling else 1), rtol=1e-5)


def test_without_a_temperature_nothing_is_computed_for_it():
  def program(objective):
    return str(jax.make_jaxpr(objective.distillation)(LOGITS, [LOGITS]))

  plain = program(losses.ALGORITHM_1)
  assert plain.count('div') == str(
    jax.make_jaxpr(losses.average_of_peers)([LOGITS])
  ).count('div')
  assert 'mul 9.0' not in plain
  softened = dataclasses.replace(losses.ALGORITHM_1, temperature=3.0)
  assert program(softened).count('div') == plain.count('div') + 2


def test_what_has_no_label_has_no_task_loss():
  labels = jnp.array([1, -1])
  loss = losses.labelled_cross_entropy(labels, LOGITS)
  np.testing.assert_allclose(
    loss, [losses.task_cross_entropy(labels[:1], LOGITS[:1])[0], 0]
  )
  found = gradient(losses.labelled_cross_entropy, labels, LOGITS)
  assert np.abs(found[0]).max() > 0.1
  np.testing.assert_array_equal(found[1], np.zeros(2))

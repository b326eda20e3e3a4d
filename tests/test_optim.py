"""Optimizers and schedules against the recipes of their names."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import sgd

from codistill import optim

GOYAL = {
  'initial_rate': 0.1,
  'peak_rate': 6.4,
  'warmup_steps': 10,
  'drop_at_steps': (20, 30),
  'drop_factor': 0.1,
}


COSINE = {'initial_rate': 0.0, 'peak_rate': 1.0}


@pytest.mark.parametrize(
  ('schedule', 'rates'),
  [
    (
      optim.warmup_piecewise(**GOYAL),
      {0: 0.1, 5: 3.25, 10: 6.4, 19: 6.4, 20: 0.64, 30: 0.064},
    ),
    (
      optim.warmup_piecewise(**{**GOYAL, 'warmup_steps': 0}),
      {0: 6.4, 20: 0.64},
    ),
    (
      optim.warmup_cosine(**COSINE, warmup_steps=10, num_steps=110),
      {0: 0, 5: 0.5, 10: 1, 60: 0.5, 110: 0},
    ),
  ],
  ids=['warm-up and drops', 'no warm-up', 'cosine'],
)
def test_schedules(schedule, rates):
  found = [float(schedule(step)) for step in rates]
  np.testing.assert_allclose(found, list(rates.values()), rtol=1e-6, atol=1e-6)


def test_a_warmup_ends_before_the_run():
  with pytest.raises(ValueError, match='warmup_steps is 5; it must be'):
    optim.warmup_cosine(**COSINE, warmup_steps=5, num_steps=5)


def constant(name, rate, **arguments):
  """An optimizer with a constant rate."""
  rate = optim.make_schedule('constant', rate=rate)
  return optim.make_optimizer(name, rate, **arguments)


def steps_of(optimizer, gradients, weight=2.0):
  params = {'kernel': jnp.float32(weight)}
  state = optimizer.init(params)
  seen = []
  for gradient in gradients:
    gradient = {'kernel': jnp.float32(gradient)}
    updates, state = optimizer.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    seen.append(float(params['kernel']))
  return seen


def test_sgd_with_momentum_and_weight_decay_by_hand():
  optimizer = sgd(rate=0.5, momentum=0.9, weight_decay=0.1)
  # v = 0.9 v + (g + 0.1 w);  w = w − 0.5 v
  weight, velocity, expected = 2.0, 0.0, []
  gradients = (1.0, -1.0, 0.5)
  for gradient in gradients:
    velocity = 0.9 * velocity + gradient + 0.1 * weight
    weight -= 0.5 * velocity
    expected.append(weight)
  found = steps_of(optimizer, gradients)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_weight_decay_drops_where_it_is_told_to():
  decay = {'weight_decay': 0.5, 'weight_decay_drop_factor': 0.1}
  decay['weight_decay_drop_at_steps'] = 1, 3
  optimizer = constant('sgd', 1.0, momentum=0.0, nesterov=False, **decay)
  weights = [2.0]
  for decay in (0.5, 0.05, 0.05, 0.005):
    weights.append(weights[-1] * (1 - decay))
  found = steps_of(optimizer, [0.0] * 4)
  np.testing.assert_allclose(found, weights[1:], rtol=1e-5)


def test_lars_gives_matrices_a_rate_of_their_own_and_nothing_else():
  # You et al. (2017): the step of a layer is η ‖w‖ / (‖g‖ + λ‖w‖) long.
  optimizer = constant(
    'lars', 2.0, momentum=0.0, weight_decay=0.0, trust_coefficient=0.01
  )
  params = {'kernel': jnp.array([[3.0, 4.0]]), 'bias': jnp.array([3.0, 4.0])}
  gradient = {'kernel': jnp.array([[0.0, 9.0]]), 'bias': jnp.array([0.0, 9.0])}
  steps, _ = optimizer.update(gradient, optimizer.init(params), params)
  np.testing.assert_allclose(
    steps['kernel'], [[0.0, -2.0 * 0.01 * 5.0]], rtol=1e-5
  )
  np.testing.assert_allclose(steps['bias'], [0.0, -18.0], rtol=1e-5)


ADAGRAD = {'initial_accumulator': 0.1, 'eps': 1e-7}
ADAM = {'b1': 0.9, 'b2': 0.999, 'eps': 1e-8, 'clip_norm': None}


def test_adagrad_begins_as_sgd_and_slows_down_by_hand():
  gradients = (0.01, 3.0, -1.0)
  weight, accumulator, expected = 2.0, 0.1, []
  for gradient in gradients:
    accumulator += gradient**2
    weight -= 0.5 * gradient / np.sqrt(accumulator)
    expected.append(weight)
  found = steps_of(constant('adagrad', 0.5, **ADAGRAD), gradients)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  # For small gradients the rate is divided by the root of the start.
  sgd_rate = 0.5 / np.sqrt(0.1)
  assert 2.0 - found[0] == pytest.approx(sgd_rate * 0.01, rel=1e-3)


def test_adam_sees_no_more_of_a_gradient_than_its_norm_may_be():
  # Step 1 of Adam: g / (|g| + ε), here 2 / 3 for any gradient above 2.
  clipped = constant('adam', 0.1, **{**ADAM, 'eps': 1.0, 'clip_norm': 2.0})
  for gradient in (2.0, 50.0):
    [weight] = steps_of(clipped, (gradient,))
    assert weight == pytest.approx(2.0 - 0.1 * 2 / 3, rel=1e-5)
  # Without a limit the step is 1 for any gradient.
  weights = steps_of(constant('adam', 0.1, **ADAM), [50.0] * 2)
  np.testing.assert_allclose(weights, [1.9, 1.8], rtol=1e-5)


def test_an_average_of_rounded_weights_is_not_rounded():
  optimizer = optim.averaging(optax.sgd(1.0), 0.99)
  before, params = ({'w': jnp.full((), w, jnp.bfloat16)} for w in (1, 2))
  state = optimizer.init(before)
  still = {'w': jnp.zeros((), jnp.bfloat16)}
  step = jax.jit(optimizer.update)
  # The first steps of an average are large, the later ones a hundredth.
  for now in [before] * 1_000 + [params] * 1_000:
    _, state = step(still, state, now)
  found = optim.averaged({'params': params}, state)['params']['w']
  assert (found, found.dtype) == (2, jnp.bfloat16)


def test_unknown_names_are_refused_with_what_there_is():
  with pytest.raises(ValueError, match="no optimizer 'lamb'; there are sgd"):
    optim.make_optimizer('lamb', optax.constant_schedule(0.1))
  with pytest.raises(ValueError, match="no schedule 'linear'; there are const"):
    optim.make_schedule('linear', rate=0.1)

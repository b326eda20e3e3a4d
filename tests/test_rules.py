"""Rules for which peers may teach, and for the loss that is published."""

import time
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest

from codistill.exchange.rules import ANY_PEER, Rules, TaskLosses


@pytest.mark.parametrize(
  ('age', 'theirs', 'mine', 'objection'),
  [
    (-7, None, None, None),
    (0, None, None, None),
    (20, None, None, None),
    (21, None, None, 'old'),
    (0, 0.1, 5.0, None),  # A peer that is far better is a good teacher.
    (0, 1.5, 0.5, None),
    (0, 1.6, 0.5, 'worse'),
    (0, None, 0.5, 'worse'),  # Initial weights.
    (0, 99.0, None, None),
    # A diverged student has nothing to compare with.
    (0, 99.0, float('nan'), None),
  ],
)
def test_a_peer_is_too_old_or_too_bad_beyond_the_limit(
  age, theirs, mine, objection
):
  rules = Rules(max_age_steps=20, max_task_loss_ratio=3.0)
  assert rules.objection(age, theirs, mine) == objection
  # By default any peer may teach.
  assert ANY_PEER.objection(10**9 * age, 1e9, 1e-9) is None


def test_limits_that_no_peer_could_meet_are_refused():
  with pytest.raises(ValueError, match='max_age_steps must not be negative'):
    Rules(max_age_steps=-1)
  with pytest.raises(ValueError, match='max_task_loss_ratio must be at least'):
    Rules(max_task_loss_ratio=0.5)


def test_what_is_published_is_the_mean_since_the_last_time():
  losses = TaskLosses()
  losses.add(0, None)
  assert losses.publish(0) is None
  assert losses.published(0) is None
  for loss in (1.0, 2.0, 6.0):
    losses.add(0, jnp.float32(loss))
    losses.add(1, jnp.float32(9.0))
  assert losses.published(0) is None
  assert float(losses.publish(0)) == 3.0
  losses.add(0, jnp.float32(5.0))
  assert losses.published(0) == 3.0
  assert float(losses.publish(0)) == losses.published(0) == 5.0
  assert float(losses.publish(1)) == 9.0
  # One loss that is not finite shows.
  for loss in (np.inf, 1.0):
    losses.add(0, jnp.float32(loss))
  assert float(losses.publish(0)) == np.inf


@pytest.mark.parametrize('stop', [0, 3, 6])
def test_a_mean_goes_on_after_a_resume_bit_for_bit(stop):
  values = np.random.default_rng(0).random(7).astype(np.float32)
  whole, before, after = TaskLosses(), TaskLosses(), TaskLosses()
  for number, loss in enumerate(values):
    if number == stop:
      after.from_json(before.to_json())
    for losses in (whole, before if number < stop else after):
      losses.add(0, jnp.asarray(loss))
  assert float(after.publish(0)) == float(whole.publish(0))


def test_a_long_mean_holds_few_losses():
  losses, values = TaskLosses(), np.linspace(0, 1, 1001)
  for loss in values:
    losses.add(0, loss)
    assert len(losses._running[0]._losses) <= 256
  assert float(losses.publish(0)) == pytest.approx(values.mean())


def test_two_threads_that_ask_at_once_are_told_the_same():
  class Slow:
    def __float__(self):
      time.sleep(0.01)
      return 3.0

  losses = TaskLosses()
  for _ in range(5):
    losses.add(0, Slow())
  mean = losses.publish(0)
  with ThreadPoolExecutor(4) as pool:
    assert list(pool.map(float, [mean] * 4)) == [3.0] * 4

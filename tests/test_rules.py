"""Which peers may teach, and the loss that is published."""

import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from codistill.exchange.rules import ANY_PEER, Rules, TaskLosses


@pytest.mark.parametrize(
  ('age', 'objection'), [(-7, None), (0, None), (20, None), (21, 'old')]
)
def test_a_peer_is_too_old_beyond_the_limit(age, objection):
  assert Rules(max_age_steps=20).objection(age, None, None) == objection
  # By default any peer may teach.
  assert ANY_PEER.objection(10**9 * age, 1e9, 1e-9) is None


@pytest.mark.parametrize(
  ('theirs', 'mine', 'objection'),
  [
    (0.1, 5.0, None),  # A peer that is far better is a good teacher.
    (1.5, 0.5, None),
    (1.6, 0.5, 'worse'),
    (None, 0.5, None),
    (99.0, None, None),
    # A student that is ill itself has nothing to compare with.
    (99.0, float('nan'), None),
  ],
)
def test_a_peer_is_too_bad_beyond_the_ratio(theirs, mine, objection):
  rules = Rules(max_task_loss_ratio=3.0)
  assert rules.objection(0, theirs, mine) == objection


@pytest.mark.parametrize(
  ('limits', 'said'),
  [
    ({'max_age_steps': -1}, 'max_age_steps must not be negative'),
    ({'max_task_loss_ratio': 0.5}, 'max_task_loss_ratio must be at least 1'),
  ],
)
def test_limits_that_no_peer_could_meet_are_refused(limits, said):
  with pytest.raises(ValueError, match=said):
    Rules(**limits)


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
  for loss in values:
    whole.add(0, jnp.asarray(loss))
  for loss in values[:stop]:
    before.add(0, jnp.asarray(loss))
  after.from_json(before.to_json())
  for loss in values[stop:]:
    after.add(0, jnp.asarray(loss))
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
  mean, told = losses.publish(0), []
  threads = [
    threading.Thread(target=lambda: told.append(float(mean))) for _ in range(4)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert told == [3.0] * 4

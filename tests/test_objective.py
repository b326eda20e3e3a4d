"""From the config's words to φ, ψ and their weights."""

import jax.numpy as jnp
import numpy as np
import pytest

from codistill import losses
from experiments import config as config_lib
from experiments.build import build
from experiments.errors import UserError
from experiments.objective import make_weight, why_untaught


def weight(schedule, burn_in_steps=50, num_steps=1_000):
  return make_weight(
    'codistill.distill_schedule',
    2.0,
    schedule,
    burn_in_steps=burn_in_steps,
    num_steps=num_steps,
  )


def test_a_constant_weight_is_a_number():
  assert weight('constant') == 2.0


@pytest.mark.parametrize(
  ('schedule', 'wanted'),
  [
    ('linear_ramp(num_steps=200)', [0, 0, 0.5, 1, 2, 2]),
    ('cosine_ramp(num_steps=100)', [0, 0, 1, 2, 2, 2]),
    (
      'piecewise_constant_schedule(init_value=1.0, '
      'boundaries_and_scales={100: 0.5})',
      [2, 2, 2, 1, 1, 1],
    ),
    (
      'cosine_decay_schedule(init_value=1.0, decay_steps=100)',
      [2, 2, 1, 0, 0, 0],
    ),
    # It has no end.
    (
      'exponential_decay(init_value=1.0, transition_steps=2000, '
      'decay_rate=1e-20)',
      [2, 2, 2 * 10**-0.5, 0.2, 0.02, 0],
    ),
  ],
)
def test_a_schedule_counts_from_the_first_step_with_psi(schedule, wanted):
  function = weight(schedule)
  steps = (0, 50, 100, 150, 250, 999)
  found = [float(function(jnp.int32(step))) for step in steps]
  np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(
  ('schedule', 'sentence'),
  [
    ('linear', 'it must be constant, or a call with keywords'),
    ('linear_ramp(200)', 'it must be constant, or a call with keywords'),
    ('linear_ramp(num_steps=x)', 'it must be constant, or a call'),
    ('linear_ramp(steps=2)', 'its keywords are num_steps'),
    ('linear_ramp(num_steps=0)', 'num_steps must be at least 1'),
    ('ramp(num_steps=2)', "names 'ramp'; it can be linear_ramp, cosine_ramp"),
    ('_schedule()', "names '_schedule'; it can be linear_ramp, cosine_ramp, c"),
    ('linear_ramp(num_steps=951)', 'by 1 steps, or make the run longer'),
    ('sgdr_schedule(cosine_kwargs=[])', 'its keywords are cosine_kwargs'),
    (
      'linear_schedule(init_value=0.0, end_value=1.0, transition_steps=400, '
      'transition_begin=600)',
      'ends at step 1,050',
    ),
    (
      'cosine_decay_schedule(init_value=1.0, decay_steps=2_000)',
      'ends at step 2,050, but the run ends at 1,000',
    ),
  ],
)
def test_a_schedule_that_cannot_be_is_refused_in_a_sentence(schedule, sentence):
  with pytest.raises(UserError) as error:
    weight(schedule)
  assert sentence in str(error.value)
  assert 'codistill.distill_schedule' in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({}, None),
    ({'exchange': 'none'}, None),
    # Their weights are averaged.
    ({'method': 'local_sgd', 'burn_in_steps': 9_999}, None),
    ({'members': 1, 'exchange': 'frozen'}, None),
    ({'burn_in_steps': 9_999}, 'codistill.burn_in_steps is 9,999, and num_ste'),
    ({'members': 1}, 'codistill.members is 1'),
  ],
)
def test_why_nobody_has_a_teacher_is_said(changes, said):
  config = config_lib.load('imagenet_codistill:smoke')
  config.codistill.update(changes)
  found = why_untaught(config)
  assert found == said or said in found


@pytest.mark.parametrize(
  ('loss', 'said'),
  [
    (lambda targets, logits: (targets - logits) ** 2, r'gives \(9, 1000\)'),
    (lambda targets, logits: (targets - logits).sum(), r'gives \(\) for'),
    (lambda logits: logits.sum(-1), r'fails \(.*takes 1 positional'),
  ],
)
def test_a_loss_of_ones_own_gives_a_number_an_example(monkeypatch, loss, said):
  monkeypatch.setitem(losses.DISTILL_LOSSES, 'mine', loss)
  config = config_lib.load('imagenet_codistill:smoke')
  config.codistill.distill_loss = 'mine'
  with pytest.raises(UserError, match=said):
    build(config, None)

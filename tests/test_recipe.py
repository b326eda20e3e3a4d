"""The recipe of Figure 3 has the numbers of the papers."""

import pytest

from codistill import optim
from experiments import config as config_lib

CONFIG = config_lib.load('imagenet_codistill')


def test_psi_and_the_learning_rate_change_when_the_papers_say():
  assert CONFIG.codistill.burn_in_steps == 3_000
  assert CONFIG.codistill.reload_interval_steps == 50
  # Goyal et al.: 0.1 · B/256 after 5 epochs from 0.1; ÷ 10 at 30, 60, 80.
  schedule = CONFIG.schedule
  rate = optim.SCHEDULES[schedule.name](**schedule[schedule.name])
  peak = 0.1 * CONFIG.batch_size / 256
  epoch = 1_281_167 / CONFIG.batch_size
  warm, *drops = (round(epoch * epochs) for epochs in (5, 30, 60, 80))
  assert schedule.warmup_piecewise.warmup_steps == warm
  assert list(schedule.warmup_piecewise.drop_at_steps) == drops
  assert float(rate(0)) == pytest.approx(0.1)
  assert float(rate(warm - 1)) == pytest.approx(peak - (peak - 0.1) / warm)
  value = peak
  assert float(rate(warm)) == pytest.approx(peak)
  for drop in drops:
    assert float(rate(drop - 1)) == pytest.approx(value)
    value /= 10
    assert float(rate(drop)) == pytest.approx(value)

"""The arithmetic of the paper's run against hand values; its sources."""

import pytest

from experiments import config as configs
from scripts import plan


def test_what_is_planned_is_the_papers_config():
  config = configs.load('lm_codistill')
  lstm = config.model.lstm
  assert config.batch_size * config.data.sequence_length == plan.TOKENS_PER_STEP
  assert plan.cost()['examples_per_step'] == plan.TOKENS_PER_STEP
  for key, planned in {
    'burn_in_steps': plan.BURN_IN_STEPS,
    'members': plan.MEMBERS,
    'reload_interval_steps': plan.INTERVAL_STEPS,
    'keep_publications': plan.PUBLICATIONS_KEPT,
  }.items():
    assert config.codistill[key] == planned
  sizes = (lstm.embedding_size, lstm.hidden_size, lstm.num_layers)
  assert (config.data.vocab_size, *sizes) == plan.NETWORK


def test_a_small_network_by_hand_and_the_papers_as_counted():
  # It has two layers of 3 units over embeddings of 2, and 5 pieces.
  gates = 12 * (2 + 3) + 12 * (3 + 3)
  assert plan.forward_flops(5, 2, 3, 2) == 2 * (gates + 3 * 5)
  # tests/test_flops.py counts again.
  assert plan.counted_flops('burn-in') == plan.update_flops(0)
  assert plan.counted_flops('codistilling') == plan.update_flops(1)


def test_seconds_are_flops_by_rate():
  for name, one in plan.PLANS.items():
    flops = 2_000 * plan.update_flops(0) + 13_000 * plan.update_flops(1)
    flops *= plan.MEMBERS * plan.TOKENS_PER_STEP
    peak = one.devices * plan.DEVICES[one.kind].peak
    rate = plan.rate_at(name, 0.25)
    assert plan.seconds(rate) == pytest.approx(flops / (0.25 * peak))
    assert plan.share_at(name, rate) == pytest.approx(0.25)


def test_a_measured_rate_takes_the_place_of_the_assumed_one():
  lines = plan.hours_table(0.5, {'h200-8': 1e6}).splitlines()[2:]
  found = {line.split('`')[1]: line for line in lines}
  measured = {name for name in found if found[name].endswith('measured |')}
  assert measured == {'h100-1', 'h200-8'}
  assert '| 13 | 0.415 |' in found['h100-1']
  assert '| 1.00 | 0.524 |' in found['h200-8']
  assert '| 50 |' in found['h200-1']


def test_storage_by_hand():
  sizes, found = plan.cost()['bytes'], plan.storage()
  tokens = 2 * 15_000 * 16_384 * 32
  assert found['text, as tokens'][0] == 2 * tokens
  weights = 4 * plan.cost()['parameters']
  assert found['publications in the folder'][0] == 2 * 3 * weights
  assert found['publications, ever written'][0] == 2 * 300 * weights
  # They are two layers' cells and outputs.
  assert sizes['memory'] == 2 * 2 * 16_384 * 1_024 * 4
  # They are weights, two moments, and a few counters.
  rest = sizes['state'] - sizes['memory'] - 3 * weights
  assert 0 < rest < 100
  each = sizes['state'] + sizes['memory'] + weights
  assert found['checkpoints'][0] == 2 * 2 * each


def test_memory_falls_with_the_devices_and_fits():
  found = {
    (line['devices'], line['update']): line for line in plan.cost()['memory']
  }

  def beside_weights(*key):
    return found[key]['in_all'] - found[key]['arguments']

  for update in ('burn-in', 'codistilling'):
    # All but the weights is divided.
    whole = beside_weights(1, update)
    for devices in (4, 8, 32, 64):
      assert beside_weights(devices, update) < 2 * whole / devices
  for name, one in plan.PLANS.items():
    mine = found[max(1, one.devices // 2), 'codistilling']
    assert mine['in_all'] < plan.DEVICES[one.kind].memory, name


def test_peaks_are_dense_and_have_a_source():
  assert plan.DEVICES['H200'].peak == pytest.approx(1_979e12 / 2, rel=1e-3)
  assert plan.DEVICES['TPU v5e'].peak == 197e12
  assert all(one.source.startswith('https://') for one in plan.DEVICES.values())
  assert plan.peak('v5e-64') == pytest.approx(64 * 197e12)


def test_shares_of_what_this_machine_multiplies_were_measured():
  product = plan.benchmark()['a product of 1,024², float32 (GFLOP/s)']
  for update in ('burn-in', 'codistilling'):
    name = f'LSTM, {update}: share of the product’s rate (%)'
    shares = plan.benchmark()[name]
    assert len(shares) == len(product)
    assert 0 < min(shares) <= max(shares) < 100

"""Click logs end to end: runs, their records, and their arms."""

import numpy as np
from commands import rows_of, run_command

from experiments import config as config_lib
from experiments import predictions
from experiments.record import read_run
from scripts import prepare_criteo


def test_a_run_says_what_is_reachable_and_counts_every_row(tmp_path, capfd):
  outcome = run_command(tmp_path, config='criteo_codistill:smoke')
  assert outcome.status == 0
  rows = rows_of(tmp_path)
  best = read_run(tmp_path / 'run.json')['data']['best_log_loss']
  assert 0.3 < best < 0.55
  said = ' '.join(capfd.readouterr().out.split())
  assert f'no model can do better than {best:.4f} nats' in said
  dataset = outcome.experiment.dataset
  assert dataset.num_examples('test') == 2_000 - dataset.num_train
  # About the entropy of the share of clicks, and better than a coin.
  finals = [r['task_loss'] for r in rows if r['kind'] == 'final']
  assert len(finals) == 3
  assert best < min(finals) < max(finals) < np.log(2) + 0.1
  taught = [r['peers'] for r in rows if r['kind'] == 'train']
  assert {step for step, _ in predictions.find(tmp_path)} == {4, 8}
  assert taught == [[]] * 6 + [[1], [0]] * 5


def test_a_log_of_ones_own(tmp_path, capsys):
  text, folder = tmp_path / 'train.txt', tmp_path / 'prepared'
  prepare = prepare_criteo.main
  assert not prepare(['--synthetic-rows=1000', f'--write={text}'])
  assert not prepare([f'--input={text}', f'--output={folder}', '--workers=1'])
  # It has printed this flag.
  flag = capsys.readouterr().out.split()[-1]
  assert flag == f'--config.data.path={folder}'
  run = (tmp_path / 'run', flag, '--config.num_steps=2')
  outcome = run_command(*run, config='criteo_codistill:smoke')
  assert outcome.status == 0
  data = read_run(tmp_path / 'run/run.json')['data']
  assert data['fingerprint'] == outcome.experiment.dataset.fingerprint
  assert 'best_log_loss' not in data


def test_what_makes_no_sense_is_one_sentence(tmp_path, capfd):
  for argument, said in (
    ('data.name=prepared', '--config.data.path=DIR'),
    ('data.path=/nowhere/at/all', '/nowhere'),
    ('data.synthetic_rows=1', 'at least 4, got 1'),
    ('model.click_dnn.embedding_size=0', 'must be at least 1'),
  ):
    arguments = (tmp_path / argument[:9], f'--config.{argument}')
    status = run_command(*arguments, config='criteo_dnn:smoke').status
    assert status == 2
    error = capfd.readouterr().err
    assert said in error
    assert 'Traceback' not in error


def test_table_1_is_one_network_two_two_that_codistil_and_a_regression():
  points = config_lib.points('criteo_table1')
  assert [len(point) for point in points] == [0, 1, 4, 1]
  for variant in ('reduced', 'laptop'):
    # It trains long after the switch, and shows churn on the way.
    config = config_lib.load(f'criteo_codistill:{variant}')
    assert config.codistill.burn_in_steps <= config.num_steps / 4
    assert config.num_steps / config.predictions_interval_steps >= 10
  codistil = config_lib.load('criteo_codistill').codistill
  assert points[2] == {
    f'codistill.{key}': codistil[key]
    for key in ('members', 'exchange', 'burn_in_steps', 'reload_interval_steps')
  }


def test_choices_are_what_the_paper_leaves_out():
  changed = [set(point) for point in config_lib.points('criteo_choices')]
  assert set.union(*changed) == {
    'codistill.reload_interval_steps',
    'codistill.burn_in_steps',
    'diversity.partition',
  }
  # They change one at a time, and none is what criteo_table1 has.
  config = config_lib.load('criteo_codistill')
  for point in config_lib.points('criteo_choices'):
    [(key, value)] = point.items()
    section, name = key.split('.')
    assert config[section][name] != value

"""Members of different architecture: in one process, in many, afterwards."""

import json

import jax
import jax.export
import numpy as np
import pytest
from commands import (
  assert_bit_for_bit,
  beside,
  killed_once,
  line_of,
  rows_of,
  run_command,
  stop_command,
)
from in_process import run_script
from orbax.checkpoint import v1 as ocp

from codistill import losses
from codistill.algorithm import Peer
from codistill.storage.checkpoint import read_newest
from experiments import config as config_lib
from experiments import given, networks
from experiments.errors import UserError
from experiments.record import read_run
from experiments.stored import open_run
from scripts import cost, evaluate, export, status

# A ring of three, of two networks that differ in all that a network may.
CONFIG = '''"""Members of two networks."""
from experiments.configs import imagenet_codistill

VARIANTS = ('',)


def get_config(variant=''):
  config = imagenet_codistill.get_config('laptop')
  config.num_steps = 8
  config.batch_size = 16
  config.eval_interval_steps = 4
  config.schedule.warmup_cosine.warmup_steps = 2
  config.codistill.members = 3
  config.codistill.topology = 'ring'
  config.codistill.burn_in_steps = 3
  config.codistill.reload_interval_steps = 2
  config.codistill.teacher_precision = 'bfloat16'
  config.codistill.member_models = ('small', 'wide', 'small')
  config.networks.small = {
    'model': {'name': 'dnn', 'dnn': {'hidden': (8,)}},
    'optimizer': {'name': 'lars'},
    'schedule': {'name': 'constant', 'constant': {'rate': 0.02}},
  }
  config.networks.wide = {'model': {'name': 'dnn', 'dnn': {'hidden': (9, 7)}}}
  return config
'''
APART = (
  '--config.codistill.exchange=checkpoints',
  '--config.codistill.synchronous=True',
  '--config.codistill.wait_timeout_s=120',
  '--config.checkpoint_interval_steps=4',
)


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  path = tmp_path_factory.mktemp('config') / 'mixed.py'
  path.write_text(CONFIG)
  return str(path)


@pytest.fixture(scope='module')
def mixed(config, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('mixed') / 'run'
  outcome = run_command(workdir, *APART[3:], config=config)
  assert outcome.status == 0
  return workdir, outcome


def changed(config, **changes):
  return config_lib.load_changed(
    config, {key.replace('__', '.'): value for key, value in changes.items()}
  )


def test_each_member_trains_its_own_network(mixed):
  workdir, outcome = mixed
  params = [m.state.variables['params'] for m in outcome.trainer.members]
  shapes = [[layer['kernel'].shape for layer in p.values()] for p in params]
  assert shapes == [
    [(64, 8), (8, 10)],
    [(64, 9), (9, 7), (7, 10)],
    [(64, 8), (8, 10)],
  ]
  rows = rows_of(workdir)
  rates = {
    row['member']: row['learning_rate']
    for row in rows
    if row['kind'] == 'train' and row['step'] == 8
  }
  assert rates[0] == rates[2] == np.float32(0.02) != rates[1]
  last = [row for row in rows if row['kind'] == 'final']
  assert [row['member'] for row in last] == [0, 1, 2, 'ensemble']
  # Two networks, and so two programs of each update.
  descends = outcome.experiment.updates.descends
  assert descends.keys() == {'small', 'wide'}


def test_a_teacher_predicts_with_its_own_network(mixed):
  _, outcome = mixed
  experiment, updates = outcome.experiment, outcome.experiment.updates
  batch = next(experiment.batches(0, 0))
  one, other = experiment.init(0), experiment.init(1)
  _, metrics = updates.codistill(
    experiment.init(0), batch, (one_peer(1, other),)
  )
  student, teacher = (
    experiment.networks[number]
    .model.predict(state.variables, batch['inputs'], ())[0]
    .logits
    for number, state in enumerate((one, other))
  )
  expected = losses.soft_cross_entropy(jax.nn.softmax(teacher), student).mean()
  np.testing.assert_allclose(metrics['distill_loss'], expected, rtol=1e-5)


def one_peer(number, state):
  return Peer(number, 0, jax.tree.map(np.array, state.variables))


def test_a_run_that_stops_goes_on_bit_for_bit(mixed, config, tmp_path):
  workdir, whole = mixed
  stop_command(5, tmp_path, *APART[3:], config=config)
  outcome = run_command(tmp_path, *APART[3:], config=config)
  assert (outcome.status, outcome.trainer.start_step) == (0, 5)
  assert rows_of(tmp_path) == rows_of(workdir)
  assert_bit_for_bit(outcome, whole)


def test_processes_of_different_networks_are_one_run(mixed, config, tmp_path):
  """Though one is killed."""
  workdir, whole = mixed
  wide, small = (
    line_of(tmp_path, *APART, f'--member={member}', config=config)
    for member in (1, 2)
  )
  with killed_once(wide, tmp_path), beside(small):
    outcome = run_command(tmp_path, *APART, '--member=0', config=config)
  assert outcome.status == 0
  states = [outcome.trainer.members[0].state]
  for member in (1, 2):
    restored = read_newest(
      tmp_path / f'checkpoints-{member}',
      outcome.experiment.abstract,
      outcome.experiment.mesh,
      outcome.experiment.teacher_precision,
    )
    states.append(restored.states[member])
  jax.tree.map(
    np.testing.assert_array_equal,
    states,
    [member.state for member in whole.trainer.members],
  )
  shown = [(one.member, one.network) for one in status.read_status(tmp_path)]
  assert shown == [(0, 'small'), (1, 'wide'), (2, 'small')]
  assert len(read_run(tmp_path / 'run-1.json')['resumed']) == 1
  for member in range(3):
    assert rows_of(tmp_path, f'rows-{member}.jsonl') == [
      row for row in rows_of(workdir) if row['member'] == member
    ]


def test_evaluation_and_the_ensemble_are_of_all_networks(
  mixed, tmp_path, capsys
):
  workdir, _ = mixed
  path = tmp_path / 'scores.json'
  assert run_script(evaluate, workdir, f'--json={path}') == 0
  found = json.loads(path.read_text())
  rows = {
    str(row['member']): row
    for row in rows_of(workdir)
    if row['kind'] == 'final'
  }
  found = found['members'] | {'ensemble': found['ensemble']}
  for who, scores in found.items():
    np.testing.assert_allclose(scores['task_loss'], rows[who]['task_loss'])
  run = open_run(workdir)
  images = next(run.experiment.eval_batches())['inputs'][:5]
  each = [run.predict(member, images) for member in range(3)]
  np.testing.assert_allclose(
    run.predict('ensemble', images), np.mean(each, 0), atol=1e-6
  )
  # An export needs none of this code.
  out = tmp_path / 'export'
  assert run_script(export, workdir, '--member=ensemble', f'--out={out}') == 0
  call = jax.export.deserialize((out / 'predict.bin').read_bytes()).call
  served = call(ocp.load(out / 'variables'), images)
  np.testing.assert_allclose(served, np.mean(each, 0), atol=1e-6)


def test_an_lstm_and_a_transformer_keep_each_others_memories(
  short_text, tmp_path
):
  arguments = (
    '--config.num_steps=6',
    '--config.codistill.burn_in_steps=2',
    '--config.eval_interval_steps=6',
    # A memory_gap needs lanes of more than 512 tokens.
    '--config.eval_batch_size=1',
    '--config.model.lstm.num_layers=1',
    '--config.model.transformer.num_layers=1',
    "--config.codistill.member_models=('lstm','transformer')",
    f'--config.data.data_dir={short_text}',
  )
  config = 'lm_codistill:smoke'
  whole = run_command(tmp_path / 'whole', *arguments, config=config)
  assert whole.status == 0
  lstm, transformer = (member.state for member in whole.trainer.members)
  # Each student carries its teacher's memory over its own lanes.
  assert lstm.peer_memories == {1: ()}
  assert transformer.memory == ()
  [(cell, hidden)] = transformer.peer_memories[0]
  assert np.abs(hidden).min() > 0
  assert np.abs(cell - lstm.memory[0][0]).max() > 1e-3
  rows = rows_of(tmp_path / 'whole')
  for row in rows:
    if row['kind'] == 'train' and row['member'] == 0:
      assert row['examples_seen'] == row['step'] * 8 * 8
      assert row['peers'] == ([1] if row['step'] > 2 else [])
  final = [row for row in rows if row['kind'] == 'final']
  assert [row['member'] for row in final] == [0, 1, 'ensemble']
  gaps = ['memory_gap' in row for row in final]
  assert gaps == [True, False, False]
  # The networks are almost fresh, and so is the memory.
  assert final[0]['task_loss'] == pytest.approx(np.log(64), abs=0.2)
  assert abs(final[0]['memory_gap']) < 0.05
  fingerprint = read_run(tmp_path / 'whole/run.json')['data']['fingerprint']
  assert fingerprint == whole.experiment.dataset.fingerprint
  halves = tmp_path / 'halves'
  stop_command(4, halves, *arguments, config=config)
  outcome = run_command(halves, *arguments, config=config)
  assert (outcome.status, outcome.trainer.start_step) == (0, 4)
  assert rows_of(halves) == rows
  assert_bit_for_bit(outcome, whole)
  # Who only looks does not know which networks taught.
  assert run_script(evaluate, halves) == 0


def test_a_cost_is_that_of_a_member(config, capsys):
  parameters = {}
  for member in (0, 1):
    found = cost.describe(config, [(1, 1)], 1, {}, member)
    parameters[member] = found['parameters']
  assert parameters == {0: 65 * 8 + 9 * 10, 1: 65 * 9 + 10 * 7 + 8 * 10}
  with pytest.raises(UserError, match='there is no member 3'):
    cost.describe(config, [(1, 1)], 1, {}, 3)


@pytest.mark.parametrize(
  ('changes', 'why'),
  [
    (
      {'codistill__member_models': ('small', 'wide')},
      "member_models is ('small', 'wide'), and codistill.members is 3; name",
    ),
    (
      {'codistill__member_models': ('small', 'wid', 'wide')},
      "'wid'; it can be dnn, resnet, small, wide, wide_resnet; did you",
    ),
    ({'two_phase__model': 'smal'}, "two_phase.model names 'smal'; it can be"),
  ],
)
def test_bad_names_are_a_sentence(config, changes, why):
  found = changed(config, two_phase__num_steps=8, **changes)
  read = networks.of_members
  if 'two_phase__model' in changes:
    read = config_lib.first_phase
  with pytest.raises(UserError) as caught:
    read(found)
  assert why in str(caught.value)


@pytest.mark.parametrize(
  ('changes', 'why'),
  [
    ({'data': {'num_classes': 9}}, 'wide sets data, which all members share'),
    (
      {'model': {'loss_chunk_tokens': 9}},
      'sets model.loss_chunk_tokens, which',
    ),
    (
      {'model': {'dnn': {'hiden': 3}}},
      'networks.wide sets model.dnn.hiden, and ',
    ),
    ({'model': {'dnn': {'hidden': 'x'}}}, 'networks.wide: '),
  ],
)
def test_what_a_network_cannot_have_is_a_sentence(config, changes, why):
  found = config_lib.load(config)
  found.networks.wide = changes
  with pytest.raises(UserError) as caught:
    networks.of_members(found)
  assert why in str(caught.value)
  assert '\n' not in str(caught.value)


def test_keys_are_read_by_the_networks_that_members_have(config):
  found = config_lib.load(config)
  read = {
    'networks.wide.model.dnn.hidden': True,
    'networks.small.schedule.constant.rate': True,
    # Only members of `wide` have what the config says.
    'optimizer.sgd.momentum': True,
    'schedule.warmup_cosine.peak_rate': True,
    'schedule.constant.rate': False,
    'model.dnn.hidden': False,
    'model.name': False,
    'model.resnet.depth': False,
  }
  unread = given.unread(found, read)
  assert {key: key not in unread for key in read} == read
  assert 'set networks.small.model.dnn.hidden' in unread['model.dnn.hidden']
  # Not that another member has another network.
  [why] = given.unread(found, ['networks.wide.schedule.constant.rate']).values()
  assert "schedule.name is 'warmup_cosine'" in why
  found = changed(config, codistill__member_models=('wide', 'dnn', 'wide'))
  [why] = given.unread(found, ['networks.small.model.dnn.hidden']).values()
  assert "no member has the network 'small'" in why
  assert not given.unread(found, ['model.dnn.hidden'])
  # What a config itself says about a network is as good as given.
  found = config_lib.load(config)
  given.check_read(found, ())
  found.networks.wide.schedule = {'constant': {'rate': 1.0}}
  with pytest.raises(UserError, match='wide sets schedule'):
    given.check_read(found, ())
  # It could not know what is given.
  found.schedule.name = 'constant'
  given.check_read(found, ['schedule.name'])
  # The network of a first phase is trained, too.
  found = changed(
    config,
    codistill__exchange='frozen',
    codistill__member_models=('wide', 'wide', 'wide'),
    two_phase__model='small',
    two_phase__num_steps=8,
  )
  assert not given.unread(found, ['networks.small.model.dnn.hidden'])
  first = config_lib.first_phase(found)
  assert (first.model.name, first.optimizer.name) == ('dnn', 'lars')
  assert {name for name, _ in networks.of_members(first)} == {'dnn'}

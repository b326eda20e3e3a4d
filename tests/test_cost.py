"""The cost of an update, found without data and without computing."""

import json

import jax
import pytest
from in_process import complaint

from experiments import config as configs
from experiments.errors import UserError
from experiments.record import Record
from scripts import cost, flops

# They are traced fast.
LAYERS = {
  'lm_codistill:smoke': {'model.lstm.num_layers': 1},
  'imagenet_codistill:smoke': {'model.resnet.depth': 8},
  'criteo_codistill:smoke': {},
}
SMALL = list(LAYERS)
UPDATES = ('burn-in', 'codistilling')


@pytest.fixture(scope='module', autouse=True)
def eight_devices():
  """Eight devices in use already; the command asks for as many as it needs."""
  assert jax.device_count() == 8


def test_memory_is_that_of_a_device_and_written_down(tmp_path):
  path = tmp_path / 'cost.json'
  changes = {'model.name': 'dnn', 'model.dnn.hidden': [64], 'batch_size': 512}
  keys = [f'--config.{key}={value}' for key, value in changes.items()]
  memory = {}
  twice = ['--devices', '1', '--devices', '1', '--microbatches', '4', '1']
  for numbers in (['--devices', '2', '1'], twice):
    line = ['imagenet_codistill:smoke', *numbers, *keys, f'--json={path}']
    assert cost.main(line) == 0
    written = json.loads(path.read_text())
    assert written['machine']['jax']
    found = written['cost']
    assert found['changes'] == changes
    assert (found['examples_per_step'], found['unit']) == (512, 'example')
    assert found['teachers'] == 1
    for one in found['memory']:
      memory[one['devices'], one['microbatches'], one['update']] = one
  ways = (2, 1), (1, 1), (1, 4)
  assert memory.keys() == {(*way, update) for way in ways for update in UPDATES}
  published = found['bytes']['publication']['float32']
  assert published == 4 * found['parameters']
  for one in memory.values():
    # It has weights and momentum, and the teacher's weights; both are donated.
    least = 2 if one['update'] == 'burn-in' else 3
    assert one['arguments'] > least * published
    in_all = one['arguments'] + one['while_it_runs']
    assert in_all <= one['in_all'] < 1.1 * in_all
  for update in UPDATES:
    half, whole, parts = (memory[*way, update] for way in ways)
    assert half['arguments'] < whole['arguments'] == parts['arguments']
    for less in (half, parts):
      assert less['while_it_runs'] < whole['while_it_runs']


@pytest.mark.parametrize('name', SMALL)
def test_a_teacher_adds_its_forward_pass(name):
  experiment = cost.make_experiment(name, 1, **LAYERS[name])
  state, batch, peers, memories, *_ = cost.abstract_arguments(experiment, 1)
  forward = flops.count(
    lambda *shapes: experiment.networks[0].model.predict(*shapes)[0].logits,
    state.variables,
    batch['inputs'],
    memories[0],
  ).products
  alone, one, two = (
    cost.update_flops(experiment, teachers).products for teachers in range(3)
  )
  assert one - alone == two - one == forward
  assert len(peers) == 1


def test_a_member_has_the_teachers_that_its_config_gives_it(capsys):
  name, four = SMALL[2], {'codistill.members': 4}
  averaged = {'codistill.method': 'local_sgd'}
  for number, changes, member in (
    (3, four, 0),
    (1, four | {'codistill.topology': 'ring'}, 0),
    (3, four | {'codistill.topology': 'star'}, 0),
    (1, four | {'codistill.topology': 'star'}, 1),
    (0, {'codistill.exchange': 'none'}, 0),
    # Members that are averaged do not teach each other, but groups do.
    (0, averaged, 0),
    (1, four | averaged | {'codistill.group_size': 2}, 0),
    (0, {'codistill.burn_in_steps': 100}, 0),
    # Of all members in one process, of whom nobody trains.
    (1, {'fault.kind': 'slow', 'fault.member': 1, 'fault.step': 1}, 0),
  ):
    found = cost.describe(name, [(1, 1)], None, changes, member)
    assert found['teachers'] == number, changes
    updates = UPDATES if number else UPDATES[:1]
    assert tuple(found['flops']) == updates, changes
    assert {one['update'] for one in found['memory']} == {*updates}, changes
  assert cost.main([name, '--config.codistill.members=4']) == 0
  [line] = [
    one
    for one in capsys.readouterr().out.splitlines()
    if 'codistilling,' in one
  ]
  assert 'codistilling, 3' in line
  assert cost.main([name, '--config.codistill.exchange=none']) == 0
  assert 'codistilling' not in capsys.readouterr().out


def test_a_frozen_teacher_has_its_own_network(tmp_path):
  # The small member of a pair, whose teacher is the large one.
  *_, frozen, _ = configs.points('mixed_members:smoke')
  pair = cost.make_experiment('mixed_members:smoke', 1)
  wanted = [cost.update_flops(pair, teachers, 1) for teachers in (0, 1)]
  assert wanted[1].products > 4 * wanted[0].products
  # And so if the large one is a run that is there already.
  config = configs.load('mixed_members:smoke')
  config.codistill.member_models = ('large',)
  config.codistill.members = 1
  run = {'experiment': 'mixed_members', 'variant': 'smoke', 'status': 'done'}
  Record(tmp_path).write_run({**run, 'config': config.to_dict()})
  there = {
    key: value for key, value in frozen.items() if 'two_phase' not in key
  }
  there['codistill.frozen_dir'] = str(tmp_path)
  for changes in (frozen, there):
    student = cost.make_experiment('mixed_members:smoke', 1, **changes)
    found = [cost.update_flops(student, teachers) for teachers in (0, 1)]
    assert found == wanted
    assert cost.update_memory(student, 1) == cost.update_memory(pair, 1, 1)
  for folder, sentence in (
    (tmp_path, 'data whose kind is images, and here data.kind is text'),
    (tmp_path / 'none', 'holds no run'),
  ):
    there = {
      'codistill.exchange': 'frozen',
      'codistill.frozen_dir': str(folder),
    }
    with pytest.raises(UserError, match=sentence):
      cost.make_experiment('lm_two_phase:smoke', 1, **there)


def test_a_key_that_cannot_be_is_one_sentence(capsys):
  frozen = '--config.codistill.exchange=frozen'
  for name, argument, words in (
    (SMALL[1], '--config.batch_sizes=8', 'did you mean batch_size'),
    (SMALL[1], '--config.batch_size=many', 'batch_size'),
    (SMALL[1], '--batch_size=8', "what is '--batch_size=8'?"),
    (SMALL[1], '--microbatches=3', 'num_microbatches is 3'),
    (SMALL[1], '--config.num_microbatches=2', '--microbatches sets it'),
    (SMALL[1], '--config.num_devices=1', '--devices sets it'),
    (SMALL[1], '--config.model.dnn.hidden=[8]', "model.name is 'resnet'"),
    (SMALL[1], frozen, 'codistill.exchange is frozen, but there is no teacher'),
    (SMALL[1], '--teachers=2', '--teachers is 2, but 1 teach member 0 of'),
    (SMALL[0], '--devices=9', 'num_devices is 9, but there are 8 devices here'),
    ('lm_codistil', '--devices=1', 'did you mean lm_codistill'),
  ):
    assert words in complaint(capsys, cost, name, argument)


def test_kept_for_the_gradient_by_hand():
  def kept(config, devices=1, **changes):
    return cost.kept_bytes(cost.make_experiment(config, devices, **changes))

  # A product of two needs the other factor: each layer its inputs, and its
  # weights if there is a layer before. The rectifier needs the places where it
  # was open, and zeros for the others.
  dnn = 'imagenet_codistill:smoke'
  changes = {'model.name': 'dnn', 'model.dnn.hidden': (10, 20)}
  pixels, batch = 16 * 16 * 3, 16
  bytes_of_weights = 4 * 10 * 20
  an_example = 4 * (pixels + 10) + (1 + 4) * (10 + 20)
  assert kept(dnn, **changes) == bytes_of_weights + batch * an_example
  for parts in ({'devices': 2}, {'num_microbatches': 2}):
    found = kept(dnn, **parts, **changes)
    assert found == bytes_of_weights + batch // 2 * an_example
  # Blocks that are computed again keep their inputs.
  few = LAYERS[dnn]
  assert kept(dnn, **few, **{'model.resnet.remat': True}) < 0.6 * kept(
    dnn, **few
  )
  # This has another kind of inputs, and a memory.
  assert kept('lm_codistill:smoke') > kept('lm_codistill:smoke', devices=8) > 0


def test_numbers_that_make_no_sense_are_refused(capsys):
  for arguments, words in (
    (['--devices=0'], 'must be at least 1'),
    (['--teachers=0'], 'must be at least 1'),
    (['--microbatches=0'], 'must be at least 1'),
    (['--devices=1', '--microbatches', '1', '2'], 'many numbers as --devices'),
  ):
    with pytest.raises(SystemExit, match='2'):
      cost.main(['lm_codistill:smoke', *arguments])
    assert words in capsys.readouterr().err

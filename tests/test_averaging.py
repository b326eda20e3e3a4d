"""Configs of local SGD and DiLoCo: what they build, refuse and leave."""

import json

import jax
import numpy as np
import pytest
from commands import DNN, build_cheaply, error_sentence, rows_of, run_command

from codistill import optim
from experiments import averaging, given
from experiments import config as config_lib
from experiments.build import build
from experiments.errors import UserError
from experiments.stored import open_run
from scripts import evaluate

DILOCO = 'imagenet_diloco'
SMALL = {'model.name': 'dnn', 'model.dnn.hidden': (8,)}


ONE_GROUP = {'codistill.group_size': 4}


def config_of(name=DILOCO, **changes):
  config = config_lib.load(f'{name}:smoke')
  config.num_devices = 1
  config.update_from_flattened_dict({**SMALL, **changes})
  return config


def weights_of(experiment):
  return [
    jax.tree.leaves(experiment.init(member).variables)[1]
    for member in range(experiment.num_members)
  ]


REFUSED = {
  ('codistill.method', 'fedavg'): "'fedavg'; it can be codistillation, local",
  ('codistill.exchange', 'none'): 'set it to memory or checkpoints',
  ('codistill.members', 1): 'so there is no average; set it to 2 or more',
  ('num_async_workers', 2): 'num_async_workers is more than 1',
  ('codistill.member_models', ('dnn', 'resnet')): 'have no average; leave it',
  ('codistill.delay_steps', 2): 'make it less than reload_interval_steps, 2',
  ('codistill.outer_learning_rate', 0.0): 'the rate must be more than 0',
  ('codistill.outer_momentum', 1.0): 'and the momentum in [0, 1)',
  ('codistill.group_size', 1): 'group_size is 1; it must be 2 or more',
  ('codistill.members', 4, 'codistill.group_size', 3): 'to 4 to average all',
  ('codistill.topology', 'ring'): 'set topology to all',
  ('codistill.max_age_steps', 9): 'leave out group_size, max_age_steps',
  ('codistill.exchange', 'checkpoints'): 'synchronous to True if exchange is',
  (
    'codistill.publish_differences',
    False,
    'codistill.publish_precision',
    'int8',
  ): ('must be float32 where weights are averaged'),
  ('evaluate_soup', True, 'codistill.members', 1): 'which has no average',
  (
    'codistill.publish_average',
    True,
    'average_decay',
    0.9,
  ): 'be codistillation',
  (
    'codistill.publish_average',
    True,
    'codistill.method',
    'codistillation',
  ): 'needs average_decay to be more than 0',
  ('fault.kind', 'noise', 'fault.step', 4): 'choose a step between two',
}


@pytest.mark.parametrize(('changes', 'sentence'), REFUSED.items())
def test_what_cannot_be_averaged_is_refused_in_a_sentence(changes, sentence):
  keys = dict(zip(changes[::2], changes[1::2], strict=True))
  with pytest.raises(UserError) as error:
    build(config_of(**keys), None)
  assert sentence in str(error.value)
  assert '\n' not in str(error.value)


def test_processes_of_a_member_must_wait_for_averages(monkeypatch):
  monkeypatch.setattr(averaging.hosts, 'are_several', lambda: True)
  config = config_of(
    'imagenet_local_sgd', **{'codistill.exchange': 'checkpoints'}
  )
  with pytest.raises(UserError, match='set codistill'):
    averaging.check(config, 0)
  config.codistill.synchronous = True
  averaging.check(config, 0)


def test_keys_that_a_method_does_not_read_are_refused():
  teaching = ['codistill.distill_weight', 'codistill.burn_in_steps']
  outer = ['codistill.outer_momentum', 'codistill.publish_differences']
  own = 'diversity.initialization'
  for name, changes, unread in (
    (DILOCO, {}, [*teaching, own]),
    ('imagenet_local_sgd', {}, [*teaching, outer[0], own]),
    ('imagenet_hybrid', {}, outer[:1]),
    ('imagenet_hybrid', ONE_GROUP, [*teaching, outer[0], own]),
    ('imagenet_codistill', {}, [*outer, 'codistill.group_size']),
  ):
    keys = [*teaching, *outer, own, 'codistill.group_size']
    found = given.unread(config_of(name, **changes), keys)
    assert found.keys() == set(unread), name


def test_old_publications_are_left_out_unless_a_config_says_how_old():
  for changes, age in (
    ({}, 1),
    ({'codistill.delay_steps': 1}, 2),
    ({'codistill.exchange': 'checkpoints'}, 3),
    ({'codistill.exchange': 'checkpoints', 'codistill.synchronous': True}, 1),
    ({'codistill.max_age_steps': 99}, 99),
    ({'codistill.method': 'codistillation'}, None),
  ):
    config = config_of('imagenet_local_sgd', **changes)
    assert averaging.max_age_steps(config) == age


def test_members_that_are_averaged_start_alike_and_groups_apart():
  first, *others = weights_of(build_cheaply(config_of(), None))
  for other in others:
    np.testing.assert_array_equal(first, other)
  groups = weights_of(build_cheaply(config_of('imagenet_hybrid'), None))
  alike = [(one == groups[0]).all() for one in groups]
  assert alike == [True, True, False, False]
  np.testing.assert_array_equal(groups[2], groups[3])


def test_groups_are_of_averages_and_all_members_are_one_group():
  taught = {'codistill.method': 'codistillation'}
  for changes, seen, distils in (
    ({}, (1, 2), True),
    (ONE_GROUP, (1, 2, 3), False),
    (taught, (1, 2, 3), True),
    ({**taught, 'codistill.members': 5}, (1, 2, 3, 4), True),
  ):
    config = config_of('imagenet_hybrid', **changes)
    averaging.check(config, None)
    assert averaging.make_graph(config).teachers(0, 0) == seen
    assert (averaging.burn_in_steps(config) < config.num_steps) == distils


def test_members_that_publish_differences_round_alike():
  rounded = {'codistill.publish_precision': 'int8'}
  one, other = (config_lib.in_common(config_of(**c)) for c in ({}, rounded))
  assert one != other
  weights = {'codistill.publish_differences': False}
  one, other = (
    config_lib.in_common(config_of(**weights, **c)) for c in ({}, rounded)
  )
  assert one == other


def test_a_member_that_is_gone_is_averaged_once_more_at_most():
  changes = {'codistill.members': 3, 'num_steps': 9}
  experiment = build_cheaply(config_of('imagenet_local_sgd', **changes), None)
  members, averaged, left_out = experiment.start(), {}, {}
  for report in experiment.reports(members, 0):
    if report.member.index == 0:
      averaged[report.step] = [peer.member for peer in report.peers]
      left_out[report.step] = experiment.exchange.account(0).left_out
    if report.step == 4 and report.ends_round:
      report.member.active = False
      experiment.exchange.withdraw(report.member.index)
  assert {at: peers for at, peers in averaged.items() if peers} == {
    3: [1, 2],
    5: [1, 2],
    7: [1],
    9: [1],
  }
  assert left_out[7] == {2: 'old'}


def test_evaluations_are_of_the_averaged_members(tmp_path, capfd):
  every = '--config.codistill.reload_interval_steps=4'
  soup = '--config.evaluate_soup=True'
  running = '--config.average_decay=0.5'
  outcome = run_command(
    tmp_path, *DNN, every, soup, running, config='imagenet_local_sgd:smoke'
  )
  assert outcome.status == 0
  rows = rows_of(tmp_path)
  assert [r['step'] for r in rows if r['kind'] == 'train' and r['peers']] == [
    *(5, 5)
  ]
  for kind, whos in (('eval', 2), ('final', 3)):
    found = [row for row in rows if row['kind'] == kind]
    scores = {row['member']: row['task_loss'] for row in found}
    together = scores.pop('ensemble')
    assert len(scores) == whos
    assert len(set(scores.values())) == 1
    assert together == pytest.approx(scores[0], abs=1e-5)
  assert 'soup' in capfd.readouterr().out
  # What is evaluated at the end is what is stored.
  assert evaluate.main([str(tmp_path)]) == 0
  shown = capfd.readouterr()
  assert f'{scores[0]:.4f}' in shown.out
  assert '--averaged takes their running average' in shown.err
  # And so are the running averages.
  file = tmp_path / 'averaged.json'
  command = [str(tmp_path), '--averaged', f'--json={file}']
  assert evaluate.main(command) == 0
  shown = capfd.readouterr()
  assert 'averaged weights' in shown.out
  assert '--averaged' not in shown.err
  numbers = json.loads(file.read_text())
  assert numbers['averaged']
  scored = {**numbers['members'], 'ensemble': numbers['ensemble']}
  for row in found[:3]:
    who = str(row['member'])
    assert scored.pop(who)['task_loss'] == row['average_task_loss']
    assert row['average_task_loss'] != row['task_loss']
  assert not scored
  opened = open_run(tmp_path, averaged=True).members
  for member in outcome.trainer.members:
    mean = optim.averaged(member.state.variables, member.state.opt_state)
    there = opened[member.index].variables
    jax.tree.map(np.testing.assert_array_equal, there, mean)


def test_a_process_of_one_member_has_no_soup(tmp_path, capfd):
  soup = ('--config.evaluate_soup=True', '--member=0')
  assert run_command(tmp_path, *DNN, *soup).status == 2
  assert 'which has no average' in error_sentence(capfd)

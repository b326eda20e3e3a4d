"""The whole command: rows, provenance, every config."""

import json
import types

import jax
import numpy as np
import pytest
from absl.testing import flagsaver
from commands import (
  CODISTILL,
  DNN,
  ROOT,
  contents,
  rows_of,
  run_command,
  strict_rows,
)

from codistill import optim
from experiments import flags, programs, record, run
from experiments.errors import UserError
from experiments.record import read_rows, read_run

ABOUT_PEERS = ('num_peers', 'peers', 'peer_ages', 'peer_age')


def test_rows_have_every_field_and_null_where_it_does_not_apply(pair):
  rows = read_rows(pair.workdir / 'rows.jsonl')
  assert strict_rows(pair.workdir) == rows
  for row in rows:
    assert list(row)[: len(record.FIELDS)] == list(record.FIELDS)
    assert row['examples_seen'] == 16 * row['step']
    if row['kind'] != 'exchange':
      assert row['task_loss'] > 0
      assert 0 <= row['accuracy'] <= 1
  train = [row for row in rows if row['kind'] == 'train']
  assert [(row['step'], row['member']) for row in train] == [
    (step, member) for step in range(1, 11) for member in (0, 1)
  ]
  for row in train:
    step, other = row['step'], 1 - row['member']
    if step <= 3:
      assert row['distill_loss'] is None
      expected = (0, [], [], None)
    else:
      assert row['distill_loss'] > 0
      # It is published at 0, 3, 6, and seen from the third step after that on.
      age = step - 1 - 3 * ((step - 3) // 3)
      expected = (1, [other], [age], age)
    assert tuple(row[name] for name in ABOUT_PEERS) == expected
    assert (row['examples_per_second'] is None) == (step == 1)
    assert row['gradient_norm'] > 0
  schedule = optim.make_schedule(
    'warmup_cosine', **pair.whole.config.schedule.warmup_cosine
  )
  rates = [row['learning_rate'] for row in train[::2]]
  np.testing.assert_allclose(rates, [schedule(i) for i in range(10)], rtol=1e-6)
  # What a checkpoint of that step has.
  for row, member in zip(train[-2:], pair.whole.trainer.members, strict=True):
    params = jax.tree.leaves(member.state.variables['params'])
    norm = np.sqrt(sum(np.square(leaf, dtype=float).sum() for leaf in params))
    np.testing.assert_allclose(row['parameter_norm'], norm, rtol=1e-5)
  exchanged = [
    (row['step'], row['event'], row['publication'])
    for row in rows
    if row['kind'] == 'exchange' and row['member'] == 0
  ]
  # Each copy is loaded once, when it first teaches. There is no row of step 0,
  # so step 1 tells of publications before it.
  assert exchanged == [
    *((1, 'publish', 0), (3, 'publish', 3), (4, 'load', 0), (6, 'load', 3)),
    *((6, 'publish', 6), (9, 'load', 6), (9, 'publish', 9)),
  ]
  sizes = {row['bytes'] for row in rows if row['kind'] == 'exchange'}
  variables = pair.whole.trainer.members[0].state.variables
  assert sizes == {sum(leaf.nbytes for leaf in jax.tree.leaves(variables))}
  scored = [row for row in rows if row['kind'] in ('eval', 'final')]
  assert [(row['kind'], row['step'], row['member']) for row in scored] == [
    (kind, step, member)
    for kind, step in (('eval', 4), ('eval', 8), ('final', 10))
    for member in (0, 1, 'ensemble')
  ]
  for row in scored:
    for field in ('distill_loss', *ABOUT_PEERS, 'examples_per_second'):
      assert row[field] is None
    assert (row['disagreement'] is None) == (row['member'] != 'ensemble')
  seconds = [row['seconds'] for row in rows]
  assert [0, *seconds] == sorted([0, *seconds])


def test_a_rate_that_a_fault_multiplies_is_the_one_in_the_rows(tmp_path):
  fault = {'kind': 'rate', 'member': 1, 'step': 2, 'rate_factor': 10.0}
  arguments = [f'--config.fault.{key}={value}' for key, value in fault.items()]
  steps = ('--config.num_steps=4', '--config.eval_interval_steps=4')
  assert run_command(tmp_path, *DNN, *steps, *arguments).status == 0
  rates = {0: [], 1: []}
  for row in rows_of(tmp_path):
    if row['kind'] == 'train':
      rates[row['member']].append(row['learning_rate'])
  assert rates[1][:2] == rates[0][:2]
  wanted = [10 * rate for rate in rates[0][2:]]
  np.testing.assert_allclose(rates[1][2:], wanted, rtol=1e-6)


def test_provenance_says_what_made_the_rows(pair):
  found = read_run(pair.workdir / 'run.json')
  config = pair.whole.config.to_dict()
  assert found['config'] == json.loads(json.dumps(config))
  assert found['config_hash'] == record.config_hash(found['config'])
  # They are what the command changed in the config, and no more.
  changed = {'num_steps': 10, 'checkpoint_interval_steps': 100}
  changed |= {'num_devices': 1, 'schedule.warmup_cosine.num_steps': 100}
  changed |= {'codistill.reload_interval_steps': 3, 'codistill.delay_steps': 2}
  assert found['overrides'] == changed
  # `dirty` may have changed since, if somebody edits while tests run.
  assert found['commit'] == record.code_version(ROOT)['commit']
  assert found['packages']['jax'] == jax.__version__
  for package in ('python', 'flax', 'optax', 'orbax-checkpoint', 'grain'):
    assert package in found['packages']
  device = {'platform': 'cpu', 'kind': jax.devices()[0].device_kind}
  assert found['device'] == {**device, 'count': 1, 'processes': 1}
  assert f'--config={CODISTILL}' in found['argv']
  assert (found['seed'], found['status']) == (0, 'done')


def test_a_finished_run_shows_its_table_and_trains_nothing(pair, capfd):
  before = contents(pair.workdir)
  capfd.readouterr()
  # Nothing is built.
  assert run_command(pair.workdir, *pair.arguments, builder=None).status == 0
  shown = capfd.readouterr().out
  assert 'is finished' in shown
  for row in pair.rows:
    if row['kind'] == 'final':
      assert f'{100 * row["accuracy"]:.2f} %' in shown
      assert f'{row["task_loss"]:.4f}' in shown
  assert 'ensemble' in shown
  assert contents(pair.workdir) == before


@pytest.mark.parametrize(
  ('config', 'members', 'taught'),
  [('sync', 1, False), ('ensemble', 2, False), ('label_smoothing', 1, True)],
)
def test_configs_run_to_their_end(
  config, members, taught, tmp_path, monkeypatch, capfd
):
  """It uses a relative workdir; codistillation runs in all other tests."""
  monkeypatch.chdir(tmp_path)
  short = (*DNN, '--config.num_steps=4')
  options = {'config': f'imagenet_{config}:smoke'}
  assert run_command('runs/here', *short, **options).status == 0
  assert 'No member will have a teacher' not in capfd.readouterr().out
  workdir = tmp_path / 'runs/here'
  assert read_run(workdir / 'run.json')['status'] == 'done'
  assert (workdir / 'checkpoints/4').is_dir()
  rows = rows_of(workdir)
  train = [row for row in rows if row['kind'] == 'train']
  assert len(train) == 4 * members
  # It is not evaluated twice, although it is time for that, too.
  assert [(row['kind'], row['member']) for row in rows[len(train) :]] == [
    ('final', who) for who in [*range(members)] + ['ensemble'] * (members > 1)
  ]
  for row in train:
    assert row['num_peers'] == 0
    assert (row['distill_loss'] is not None) == taught
  if members == 1:
    return
  # A member alone is the same as that member among all.
  apart = tmp_path / 'apart'
  status = run_command(apart, *short, '--member=1', **options).status
  found = read_run(apart / 'run-1.json')
  assert (status, found['member'], found['status']) == (0, 1, 'done')
  assert rows_of(apart, 'rows-1.jsonl') == [
    row for row in rows if row['member'] == 1
  ]
  assert not (apart / 'run.json').exists()
  assert not (apart / 'rows.jsonl').exists()


def test_a_run_without_teachers_says_so_before_it_trains(tmp_path, capfd):
  def refuse(*_, **__):
    raise UserError('it was built')

  late = '--config.codistill.burn_in_steps=99'
  assert run_command(tmp_path / 'a', late, builder=refuse).status == 2
  shown = capfd.readouterr()
  assert 'No member will have a teacher: codistill.burn_in_st' in shown.out
  assert 'it was built' in shown.err


def test_what_is_not_given_follows():
  with flagsaver.flagsaver():
    argv = run.parse_flags(['run', f'--config={CODISTILL}', '--member=1'])
    request = flags.make_request(argv[1])
    assert request.workdir == ROOT / 'runs/imagenet_codistill-smoke-members'
    assert (request.member, request.world) == (1, None)
    # It shares no memory with its peers.
    assert request.config.codistill.exchange == 'checkpoints'
    run.parse_flags([*argv[:1], f'--config={CODISTILL}', '--process-id=0'])
    with pytest.raises(UserError, match='address and --num-processes is miss'):
      flags.make_request(argv[1])


def test_all_programs_are_kept_unless_variables_say_otherwise(monkeypatch):
  variable = 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'
  for folder, seconds in ((None, None), ('here', None), (None, '1')):
    if seconds is None:
      monkeypatch.delenv(variable, raising=False)
    else:
      monkeypatch.setenv(variable, seconds)
    changed = {}
    config = types.SimpleNamespace(
      jax_compilation_cache_dir=folder, update=changed.__setitem__
    )
    standing_in = types.SimpleNamespace(config=config)
    monkeypatch.setattr(programs, 'jax', standing_in)
    programs.keep_programs()
    wanted = {} if folder else {programs._FOLDER: str(ROOT / '.cache/jax')}
    if seconds is None:
      wanted[variable.lower()] = 0
    assert changed == wanted

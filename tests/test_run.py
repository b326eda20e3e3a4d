"""The whole command: rows, provenance, every config."""

import json
import struct
import sys
import time

import jax
import numpy as np
import pytest
from commands import (
  CODISTILL,
  ROOT,
  assert_bit_for_bit,
  contents,
  rows_of,
  run_command,
  stop_after,
  strict_rows,
)
from tensorboardX.proto.event_pb2 import Event

from experiments import record
from experiments.record import read_rows, read_run


def test_rows_have_every_field_and_null_where_it_does_not_apply(pair):
  rows = read_rows(pair.workdir / 'rows.jsonl')
  assert strict_rows(pair.workdir) == rows
  for row in rows:
    assert list(row)[: len(record.FIELDS)] == list(record.FIELDS)
    assert row['seconds'] >= 0
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
      # Published at 0, 3, 6; seen from the third step after that on.
      age = step - 1 - 3 * ((step - 3) // 3)
      expected = (1, [other], [age], age)
    names = ('num_peers', 'peers', 'peer_ages', 'peer_age')
    assert tuple(row[name] for name in names) == expected
    assert (row['examples_per_second'] is None) == (step == 1)
  exchanged = [
    (row['step'], row['event'], row['publication'])
    for row in rows
    if row['kind'] == 'exchange' and row['member'] == 0
  ]
  # Each copy is taken up once, when it first teaches; a row of step 0 does not
  # exist, so that step 1 tells of what was published before.
  assert exchanged == [
    (1, 'publish', 0),
    (3, 'publish', 3),
    (4, 'load', 0),
    (6, 'load', 3),
    (6, 'publish', 6),
    (9, 'load', 6),
    (9, 'publish', 9),
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
    for field in ('distill_loss', 'num_peers', 'peers', 'peer_ages'):
      assert row[field] is None
    assert row['peer_age'] is None
    assert row['examples_per_second'] is None
    assert (row['disagreement'] is None) == (row['member'] != 'ensemble')
  seconds = [row['seconds'] for row in rows]
  assert seconds == sorted(seconds)


def test_provenance_says_what_made_the_rows(pair):
  found = read_run(pair.workdir / 'run.json')
  config = pair.whole.config.to_dict()
  assert found['config'] == json.loads(json.dumps(config))
  assert found['config_hash'] == record.config_hash(found['config'])
  assert found['config']['codistill']['delay_steps'] == 2
  # What the command gave otherwise than the config has it, and no more.
  assert found['overrides'] == {
    'num_steps': 10,
    'num_devices': 1,
    'checkpoint_interval_steps': 100,
    'codistill.reload_interval_steps': 3,
    'codistill.delay_steps': 2,
    'schedule.warmup_cosine.num_steps': 100,
  }
  # `dirty` may have changed since, if somebody edits while tests run.
  assert found['commit'] == record.code_version(ROOT)['commit']
  assert found['packages']['jax'] == jax.__version__
  assert {'python', 'flax', 'optax', 'orbax-checkpoint', 'grain'} <= (
    found['packages'].keys()
  )
  assert found['device'] == {
    'platform': 'cpu',
    'kind': jax.devices()[0].device_kind,
    'count': 1,
    'processes': 1,
  }
  assert f'--config={CODISTILL}' in found['argv']
  assert found['seed'] == 0
  assert found['status'] == 'done'


def test_a_workdir_can_be_relative(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert run_command('runs/here', config='imagenet_sync:smoke').status == 0
  found = read_run(tmp_path / 'runs/here/run.json')
  assert found['status'] == 'done'
  assert list((tmp_path / 'runs/here/checkpoints').glob('8'))


def test_a_finished_run_run_again_shows_its_table_and_trains_nothing(
  pair, capfd
):
  before = contents(pair.workdir)

  def refuse(config, member):
    raise AssertionError('it builds what it does not need')

  capfd.readouterr()
  outcome = run_command(pair.workdir, *pair.arguments, builder=refuse)
  shown = capfd.readouterr().out
  assert outcome.status == 0
  assert 'is finished' in shown
  for row in pair.rows:
    if row['kind'] == 'final':
      assert f'{100 * row["accuracy"]:.2f} %' in shown
      assert f'{row["task_loss"]:.4f}' in shown
  assert 'ensemble' in shown
  assert contents(pair.workdir) == before


def test_the_same_config_twice_gives_identical_rows(pair, tmp_path):
  again = run_command(tmp_path, *pair.arguments)
  assert again.status == 0
  assert rows_of(tmp_path) == pair.rows
  assert_bit_for_bit(again, pair.whole)


def test_another_seed_gives_other_rows(pair, tmp_path):
  run_command(tmp_path, *pair.arguments, '--config.seed=1')
  for one, other in zip(rows_of(tmp_path), pair.rows, strict=True):
    assert one['task_loss'] != other['task_loss']


@pytest.mark.parametrize(
  ('config', 'members', 'num_peers'),
  [
    ('imagenet_sync:smoke', 1, [0] * 8),
    ('imagenet_codistill:smoke', 2, [0] * 3 + [1] * 5),
    ('imagenet_ensemble:smoke', 2, [0] * 8),
    ('imagenet_label_smoothing:smoke', 1, [0] * 8),
  ],
)
def test_every_config_runs_to_its_end(tmp_path, config, members, num_peers):
  assert run_command(tmp_path, config=config).status == 0
  assert read_run(tmp_path / 'run.json')['status'] == 'done'
  rows = rows_of(tmp_path)
  whos = [*range(members)] + ['ensemble'] * (members > 1)
  assert [r['member'] for r in rows if r['kind'] == 'final'] == whos
  for member in range(members):
    mine = [r for r in rows if (r['member'], r['kind']) == (member, 'train')]
    assert [row['num_peers'] for row in mine] == num_peers
    taught = [row['distill_loss'] is not None for row in mine]
    smoothed = 'smoothing' in config
    assert taught == [smoothed or peers > 0 for peers in num_peers]


def test_one_member_alone_is_that_member_of_all(tmp_path):
  together, apart = tmp_path / 'together', tmp_path / 'apart'
  ensemble = 'imagenet_ensemble:smoke'
  assert run_command(together, config=ensemble).status == 0
  for member in (0, 1):
    status = run_command(apart, f'--member={member}', config=ensemble).status
    assert status == 0
    found = read_run(apart / f'run-{member}.json')
    assert (found['member'], found['status']) == (member, 'done')
    assert rows_of(apart, f'rows-{member}.jsonl') == [
      row for row in rows_of(together) if row['member'] == member
    ]
  assert not (apart / 'run.json').exists()
  assert not (apart / 'rows.jsonl').exists()


def events_of(path):
  """The events of a file, by the framing of TFRecord."""
  data, events = path.read_bytes(), []
  while data:
    (length,) = struct.unpack('<Q', data[:8])
    events.append(Event.FromString(data[12 : 12 + length]))
    data = data[16 + length :]
  return events


def test_tensorboard_shows_the_rows_without_tensorflow(pair, tmp_path):
  # Stopped and resumed, so that its rows come from two processes.
  with stop_after(5):
    run_command(tmp_path, *pair.arguments, '--tensorboard')
  time.sleep(1.1)  # The names of event files have seconds.
  outcome = run_command(tmp_path, *pair.arguments, '--tensorboard')
  assert outcome.status == 0
  for who in (0, 1, 'ensemble'):
    name = who if who == 'ensemble' else f'member-{who}'
    events = [
      event
      for path in sorted((tmp_path / 'tensorboard' / name).iterdir())
      for event in events_of(path)
    ]
    found = [
      (value.tag, event.step, value.simple_value)
      for event in events
      for value in event.summary.value
    ]
    # TensorBoard hides what an earlier process wrote from there on.
    starts = [event.step for event in events if event.HasField('session_log')]
    assert starts == [1, 6]
    losses = [f for f in found if f[0].endswith('/task_loss')]
    expected = [
      (f'{row["kind"]}/task_loss', row['step'], np.float32(row['task_loss']))
      for row in pair.rows
      if row['member'] == who
    ]
    assert losses == expected
    tags = {tag for tag, _, _ in found}
    assert ('train/distill_loss' in tags) == (who != 'ensemble')
    assert ('eval/disagreement' in tags) == (who == 'ensemble')
  assert 'tensorflow' not in sys.modules

"""A run's files: rows and provenance are read back, after any failure."""

import contextlib
import errno
import json
import math
import os
import shutil
import subprocess
from unittest import mock

import numpy as np
import pytest

from experiments import record
from experiments.record import FIELDS, Record, read_rows, read_run

ROWS = [
  {'step': 1, 'member': 0, 'kind': 'train', 'task_loss': 0.1, 'peers': [1, 2]},
  {'step': 1, 'member': 1, 'kind': 'train', 'task_loss': 1e-30, 'extra': 'φ'},
  {'step': 2, 'member': 'ensemble', 'kind': 'eval', 'accuracy': 1 / 3},
  {'step': 2, 'member': 'ensemble', 'kind': 'final', 'accuracy': 0.5},
]


def complete(row):
  return {**dict.fromkeys(FIELDS), **row}


@pytest.fixture
def written(tmp_path):
  rows = Record(tmp_path)
  for number, row in enumerate(ROWS, start=1):
    rows.write_row(row)
    # Rows are there before the file is closed.
    assert len(read_rows(rows.rows_path)) == number
  rows.close()
  yield rows
  rows.close()


def test_rows_come_back_with_every_field_in_order(written):
  found = read_rows(written.rows_path)
  assert found == [complete(row) for row in ROWS]
  assert all(list(row)[: len(FIELDS)] == list(FIELDS) for row in found)
  # A member alone has files of its own.
  alone = Record(written.rows_path.parent, '-1')
  assert alone.run_path.name == 'run-1.json'
  assert alone.rows_path.name == 'rows-1.jsonl'


def test_provenance_with_any_byte_damaged_is_refused_or_the_same(tmp_path):
  record = Record(tmp_path)
  run = {'member': None, 'diverged': {10: {'step': 4}, 9: {}}, 'loss': [0.5]}
  record.write_run(run)
  expected, whole = read_run(record.run_path), record.run_path.read_bytes()
  assert expected == json.loads(json.dumps(run))
  refused = 0
  for position in range(len(whole)):
    flipped = bytearray(whole)
    flipped[position] ^= 1 << position % 8
    for damaged in (whole[:position], whole[position + 1 :], flipped):
      record.run_path.write_bytes(damaged)
      try:
        # It was a space, or the name of the checksum, which nothing reads.
        assert read_run(record.run_path).items() >= expected.items()
      except ValueError:
        refused += 1
  assert refused > 0.8 * 3 * len(whole)
  # A file edited by hand, or written by older code, has no checksum.
  config = {'num_steps': 9, 'codistill': {'members': 2}}
  run = {'experiment': 'a', 'variant': '', 'status': 'done', 'config': config}
  run |= {'member': None, 'seed': 0, 'overrides': {}, 'config_hash': 'any'}
  run |= {'commit': None, 'dirty': None, 'started': 'now'}
  run |= {'diverged': {'1': {'step': 4}}}
  record.run_path.write_text(json.dumps(run))
  assert read_run(record.run_path) == run
  # It must be what a run writes, or one that reads it would stumble.
  for changes in (
    {'config': {**config, 'num_steps': '9'}},
    {'config': {**config, 'codistill': {'members': math.inf}}},
    {'diverged': {'1': 4}},
    {'config_file': {'path': 'a.py'}},
    {'resumed': [{'changed': []}]},
    {'resumed': [{}]},
  ):
    record.run_path.write_text(json.dumps({**run, **changes}))
    with pytest.raises(ValueError, match=f'damaged: {min(changes)}'):
      read_run(record.run_path)
  changes = {'diverged': {'a\n': 4}}
  record.run_path.write_text(json.dumps({**run, **changes}))
  with pytest.raises(ValueError, match=r"damaged: diverged\.'a\\n': 4 is not"):
    read_run(record.run_path)
  for text in ('{' * 5_000, '[' * 5_000, '"'):
    record.run_path.write_text(text)
    with pytest.raises(ValueError, match='is not a JSON object'):
      read_run(record.run_path)


def test_what_is_not_finite_becomes_null(tmp_path):
  rows = Record(tmp_path)
  for bad in (np.nan, np.inf, -np.inf):
    rows.write_row({'step': 1, 'member': 0, 'kind': 'train', 'task_loss': bad})
  rows.close()
  for line in rows.rows_path.read_text().splitlines():
    # Other languages read no NaN and no Infinity.
    assert json.loads(line, parse_constant=pytest.fail)['task_loss'] is None


def test_only_kinds_that_readers_know(tmp_path):
  rows = Record(tmp_path)
  with pytest.raises(ValueError, match='tarin'):
    rows.write_row({'step': 1, 'member': 0, 'kind': 'tarin'})
  # A missing file is made.
  rows.keep_rows(lambda row: True)
  assert read_rows(rows.rows_path) == []


def test_a_cut_last_line_is_left_out_with_a_warning(written):
  whole = written.rows_path.read_bytes()
  last = whole.rstrip(b'\n').rfind(b'\n') + 1
  # The kill may come at any byte.
  for end in (last + 1, (last + len(whole)) // 2, len(whole) - 2):
    written.rows_path.write_bytes(whole[:end])
    with pytest.warns(UserWarning, match='cut last line'):
      found = read_rows(written.rows_path)
    assert found == [complete(row) for row in ROWS[:-1]]
  # Damage elsewhere is an error that says where.
  lines = whole.decode().splitlines(keepends=True)
  for damaged in (lines[1][:9], '[' * 5_000):
    lines[1] = damaged + '\n'
    written.rows_path.write_text(''.join(lines))
    with pytest.raises(ValueError, match='line 2'):
      read_rows(written.rows_path)


def test_keep_rows_drops_and_mends_and_writing_goes_on(written):
  whole = written.rows_path.read_bytes()
  written.rows_path.write_bytes(whole + whole[:20])
  written.keep_rows(lambda row: row['step'] < 2)
  written.write_row(ROWS[2])
  written.close()
  assert read_rows(written.rows_path) == [complete(row) for row in ROWS[:3]]


@pytest.mark.parametrize('call', ['open', 'fsync', 'replace'])
def test_a_kill_while_replacing_keeps_the_old_file(tmp_path, monkeypatch, call):
  rows = Record(tmp_path)
  run = {'config': {'a': [1, 2], 'ψ': None}, 'status': 'running'}
  rows.write_run(run)
  assert read_run(rows.run_path) == run

  die = mock.Mock(side_effect=KeyboardInterrupt)
  with monkeypatch.context() as patch:
    patch.setattr(record if call == 'open' else os, call, die, raising=False)
    with pytest.raises(KeyboardInterrupt):
      rows.write_run({'status': 'done'})
  assert read_run(rows.run_path) == run
  # Leftovers of the killed process do no harm.
  rows.write_run({'status': 'done'})
  assert read_run(rows.run_path) == {'status': 'done'}
  assert [path.name for path in tmp_path.iterdir()] == ['run.json']


def test_a_replaced_file_is_on_the_disk_before_it_has_its_name(tmp_path):
  calls = mock.Mock()
  with mock.patch.multiple(os, fsync=calls.fsync, replace=calls.replace):
    Record(tmp_path).write_run({})
  assert [name for name, *_ in calls.mock_calls] == ['fsync', 'replace']


class Disk:
  """A raw file that takes few bytes at a time, and then says ENOSPC."""

  def __init__(self, raw, room, sip):
    self._raw, self._room, self._sip = raw, room, sip
    self.close = raw.close

  def write(self, data):
    if not self._room:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    taken = bytes(data[: min(self._room, self._sip)])
    self._room -= len(taken)
    return self._raw.write(taken)


def on_a_disk(room=10_000, sip=10_000):
  """Opens files on such a disk."""

  def wrapped(*arguments, **keywords):
    return Disk(open(*arguments, **keywords), room, sip)

  return mock.patch.object(record, 'open', wrapped, create=True)


@pytest.mark.parametrize('room', [0, 1, 30])
def test_a_full_disk_is_an_error_and_rows_stay(written, room):
  with on_a_disk(room), pytest.raises(OSError, match='No space') as caught:
    written.write_row(ROWS[0])
  written.close()
  assert caught.value.errno == errno.ENOSPC
  cut = pytest.warns(UserWarning, match='cut last line')
  with cut if room else contextlib.nullcontext():
    found = read_rows(written.rows_path)
  assert found == [complete(row) for row in ROWS]
  written.keep_rows(lambda row: True)
  assert read_rows(written.rows_path) == found


def test_a_write_that_takes_only_a_part_is_gone_on_with(tmp_path):
  rows = Record(tmp_path)
  with on_a_disk(sip=7):
    for row in ROWS:
      rows.write_row(row)
  rows.close()
  assert read_rows(rows.rows_path) == [complete(row) for row in ROWS]


def test_the_hash_of_a_config_sees_values_and_not_their_order():
  b = {'c': (1, 2), 'd': None}
  same = {'b': {'d': None, 'c': [1, 2]}, 'a': 1}
  assert record.config_hash({'a': 1, 'b': b}) == record.config_hash(same)
  others = (b | {'c': (2, 1)}, {'c': (1, 2)}, b | {'d': 0})
  configs = [{'a': a, 'b': b} for a in (1, 2, '1')]
  configs += [{'a': 1, 'b': other} for other in others]
  hashes = {record.config_hash(config) for config in configs}
  assert {len(found) for found in hashes} == {64}
  assert len(hashes) == 6


@pytest.fixture
def checkout(tmp_path, monkeypatch):
  """A git checkout with one commit, without this machine's git config."""
  for name in ('GIT_CONFIG_GLOBAL', 'GIT_CONFIG_SYSTEM'):
    monkeypatch.setenv(name, os.devnull)
  # A temporary folder may lie inside another checkout.
  monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path))
  for name in ('GIT_DIR', 'GIT_WORK_TREE', 'GIT_INDEX_FILE'):
    monkeypatch.delenv(name, raising=False)
  folder = tmp_path / 'checkout'
  folder.mkdir()
  (folder / 'code.py').write_text('1')
  for words in ('init', 'add .', 'commit -m first'):
    command = f'git -c user.name=a -c user.email=a@b {words}'.split()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
  return folder


def test_code_version_tells_clean_dirty_and_nothing(checkout, monkeypatch):
  clean = record.code_version(checkout)
  assert len(clean['commit']) == 40
  assert clean['dirty'] is False
  (checkout / 'more').mkdir()
  (checkout / 'more/new.py').write_text('1')
  assert record.code_version(checkout) == {**clean, 'dirty': True}
  assert record.code_version(checkout, besides=('more',)) == clean
  (checkout / 'code.py').write_text('2')
  assert record.code_version(checkout, besides=('more',))['dirty'] is True
  assert record.why_unknown(checkout) is None
  nothing = {'commit': None, 'dirty': None}
  assert record.code_version(checkout.parent) == nothing
  assert 'not a git repository' in record.why_unknown(checkout.parent)
  with monkeypatch.context() as patch:
    patch.setenv('PATH', str(checkout))  # Without git.
    assert record.code_version(checkout) == nothing
    assert 'install it' in record.why_unknown(checkout)
  # A container may run as another user.
  monkeypatch.setenv('GIT_TEST_ASSUME_DIFFERENT_OWNER', '1')
  assert record.code_version(checkout) == nothing
  mend = f'git config --global --add safe.directory {checkout}'
  assert record.why_unknown(checkout).endswith(mend)


def test_a_hash_of_the_code_is_of_what_it_says_and_where(tmp_path):
  seen = set()
  for number, files in enumerate(
    ({'a': '1', 'b': '2'}, {'a': '12', 'b': ''}, {'a': '1', 'c': '2'})
  ):
    package = tmp_path / str(number) / 'data'
    package.mkdir(parents=True)
    for name, text in files.items():
      (package / f'{name}.py').write_text(text)
    (package / 'notes.txt').write_text(str(number))
    seen.add(record.code_hash(package.parent))
  assert len(seen) == 3
  shutil.copytree(tmp_path / '0', tmp_path / 'copy')
  (tmp_path / 'copy/data/notes.txt').unlink()
  # A run has its own config.
  (tmp_path / 'copy/experiments/configs').mkdir(parents=True)
  (tmp_path / 'copy/experiments/configs/new.py').write_text('new')
  assert record.code_hash(tmp_path / 'copy') in seen


def test_package_versions_names_python_and_what_is_asked():
  found = record.package_versions(['pytest', 'no-such-package'])
  assert found['pytest'] == pytest.__version__
  assert found['no-such-package'] is None
  assert found['python'].count('.') == 2

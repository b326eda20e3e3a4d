"""Click logs: line by line, and from text to a folder, through failures."""

import errno
import gzip
import json
import random
import tracemalloc
from unittest import mock

import numpy as np
import pytest
from preparations import files_of, inline

from data.clicks import log as log_lib
from data.clicks import storage, synthetic
from data.clicks.dataset import ClicksError, open_clicks
from data.clicks.log import MISSING
from data.preparing import resumable, workers
from scripts import prepare_criteo


@pytest.fixture(autouse=True)
def small_and_in_this_process(monkeypatch):
  monkeypatch.setattr(workers, 'processes', inline)
  monkeypatch.setattr(log_lib, 'CHUNK_BYTES', 3_000)
  monkeypatch.setattr(log_lib, '_BLOCK_BYTES', 700)
  monkeypatch.setattr(storage, 'BLOCK_ROWS', 64)
  monkeypatch.setattr(storage, '_COUNTED_ROWS', 50)
  monkeypatch.setattr(synthetic, 'CHUNK_ROWS', 128)


def line(label='1', integers=(), categories=(), fill='68fd1e64'):
  """A line that begins like this, and goes on with 7s and one category."""
  integers = [*map(str, integers)] + ['7'] * (13 - len(integers))
  categories = [*categories] + [fill] * (26 - len(categories))
  return '\t'.join([label, *integers, *categories]).encode()


GOOD = line()


def parse(*lines):
  return log_lib.parse(b'\n'.join(lines) + b'\n', first_line=11)


# Lines.


def test_a_line_is_read_as_it_is_written():
  rows, bad = parse(
    line('0', [0, 5, -3, '', '007', 2**31 - 1], ['', '00000000', 'ffffffff']),
    line('1', ['-0'], ['DEADbeef', '1f']),
    b'1' + b'\t' * 39,
  )
  assert (rows.labels.tolist(), bad) == ([0, 1, 1], [])
  np.testing.assert_array_equal(
    rows.integers[:7, :2],
    np.array([[0, 5, -3, MISSING, 7, 2**31 - 1, 7], [0, 7, 7, 7, 7, 7, 7]]).T,
  )
  np.testing.assert_array_equal(
    rows.categories[:3, :2],
    [[0, 0xDEADBEEF], [0, 0x1F], [2**32 - 1, 0x68FD1E64]],
  )
  assert rows.there[:3, :2].tolist() == [[False, True], [True] * 2, [True] * 2]
  assert rows.there[3:, :2].all()
  # A line may have only a label.
  assert (rows.integers[:, 2] == MISSING).all()
  assert not rows.there[:, 2].any()


BAD = {
  GOOD[2:]: ('fields', 'it has 39 fields instead of 40, as in a log without'),
  GOOD + b'\t': ('fields', 'it has 41 fields instead of 40'),
  b'': ('fields', 'it has 1 fields instead of 40'),
  line(''): ('label', "its label is '', neither 0 nor 1"),
  line('2'): ('label', "its label is '2'"),
  line('01'): ('label', "its label is '01'"),
  line('1', ['1.5']): ('integer', "integer 1 is '1.5'"),
  line('1', [1, ' 5']): ('integer', "integer 2 is ' 5'"),
  line('1', ['0x1F']): ('integer', "integer 1 is '0x1F'"),
  line('1', ['+5']): ('integer', "integer 1 is '+5'"),
  line('1', ['-']): ('integer', "integer 1 is '-'"),
  line('1', ['ab']): ('integer', "integer 1 is 'ab'"),
  line('1', [2**31]): ('integer', "is '2147483648', above 31 bits"),
  line('1', [-(2**31)]): ('integer', "is '-2147483648', above 31 bits"),
  line('1', ['9' * 30]): ('integer', "is '99999999999999999999…', above"),
  line('1', [], ['xyz']): ('category', "category 1 is 'xyz', not a hexadec"),
  line('1', [], ['', '-1']): ('category', "category 2 is '-1', not a hexadec"),
  line('1', [], ['123456789']): ('category', "'123456789', not a hexadecimal"),
  line('1', [], ['1f' * 8]): ('category', "'1f1f1f1f1f1f1f1f', not a hexa"),
  line('1', [], ['"a"']): ('category', 'category 1 is \'"a"\''),
  GOOD.replace(b'7', b'\r', 1): ('integer', "integer 1 is '\\r'"),
  GOOD.replace(b'7', b'\0', 1): ('integer', "integer 1 is '\\x00'"),
  GOOD.replace(b'7', b'\xff', 1): ('integer', "integer 1 is '\\\\xff'"),
}


def test_a_malformed_line_is_left_out_and_named():
  for bad, problem in BAD.items():
    rows, [(number, kind, reason)] = parse(line('0'), bad, GOOD)
    assert (number, kind) == (12, problem[0]), bad
    assert problem[1] in reason
    assert rows.labels.tolist() == [0, 1], bad
    assert (rows.categories == 0x68FD1E64).all()
  rows, found = parse(line('0'), GOOD + b'\r', GOOD)
  assert (rows.labels.tolist(), found) == ([0, 1, 1], [])


def test_arrow_and_the_grammar_agree_on_any_line():
  rng = random.Random(0)
  alphabet = '0123456789abcdefABCDEF-+ \t\t\t\r.xX"\'\\\0é'
  verdicts = []
  for _ in range(300):
    fields = line('1', ['', -12], ['', 'a']).decode().split('\t')
    place = rng.randrange(40)
    fields[place] = ''.join(rng.choices(alphabet, k=rng.randrange(4)))
    mutated = '\t'.join(fields).encode()
    good = log_lib._problem(mutated) is None
    assert good == (log_lib._parse_quickly(mutated) is not None), mutated
    verdicts.append(good)
  assert 40 < sum(verdicts) < 260


# Hashes.


def test_hashes_are_the_same_on_every_machine_and_keep_apart():
  values = np.array([[0], [1], [0x68FD1E64]] + [[5]] * 23, np.uint32)
  there = np.ones_like(values, bool)
  hashes = storage.hash_categories(values, there)
  assert hashes[:4, 0].tolist() == [
    *(2_315_298_346, 703_149_096, 703_100_900, 117_800_441)
  ]
  # Each field has its own hash.
  values = np.tile(np.arange(50_000, dtype=np.uint32), (26, 1))
  there = np.ones_like(values, bool)
  there[:, 0] = False
  hashes = storage.hash_categories(values, there)
  assert (hashes[:, 0] == storage.MISSING_CATEGORY).all()
  assert hashes[:, 1:].min() >= storage.FIRST_HASH
  for field in hashes:
    assert len(np.unique(field)) == 50_000
    # They are even: in 16 parts, as by chance.
    counts = np.bincount(field[1:] >> 28, minlength=16)
    assert abs(counts - 50_000 / 16).max() < 5 * np.sqrt(50_000 / 16)
  assert len({field[1] for field in hashes}) == 26


# Files.


def prepare(output, *arguments):
  return prepare_criteo.main([f'--output={output}', *map(str, arguments)])


def random_lines(count, seed=0):
  rng = random.Random(seed)
  return [
    line(
      rng.choice('01'),
      [rng.choice(['', rng.randrange(-3, 100)]) for _ in range(13)],
      [rng.choice(['', f'{rng.randrange(40):x}']) for _ in range(26)],
    )
    for _ in range(count)
  ]


LINES = random_lines(210)


@pytest.fixture
def log(tmp_path):
  path = tmp_path / 'train.txt'
  path.write_bytes(b'\n'.join(LINES) + b'\n')
  return path


def test_the_last_seventh_in_time_is_held_out_and_all_is_there(
  log, tmp_path, capsys
):
  output = tmp_path / 'out'
  assert prepare(output, '--input', log, '--min-count=4') is None
  before = files_of(output)
  assert sorted(before) == ['manifest.json', 'rows.bin']
  rows, manifest = open_clicks(output)
  parsed, _ = log_lib.parse(b'\n'.join(LINES), 1)
  words = storage.pack(parsed).T
  assert rows.shape == (210, 40)
  np.testing.assert_array_equal(rows[:, :14], words[:, :14])
  splits = manifest['splits']
  assert (splits['train']['rows'], splits['test']['rows']) == (180, 30)
  assert splits['train']['clicks'] == words[:180, 0].sum()
  assert splits['test']['clicks'] == words[180:, 0].sum()
  # Categories are counted in the training part, field by field.
  hashes, found = (w[:, 14:].view(np.uint32) for w in (words, rows))
  for field, facts in enumerate(manifest['fields']):
    values, counts = np.unique(hashes[:180, field], return_counts=True)
    kept = values[(counts >= 4) & (values >= 2)]
    rare = ~np.isin(hashes[:, field], kept) & (hashes[:, field] >= 2)
    np.testing.assert_array_equal(
      found[:, field], np.where(rare, 1, hashes[:, field])
    )
    assert facts == {
      'categories': (values >= 2).sum(),
      'kept': len(kept),
      'missing_rows': (hashes[:180, field] == 0).sum(),
      'rare_rows': rare[:180].sum(),
    }
  assert any(0 < facts['rare_rows'] < 100 for facts in manifest['fields'])
  printed = capsys.readouterr().out
  for phase in ('reading: ', 'counting: ', 'writing: ', 'data.path='):
    assert phase in printed
  # A finished folder is left alone.
  assert prepare(output, '--input', log, '--min-count=4') is None
  assert 'reading' not in capsys.readouterr().out
  assert prepare(output, '--input', log, '--min-count=3') == (
    f'{output} was made from other input or with other settings (min_count '
    '4): choose another --output, or --overwrite it.'
  )
  assert files_of(output) == before
  # Nor is a damaged one called prepared.
  (output / 'rows.bin').write_bytes(b'short')
  message = prepare(output, '--input', log, '--min-count=4')
  assert message.endswith('again, or prepare it again with --overwrite.')
  changed = prepare(output, '--input', log, '--min-count=3', '--overwrite')
  assert changed is None
  assert len(files_of(output)['rows.bin']) == 210 * storage.ROW_BYTES


def test_how_the_log_comes_makes_no_difference(log, tmp_path, monkeypatch):
  prepare(tmp_path / 'one', '--input', log)
  one, first = open_clicks(tmp_path / 'one')
  content = log.read_bytes()
  lines = content.splitlines(keepends=True)
  for kind, *parts in (
    ('gzip of windows', gzip.compress(content.replace(b'\n', b'\r\n'))),
    ('files', b''.join(lines[:100]).rstrip(b'\n'), b''.join(lines[100:])),
    ('chunks', content),
  ):
    # The order is not that of their names.
    paths = [tmp_path / f'{kind}-{9 - number}' for number in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
      path.write_bytes(part)
    if kind == 'chunks':
      monkeypatch.setattr(log_lib, 'CHUNK_BYTES', 1_500)
    assert prepare(tmp_path / kind, '--input', *paths) is None
    two, second = open_clicks(tmp_path / kind)
    np.testing.assert_array_equal(one, two)
    assert first['fingerprint'] == second['fingerprint']


def test_a_longer_log_takes_no_more_memory(tmp_path, monkeypatch):
  monkeypatch.setattr(log_lib, 'CHUNK_BYTES', 50_000)
  monkeypatch.setattr(storage, 'BLOCK_ROWS', 500)
  monkeypatch.setattr(storage, '_COUNTED_ROWS', 500)

  def peak(times):
    log, output = tmp_path / 'train.txt', tmp_path / 'out'
    log.write_bytes((b'\n'.join(LINES) + b'\n') * times)
    tracemalloc.start()
    try:
      assert prepare(output, '--input', log, '--overwrite') is None
      return tracemalloc.get_traced_memory()[1]
    finally:
      tracemalloc.stop()

  longer, shorter = peak(16), peak(4)
  if longer >= 1.2 * shorter:
    # Sometimes the interpreter enlarges a table of its own.
    longer = peak(16)
  assert longer < 1.2 * shorter


def test_malformed_lines_are_counted_and_too_many_refused(
  log, tmp_path, monkeypatch
):
  lines = list(LINES)
  for place in (3, 50, 150):
    lines[place] = b'no'
  log.write_bytes(b'\n'.join(lines))
  output = tmp_path / 'out'
  assert prepare(output, '--input', log, '--max-bad-lines=2') == (
    'More than 2 lines are malformed, at least 3 (fields: 3). The first is '
    'line 4 of train.txt: it has 1 fields instead of 40. If this is a log of '
    '40 fields separated by tabs, allow for more with --max-bad-lines, and the '
    'preparation continues from here.'
  )
  assert not output.exists()
  state = resumable.partial_of(output) / 'state.json'
  assert json.loads(state.read_text())['chunk'] > 1
  # Those that an earlier run left out count before any is read.
  with monkeypatch.context() as patch:
    patch.setattr(storage, 'read_chunk', lambda *_: 1 / 0)
    message = prepare(output, '--input', log, '--max-bad-lines=1')
  assert message.startswith('More than 1 lines are malformed, at least 2 (fie')
  assert prepare(output, '--input', log, '--max-bad-lines=3') is None
  rows, manifest = open_clicks(output)
  assert len(rows) == 207
  assert manifest['bad_lines_by_kind'] == {'fields': 3}
  numbers = [int(text.split()[1]) for text in manifest['bad_lines']]
  assert numbers == [4, 51, 151]
  # And of a finished folder.
  message = prepare(output, '--input', log, '--max-bad-lines=2')
  assert message.startswith('More than 2 lines are malformed, at least 3 (fie')


def test_bytes_behind_a_compressed_end_are_a_note(log, tmp_path, capsys):
  content = log.read_bytes()
  for number, behind in enumerate((b'', b'garbage')):
    log.write_bytes(gzip.compress(content) + behind)
    output = tmp_path / f'out{number}'
    assert prepare(output, '--input', log) is None
    rows, manifest = open_clicks(output)
    assert len(rows) == len(LINES)
    noted = [log.name] if behind else []
    assert manifest['files_with_bytes_behind_their_end'] == noted
    said = capsys.readouterr().out
    assert (f'{log.name} has bytes behind its end' in said) == bool(behind)


def test_what_is_no_log_is_refused(log, tmp_path, monkeypatch):
  output = tmp_path / 'out'
  content = gzip.compress(log.read_bytes())

  def said_of(content, *flags, output=output):
    log.write_bytes(content)
    return prepare(output, '--input', log, *flags)

  message = said_of(content[: len(content) // 2])
  assert message.startswith(f'{log} cannot be read beyond line ')
  assert 20 < int(message.split(' beyond line ')[1].split()[0]) < 190
  assert message.endswith('it is damaged or was cut short; get it again.')
  assert not output.exists()
  # It is the challenge's log without labels.
  message = said_of(b'\n'.join(one[2:] for one in LINES), '--overwrite')
  assert 'it has 39 fields instead of 40, as in a log without labels' in message
  monkeypatch.setattr(log_lib, '_MAX_LINE_BYTES', 5_000)
  message = said_of(b'\0' * 50_000, '--overwrite')
  assert message.startswith(f'Line 1 of {log} has no end')
  assert 'was begun from other input' in said_of(b'')
  assert said_of(b'', '--overwrite').startswith('0 rows cannot be split')
  assert 'There is no file' in prepare(tmp_path / 'o', '--input', 'nowhere')
  assert 'is named twice' in prepare(tmp_path / 'o', '--input', log, log)
  message = said_of(b'', '--overwrite', output=tmp_path)
  assert message.endswith('has something else in it: choose another --output.')
  assert log.exists()
  # So is a folder that only happens to have the name of an unfinished one.
  mine = tmp_path / 'new.partial' / 'thesis.tex'
  mine.parent.mkdir()
  mine.write_text('mine')
  message = said_of(b'', '--overwrite', output=tmp_path / 'new')
  assert message.startswith(f'{mine.parent} has something else in it: choose')
  assert files_of(mine.parent) == {'thesis.tex': b'mine'}


def test_a_wrong_command_line_is_named(capsys):
  for arguments, sentence in (
    ([], 'one of the arguments --input --synthetic-rows is required'),
    (['--input=x', '--min-count=0'], '--min-count is 0; it must be at least 1'),
    (['--input=x', '--held-out-fraction=1'], 'must be between 0 and 1'),
    (['--input=x', '--held-out-fraction=1/0'], 'is neither a number nor a'),
    (
      ['--synthetic-rows=9', '--max-bad-lines=3'],
      '--max-bad-lines changes nothing for a synthetic log',
    ),
  ):
    with pytest.raises(SystemExit, match='2'):
      prepare('out', *arguments)
    assert sentence in capsys.readouterr().err


def test_a_log_that_cannot_be_written_leaves_no_trace(
  tmp_path, monkeypatch, capsys
):
  path = tmp_path / 'log.txt'
  path.write_text('mine')

  def written(rows):
    arguments = [f'--write={path}', f'--synthetic-rows={rows}', '--overwrite']
    return prepare_criteo.main(arguments)

  with pytest.raises(SystemExit, match='2'):
    prepare_criteo.main([f'--write={path}', '--synthetic-rows=300'])
  assert f'{path} exists; name another file, or' in capsys.readouterr().err
  assert written(3).startswith('3 rows cannot be split into training and held')
  for error, outcome in (
    (KeyboardInterrupt(), 130),
    (
      OSError(errno.EFBIG, 'File too large'),
      f'{path}: File too large; fix this, and the same command begins anew.',
    ),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(log_lib, 'format_rows', mock.Mock(side_effect=error))
      assert written(300) == outcome
  assert (
    capsys.readouterr().err == 'Interrupted: the same command begins anew.\n'
  )
  assert files_of(tmp_path) == {'log.txt': b'mine'}


def test_the_synthetic_log_is_the_same_as_text(tmp_path, capsys):
  # Every category stays, so that all of them are compared.
  rows = ('--synthetic-rows=300', '--min-count=1')
  assert prepare(tmp_path / 'made', *rows) is None
  made = capsys.readouterr().out
  assert 'A synthetic click log' in made
  directly, facts = open_clicks(tmp_path / 'made')
  assert (directly[:, 1:14] == MISSING).any()
  assert (directly[:, 14:] == storage.MISSING_CATEGORY).any()
  assert 0.2 < facts['synthetic']['best_log_loss'] < 0.6
  for name in ('log.txt', 'log.txt.gz'):
    log, output = tmp_path / name, tmp_path / f'of-{name}'
    capsys.readouterr()
    arguments = ['--synthetic-rows=300', f'--write={log}']
    assert prepare_criteo.main(arguments) is None
    written = capsys.readouterr().out
    assert written.startswith('The log is synthetic. The best log loss that ca')
    assert written in made
    assert prepare(output, '--input', log, '--min-count=1') is None
    text, manifest = open_clicks(output)
    np.testing.assert_array_equal(text, directly)
    assert manifest['fingerprint'] == facts['fingerprint']
    assert 'synthetic' not in manifest
  content = (tmp_path / 'log.txt').read_bytes()
  assert gzip.decompress((tmp_path / 'log.txt.gz').read_bytes()) == content


# Interruptions; test_prepare_text has killed processes.


def test_interrupted_runs_go_on_and_end_the_same(
  log, tmp_path, monkeypatch, capsys
):
  arguments = ['--input', log]
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  partial = resumable.partial_of(broken)
  assert prepare(whole, *arguments) is None
  write, write_state = resumable.write, resumable.write_state

  def fill(path, content):
    if path.name == '000003.bin':
      raise OSError(errno.ENOSPC, 'No space left on device', str(path))
    write(path, content)

  # A full disk is one sentence.
  with monkeypatch.context() as patch:
    patch.setattr(resumable, 'write', fill)
    message = prepare(broken, *arguments)
  assert 'No space left on device' in message
  assert message.endswith('the same command goes on from here.')
  for phase, steps in (('rows', 4), ('fields', 3), ('blocks', 2)):

    def stop(folder, state, phase=phase, steps=steps):
      write_state(folder, state)
      if len(state[phase]) == steps:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
      patch.setattr(resumable, 'write_state', stop)
      assert prepare(broken, *arguments) == 130
    said = capsys.readouterr().err
    assert said == 'Interrupted: the same command goes on from here.\n'
    assert not broken.exists()
    with pytest.raises(ClicksError, match='is not finished'):
      open_clicks(broken)
  with resumable.locked(partial, broken):
    assert prepare(broken, *arguments) == (
      f'Another run is making {broken}: wait for it, or end it.'
    )
  # It looks as if it had died while it wrote.
  with open(partial / 'rows.bin', 'ab') as file:
    file.write(b'half a row')
  (partial / 'chunks' / '000000.bin.new').write_bytes(b'half a chunk')
  message = prepare(broken, *arguments, '--min-count=3')
  assert 'was begun from other input or with other settings' in message
  # It goes on, and does not begin anew.
  monkeypatch.setattr(storage, 'read_chunk', lambda *_: 1 / 0)
  assert prepare(broken, *arguments) is None
  assert files_of(broken) == files_of(whole)
  assert not partial.exists()


def test_an_interrupted_overwrite_goes_on_and_the_old_folder_stays(
  log, tmp_path, monkeypatch, capsys
):
  output, whole = tmp_path / 'out', tmp_path / 'whole'
  partial = resumable.partial_of(output)
  new = ('--input', log, '--min-count=3')
  assert prepare(whole, *new) is None
  wanted = files_of(whole)

  def interrupted(place, name, calls, *flags, after=False):
    """Runs until one function is called so often, before or after it."""
    function, left = getattr(place, name), [calls]

    def stop(*arguments):
      left[0] -= 1
      if left[0] or after:
        function(*arguments)
      if not left[0]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
      patch.setattr(place, name, stop)
      assert prepare(output, *new, *flags) == 130, (name, calls)
    said = capsys.readouterr().err
    assert said == 'Interrupted: the same command goes on from here.\n'

  def refuse_to_read(patch):
    patch.setattr(storage, 'read_chunk', lambda *_: 1 / 0)

  # What began without --overwrite goes on with it; something else does not.
  interrupted(resumable, 'write_state', 25)
  with monkeypatch.context() as patch:
    refuse_to_read(patch)
    with pytest.raises(ZeroDivisionError):
      prepare(output, '--input', log, '--overwrite')
  assert prepare(output, '--input', log, '--overwrite') is None
  old = files_of(output)
  interrupted(resumable, 'write_state', 25, '--overwrite')
  assert files_of(output) == old
  # From now on the log is not read again, wherever the run is interrupted.
  with monkeypatch.context() as patch:
    refuse_to_read(patch)
    for name, calls, after in (
      ('set_aside', 1, False),
      ('set_aside', 1, True),
      ('finish', 1, False),
    ):
      interrupted(resumable, name, calls, '--overwrite', after=after)
      moved = partial / resumable.REPLACED if after else output
      if name == 'set_aside':
        assert files_of(moved) == old
    interrupted(resumable.shutil, 'rmtree', 1, '--overwrite')
    assert set(files_of(output)) > set(wanted)
    assert prepare(output, *new, '--overwrite') is None
  assert files_of(output) == wanted
  assert not partial.exists()
  # A finished folder is made anew if asked for.
  with monkeypatch.context() as patch:
    refuse_to_read(patch)
    with pytest.raises(ZeroDivisionError):
      prepare(output, *new, '--overwrite')
  # A folder that is emptied loses its plan first.
  with monkeypatch.context() as patch:
    patch.setattr(resumable.shutil, 'rmtree', lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      prepare(output, '--input', log, '--overwrite')
  assert not (partial / resumable.PLAN).exists()

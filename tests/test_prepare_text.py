import concurrent.futures
import errno
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
from unittest import mock

import numpy as np
import psutil
import pytest
from preparations import files_of, inline, open_text, texts_of
from rich.console import Console
from stand_ins import until
from streams import MEMBER
from test_documents import (
  LONG,
  jsonl,
  wet,
  write_parquet,
  write_set,
  write_texts,
)

from data.preparing import resumable, workers
from data.text import (
  builtin_sources,
  corpus,
  encoding,
  preparation,
  records,
)
from scripts import prepare_text, preparing

ROOT = pathlib.Path(__file__).parents[1]
ARGUMENTS = ('--vocab-size=300', '--held-out-fraction=0.2')


@pytest.fixture(autouse=True)
def small_and_in_this_process(monkeypatch):
  monkeypatch.setattr(workers, 'processes', inline)
  monkeypatch.setattr(records, 'CHUNK_BYTES', 2_000)
  monkeypatch.setattr(records, '_BLOCK_BYTES', 500)


TEXTS = [f'{text}▁é.\nEnd' for text in write_texts(120)]


@pytest.fixture
def books(tmp_path):
  path = tmp_path / 'books.jsonl'
  lines = jsonl(TEXTS).splitlines(keepends=True)
  path.write_bytes(b''.join([*lines[:50], b'{"te\n', *lines[50:]]))
  return path


def prepare(output, path, *arguments, format='jsonl'):
  # New processes have nothing open.
  encoding._open_tokenizer.cache_clear()
  source = [] if path is None else [f'--input={path}']
  # With --held-out no fraction may be given.
  some = ARGUMENTS[:1] if '--held-out' in arguments else ARGUMENTS
  source += [f'--output={output}', f'--format={format}', *some]
  return prepare_text.main([*source, *map(str, arguments)])


def all_texts_of(folder):
  return sorted(texts_of(folder, 'train') + texts_of(folder, 'test'))


def test_a_folder_has_all_documents_and_says_what_is_in_it(
  books, tmp_path, capsys
):
  output = tmp_path / 'out'
  assert prepare(output, books) is None
  assert all_texts_of(output) == sorted(TEXTS)
  test = texts_of(output, 'test')
  assert 5 < len(test) < 50
  names = ('tokens-00000.bin', 'documents.bin', 'counts.bin')
  parts = {f'{split}/{n}' for split in ('train', 'test') for n in names}
  assert {*files_of(output)} == {'manifest.json', 'tokenizer.model'} | parts
  manifest = json.loads((output / 'manifest.json').read_text())
  assert manifest['counts'] == {
    'bad: not JSON': 1,
    'characters': sum(map(len, TEXTS)),
    'documents': 120,
    'records': 121,
  }
  assert manifest['inputs'][0]['name'] == 'books.jsonl'
  assert manifest['splits']['test']['documents'] == len(test)
  # A token takes two bytes, and the counts agree.
  for split, facts in manifest['splits'].items():
    documents = corpus.open_corpus(output).splits[split]
    [tokens] = documents.shards
    assert len(tokens) == facts['tokens'] == documents.num_tokens
    counts = np.bincount(tokens, minlength=300)
    np.testing.assert_array_equal(counts, documents.counts)
  printed = capsys.readouterr().out
  for line in ('sampling: ', 'tokenising: ', 'sealing: ', 'data.data_dir='):
    assert line in printed
  assert 'left out, bad: not JSON' in printed
  # It can be trained on.
  next(open_text(output).train(**MEMBER, batch_size=4))
  # A finished folder is left alone.
  before = files_of(output)
  assert prepare(output, books) is None
  assert 'tokenising' not in capsys.readouterr().out
  assert prepare(output, books, '--structure=none').endswith(
    'was made from other input or with other settings (structure '
    "'sentences'): choose another --output, or --overwrite it."
  )
  # Nor is one called prepared whose vocabulary is gone.
  (output / 'tokenizer.model').rename(tmp_path / 'model')
  assert prepare(output, books).endswith('prepare it again with --overwrite.')
  (tmp_path / 'model').rename(output / 'tokenizer.model')
  books.write_bytes(books.read_bytes() + jsonl(['more']))
  assert '(other files)' in prepare(output, books)
  assert files_of(output) == before
  assert prepare(output, books, '--overwrite') is None
  assert 'more' in all_texts_of(output)


def test_names_and_order_of_files_and_of_shards_make_no_difference(
  tmp_path, monkeypatch
):
  for folder, names in (('one', 'abc'), ('other', 'cab')):
    (tmp_path / folder).mkdir()
    for part, name in enumerate(names):
      (tmp_path / folder / name).write_bytes(jsonl(TEXTS[part::3]))
    prepare(tmp_path / f'{folder}-out', tmp_path / folder / '*')
  one, other = (files_of(tmp_path / f'{f}-out') for f in ('one', 'other'))
  del one['manifest.json'], other['manifest.json']
  assert one == other
  # A long corpus has several.
  monkeypatch.setattr(corpus, 'SHARD_TOKENS', 1_000)
  prepare(tmp_path / 'parts', tmp_path / 'one' / '*')
  assert len(corpus.open_corpus(tmp_path / 'parts').splits['train'].shards) > 2
  for split in ('train', 'test'):
    whole = texts_of(tmp_path / 'one-out', split)
    assert texts_of(tmp_path / 'parts', split) == whole


def test_every_format_comes_through_the_same_door(tmp_path):
  def prepare_(name, source, *arguments):
    output = tmp_path / f'{name}-out'
    assert prepare(output, source, *arguments, format=name) is None
    return output

  txt, wets, sets = (tmp_path / name for name in ('txt', 'wet', 'tfds'))
  txt.write_text('\n\n\n'.join(t.replace('\n', ' ') for t in TEXTS))
  # Unknown characters are lost if asked for.
  lossy = ('--oov=unk', '--vocab-size=40', '--character-coverage=0.99')
  output = prepare_('txt', txt, '--document=blank-line', *lossy)
  assert len(all_texts_of(output)) == 120
  assert any('\ufffd' in text for text in texts_of(output, 'train'))
  manifest = json.loads((output / 'manifest.json').read_text())
  assert manifest['tokenizer']['invertible'] is False
  parquet = write_parquet(tmp_path / 'parquet', TEXTS, row_group_size=20)
  assert all_texts_of(prepare_('parquet', parquet)) == sorted(TEXTS)
  wets.write_bytes(wet([f'Home\n{LONG} {t[:9]}' for t in TEXTS[:40]]))
  found = all_texts_of(prepare_('wet', wets))
  assert [text.startswith(LONG) for text in found] == [True] * 40
  # All of the split that is named to evaluate on is held out, and no other.
  write_set(sets, {'train': TEXTS, 'test': TEXTS[:9]})
  held_out = ('--held-out', 'lm1b[test]', f'--data-dir={sets}')
  output = prepare_('tfds', 'lm1b', *held_out)
  manifest = json.loads((output / 'manifest.json').read_text())
  assert manifest['settings']['held_out_fraction'] == 0
  assert sorted(texts_of(output, 'train')) == sorted(TEXTS[9:])
  assert sorted(texts_of(output, 'test')) == sorted(TEXTS[:9])
  everything = ('--held-out', 'lm1b:1.1.0[train]', f'--data-dir={sets}')
  assert prepare(sets, 'lm1b', *everything, format='tfds') == (
    '--held-out names all of --input, so that nothing is left to train on: '
    'name other files with one of them.'
  )


def test_what_is_held_out_is_not_learnt_from(tmp_path, monkeypatch, capsys):
  (tmp_path / 'in').mkdir()
  # The second file repeats some of the third, which the pattern matches.
  parts = TEXTS[:60], TEXTS[60:90] + TEXTS[95:105], TEXTS[90:]
  for number, texts in enumerate(parts):
    (tmp_path / 'in' / f'{number}.jsonl').write_bytes(jsonl(texts))
  real = preparation.train_tokenizer
  train = mock.Mock(side_effect=real)
  monkeypatch.setattr(preparation, 'train_tokenizer', train)
  (tmp_path / 'link').symlink_to(tmp_path / 'in' / '2.jsonl')
  arguments = tmp_path / 'in' / '*', '--held-out', tmp_path / 'link'
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  assert prepare(whole, *arguments) is None
  assert sorted(texts_of(whole, 'train')) == sorted(TEXTS[:90])
  assert sorted(texts_of(whole, 'test')) == sorted(TEXTS[90:])
  assert sorted(train.call_args.args[0]) == sorted(TEXTS[:90])
  manifest = json.loads((whole / 'manifest.json').read_text())
  names = [one['name'] for one in manifest['inputs']]
  assert sorted(names) == ['0.jsonl', '1.jsonl']
  assert manifest['counts']['documents'] == 120
  printed = capsys.readouterr().out
  for count, reason in (
    (10, 'filtered: equal to a held-out document'),
    (1, 'note: an input that is held out, and not trained on'),
  ):
    assert manifest['counts'][reason] == count
    assert reason in printed
  # What an older version may have trained on does not go on.
  path = whole / 'manifest.json'
  del manifest['settings']['duplicates_of_held_out']
  path.write_text(json.dumps(manifest))
  assert '(duplicates_of_held_out None)' in prepare(whole, *arguments)
  # An interrupted run comes to the same.
  write_state, written = resumable.write_state, []

  def stop(folder, state):
    write_state(folder, state)
    written.append(state['input'])
    if len(written) == 3:
      raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(resumable, 'write_state', stop)
    assert prepare(broken, *arguments) == 130
  assert prepare(broken, *arguments) is None
  one, other = files_of(whole), files_of(broken)
  del one['manifest.json'], other['manifest.json']
  assert one == other
  # Held-out documents that a filter leaves out are too few to evaluate on.
  message = prepare(tmp_path / 'out', *arguments, '--min-paragraphs=3')
  assert message.startswith('No document is left to test on, of 30 records (30')


def test_the_tokenizer_learns_from_so_many_documents(
  books, tmp_path, monkeypatch
):
  real = preparation.train_tokenizer
  train = mock.Mock(side_effect=lambda _, **keywords: real(TEXTS, **keywords))
  monkeypatch.setattr(preparation, 'train_tokenizer', train)
  for count in (5, 500):
    prepare(tmp_path / f'{count}', books, f'--train-from={count}')
  (tmp_path / 'other').write_bytes(jsonl(['Not to be learnt from.'] * 9))
  prepare(tmp_path / 'apart', books, '--held-out', tmp_path / 'other')
  few, all_of_them, apart = (call.args[0] for call in train.call_args_list)
  assert sorted(apart) == sorted(TEXTS)
  assert len(few) == 5
  # It does not learn from documents that are held out.
  assert set(all_of_them) == set(texts_of(tmp_path / '500', 'train'))


@pytest.mark.parametrize('terminal', [True, False])
def test_progress_has_a_rate_and_time_left(terminal):
  console = Console(
    file=io.StringIO(), force_terminal=terminal, width=120, color_system=None
  )
  display = preparing.Display(console)
  for second, phase, done, total in (
    (100, 'sampling', 7, 80),
    (110, 'sampling', 70, 80),
    # Neither an earlier phase nor the 5 MB of an earlier run count in the rate,
    # and the total may change.
    (120, 'tokenising', 5, 90),
    (130, 'tokenising', 10, 90),
    (140, 'tokenising', 20, 80),
  ):
    display._bars.get_time = lambda second=second: second
    numbers = (done * 10**6, total * 10**6, 1_234, 2_500_000)
    prepare_text.show(display, 'MB', preparation.Progress(phase, *numbers))
  if terminal:
    [task] = display._bars.tasks
    line = f'{task.description}: {task.fields["status"]}'
  else:
    line = console.file.getvalue().splitlines()[-1]
  assert line == (
    'tokenising: 20.0/80.0 MB, 1,234 documents, 2.5 M tokens, 0.8 MB/s, '
    '0:01:20 left'
  )


# Interruptions of processes that the tests can kill.

DRIVER = """
import sys, time
from data.preparing import resumable
from data.text import records
from scripts import prepare_text
records.CHUNK_BYTES, records._BLOCK_BYTES = 2_000, 500
write = resumable.write_state
def slowly(*arguments):
  write(*arguments)
  time.sleep(0.5)
resumable.write_state = slowly
sys.exit(prepare_text.main())
"""


def test_interrupted_runs_go_on_and_end_the_same(books, tmp_path, capsys):
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  partial = resumable.partial_of(broken)
  assert prepare(whole, books) is None
  arguments = [f'--input={books}', '--format=jsonl', f'--output={broken}']

  def done():
    state = partial / 'state.json'
    return json.loads(state.read_text())['chunk'] if state.exists() else 0

  # The number of workers may vary; the last ones are in this process.
  for number, chunk in ((signal.SIGKILL, 2), (signal.SIGINT, 4)):
    flag = f'--workers={chunk // 2}'
    process = subprocess.Popen(
      [sys.executable, '-c', DRIVER, *arguments, *ARGUMENTS, flag],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )
    until(lambda chunk=chunk: done() >= chunk, process)
    children = psutil.Process(process.pid).children(recursive=True)
    # There can be only one run at a time.
    assert prepare(broken, books) == (
      f'Another run is making {broken}: wait for it, or end it.'
    )
    # A terminal interrupts all of them.
    kill = os.killpg if number == signal.SIGINT else os.kill
    kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert not broken.exists()
    with pytest.raises(corpus.CorpusError, match='is not finished'):
      corpus.open_corpus(broken)
    if number == signal.SIGINT:
      assert process.returncode == 130
      assert errors == 'Interrupted: the same command goes on from here.\n'
    # No worker goes on.
    assert not psutil.wait_procs(children, timeout=60)[1]
    # It looks as if it had died while it wrote.
  with open(partial / 'train' / 'tokens-00000.bin', 'ab') as file:
    file.write(b'half a token')
  (partial / 'train' / 'tokens-00001.bin').write_bytes(b'more')
  # A run with other settings does not go on with these files.
  message = prepare(broken, books, '--structure=none')
  assert 'was begun from other input or with other settings' in message
  capsys.readouterr()
  assert prepare(broken, books) is None
  # It went on, and did not begin anew.
  assert 'sampling' not in capsys.readouterr().out
  assert files_of(broken) == files_of(whole)
  assert not partial.exists()


def test_a_worker_that_dies_is_one_sentence(books, tmp_path, monkeypatch):
  # This uses the real pool, and the system ends its processes.
  monkeypatch.undo()
  dying = mock.Mock()
  dying.return_value.submit.side_effect = concurrent.futures.BrokenExecutor
  monkeypatch.setattr(workers.concurrent.futures, 'ProcessPoolExecutor', dying)
  message = prepare(tmp_path / 'out', books)
  assert message.startswith('A worker died, perhaps for lack of memory: run')


def test_what_a_user_may_do_wrong_is_one_sentence(books, tmp_path, monkeypatch):
  output = tmp_path / 'out'
  for argument, sentence in (
    ('--format=wet', 'does not start with a WARC record'),
    ('--text-key=body', "no text under 'body', but 'text'"),
    ('--vocab-size=60000', 'is too large for this text'),
    ('--language=klingon', '--language klingon is not kno'),
    ('--language=de', 'No document is left to train on, o'),
    ('--min-paragraphs=3', '(120 filtered: too few paragraphs, '),
    ('--held-out-fraction=1e-9', 'raise --held-out-fraction'),
  ):
    message = prepare(output, books, argument, '--overwrite')
    assert sentence in message
    assert '\n' not in message
    assert not output.exists()
  # A package that is not as it was released.
  pinned = {'numpy': ('0.0.1', '')}
  with mock.patch.dict(builtin_sources.PACKAGES, pinned, clear=True):
    builtin_sources.documents.cache_clear()
    message = prepare(output, None, format='builtin')
  assert message.startswith('The built-in corpus needs numpy 0.0.1, as requi')
  # A folder of something else is not touched.
  output.mkdir()
  (output / 'thesis.tex').write_text('mine')
  for more in ([], ['--overwrite']):
    assert prepare(output, books, *more) == (
      f'{output} has something else in it: choose another --output.'
    )
  assert files_of(output) == {'thesis.tex': b'mine'}
  # Nor is one with a manifest of something else.
  (output / 'manifest.json').write_text('{"name": "thesis"}')
  assert 'has something else in it' in prepare(output, books, '--overwrite')
  assert (output / 'thesis.tex').exists()
  # Nor does a folder get the name of a disk.
  monkeypatch.setattr(os.path, 'ismount', lambda path: path == tmp_path / 'new')
  message = prepare(tmp_path / 'new', books)
  assert message.startswith(f'A disk is mounted at {tmp_path}/new, so')


def test_a_link_stays_and_leads_to_what_is_prepared(books, tmp_path):
  for number, real in enumerate((tmp_path / 'real', tmp_path / 'later')):
    link = tmp_path / f'link{number}'
    link.symlink_to(real)
    if not number:
      real.mkdir()
    assert prepare(link, books) is None
    assert link.is_symlink()
    assert all_texts_of(link) == all_texts_of(real) == sorted(TEXTS)
  (tmp_path / 'circle').symlink_to(tmp_path / 'circle')
  message = prepare(tmp_path / 'circle', books)
  assert message.endswith('circle is no folder: choose another --output.')


def test_a_full_disk_is_one_sentence_and_the_run_goes_on(
  books, tmp_path, monkeypatch
):
  output = tmp_path / 'out'
  full = OSError(errno.EFBIG, 'File too large')
  with monkeypatch.context() as patch:
    patch.setattr(corpus.CorpusWriter, '_write', mock.Mock(side_effect=full))
    assert prepare(output, books) == (
      f'{output}: File too large; fix this, and the same command goes on from '
      'here.'
    )
  assert prepare(output, books) is None
  # A finished folder loses what an interrupted run has left in it.
  before = files_of(output)
  for name in (*resumable.LEFT_OUT, encoding.HELD_OUT):
    (output / name).write_text('{}')
  assert prepare(output, books) is None
  assert files_of(output) == before


def test_a_wrong_command_line_is_named(capsys):
  for path, argument, sentence in (
    (None, '--workers=1', '--input is missing'),
    ('x', '--format=csv', 'invalid choice'),
    ('x', '--train-from=0', '--train-from is 0; it must be at least 1'),
    ('x', '--character-coverage=2', 'between 0 and 1'),
    ('x', '--held-out-fraction=0', 'must be more than 0 and less than 1'),
    ('x', '--held-out-fraction=1', 'must be more than 0 and less than 1'),
    ('x', '--vocab-size=70000', 'it must be between 263 and 65536'),
    ('x', '--vocab-size=6 --oov=unk', 'it must be between 7 and 65536'),
    # Flags that nothing reads.
    ('x', '--held-out-fraction=0.1 --held-out=y', 'with --held-out'),
    ('x', '--structure=none --sentence-language=de', 'are not marked; leave'),
    ('x', '--sentence-language=de_DE', 'is de_DE, for which sentencex has no'),
    ('x', '--min-paragraphs=0', '--min-paragraphs is 0; it must be at least'),
    ('x', '--format=txt --text-key=body', 'if --format is txt; leave it'),
    (
      'x',
      '--data-dir=/sets',
      '--data-dir changes nothing if --format is js',
    ),
    ('x', '--min-language-probability=0.5', 'of any language are kept; leave'),
    ('x', '--format=builtin', '--input changes nothing if --format is bui'),
  ):
    with pytest.raises(SystemExit, match='2'):
      prepare('out', path, *argument.split())
    assert sentence in capsys.readouterr().err


def test_what_was_to_be_replaced_comes_back_when_another_plan_begins(tmp_path):
  """A run was killed between its last two renames."""
  output, partial = tmp_path / 'text', tmp_path / 'text.partial'
  old = partial / resumable.REPLACED
  old.mkdir(parents=True)
  (old / 'manifest.json').write_text('{}')
  plans = [{'settings': {'k': k}, 'packages': {}} for k in (1, 2)]
  (partial / 'plan.json').write_text(json.dumps(plans[0]))
  (partial / 'state.json').write_text('{"chunk": 3}')
  # The same command goes on, and needs nothing back.
  assert resumable.begin(partial, output, plans[0], True) == {'chunk': 3}
  assert not output.exists()
  # From a damaged state it begins anew.
  (partial / 'state.json').write_text('[' * 5_000)
  assert resumable.begin(partial, output, plans[0], True) is None
  assert resumable.begin(partial, output, plans[1], True) is None
  assert (output / 'manifest.json').read_text() == '{}'
  assert not (partial / 'state.json').exists()

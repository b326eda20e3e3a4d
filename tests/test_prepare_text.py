import concurrent.futures
import contextlib
import io
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from rich.console import Console
from test_documents import (
  LONG,
  jsonl,
  wet,
  write_parquet,
  write_tfds,
)

from data.preparing import resumable, workers
from data.text import corpus as corpus_lib
from data.text import dataset as text
from data.text import inputs, preparation, records
from scripts import prepare_text, preparing

ROOT = pathlib.Path(__file__).parents[1]
processes = workers.processes
WORDS = ['The', 'cat', 'sat', 'on', 'a', 'mat', 'and', 'saw', 'that', 'rats']
VOCAB = '--vocab-size=300'


class Inline:
  """What `preparation` needs of a pool, in this process."""

  def __init__(self, size):
    self.size = size
    # New processes have nothing open.
    preparation._open_tokenizer.cache_clear()

  def submit(self, function, *arguments, **keywords):
    future = concurrent.futures.Future()
    try:
      future.set_result(function(*arguments, **keywords))
    except Exception as error:
      future.set_exception(error)
    return future


@contextlib.contextmanager
def inline(size):
  yield Inline(size)


@pytest.fixture(autouse=True)
def small_and_in_this_process(monkeypatch):
  monkeypatch.setattr(workers, 'processes', inline)
  monkeypatch.setattr(records, 'CHUNK_BYTES', 2_000)
  monkeypatch.setattr(records, '_BLOCK_BYTES', 500)
  inputs.tfds_source.cache_clear()


def write_texts(count, seed=0):
  rng = random.Random(seed)
  return [
    f'{number}▁é '
    + ' '.join(rng.choices(WORDS, k=rng.randrange(5, 60)))
    + '.\nEnd'
    for number in range(count)
  ]


TEXTS = write_texts(120)


@pytest.fixture
def books(tmp_path):
  path = tmp_path / 'books.jsonl'
  lines = jsonl(TEXTS).splitlines(keepends=True)
  path.write_bytes(b''.join([*lines[:50], b'{"te\n', *lines[50:]]))
  return path


def prepare(output, *arguments, **_):
  return prepare_text.main(
    [
      f'--output={output}',
      VOCAB,
      '--held-out-fraction=0.2',
      *map(str, arguments),
    ]
  )


def files_of(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(pathlib.Path(folder).rglob('*'))
    if path.is_file()
  }


def texts_of(folder, split):
  corpus = corpus_lib.open_corpus(folder)
  documents, tokenizer = corpus.splits[split], corpus.tokenizer()
  return [
    tokenizer.decode(documents.read(np.array([a]), np.array([b - a])))
    for a, b in zip(documents.starts[:-1], documents.starts[1:], strict=True)
  ]


def test_a_folder_has_all_documents_and_says_what_is_in_it(
  books, tmp_path, capsys
):
  output = tmp_path / 'out'
  assert prepare(output, '--input', books, '--format=jsonl') is None
  train, test = texts_of(output, 'train'), texts_of(output, 'test')
  assert sorted(train + test) == sorted(TEXTS)
  assert 5 < len(test) < 50
  assert not {*files_of(output)} ^ {
    'manifest.json',
    'tokenizer.model',
    *(
      f'{split}/{name}'
      for split in ('train', 'test')
      for name in ('tokens-00000.bin', 'documents.bin', 'counts.bin')
    ),
  }
  manifest = json.loads((output / 'manifest.json').read_text())
  assert manifest['counts'] == {
    'bad: not JSON': 1,
    'characters': sum(map(len, TEXTS)),
    'documents': 120,
    'records': 121,
  }
  assert manifest['inputs'][0]['name'] == 'books.jsonl'
  assert manifest['splits']['test']['documents'] == len(test)
  # Two bytes a token, and the counts are of those.
  corpus = corpus_lib.open_corpus(output)
  for split, facts in manifest['splits'].items():
    [tokens] = corpus.splits[split].shards
    assert len(tokens) == facts['tokens'] == corpus.splits[split].num_tokens
    np.testing.assert_array_equal(
      np.bincount(tokens, minlength=300), corpus.splits[split].counts
    )
  printed = capsys.readouterr().out
  for line in ('sampling: ', 'tokenising: ', 'sealing: ', 'data.data_dir='):
    assert line in printed
  assert 'left out, bad: not JSON' in printed
  # And it can be trained on.
  text_set = text.make_text(
    str(output),
    sequence_length=8,
    max_document_tokens=None,
    max_train_tokens=None,
    max_test_tokens=None,
    cache_dir=None,
  )
  next(
    text_set.train(
      member=0, members=2, partition='disjoint', seed=0, batch_size=4
    )
  )


def test_a_finished_folder_is_left_alone(books, tmp_path, capsys):
  output = tmp_path / 'out'
  arguments = ['--input', books, '--format=jsonl']
  prepare(output, *arguments)
  before = files_of(output)
  (output / 'train' / 'documents.bin').touch()
  capsys.readouterr()
  assert prepare(output, *arguments) is None
  assert 'tokenising' not in capsys.readouterr().out
  assert files_of(output) == before
  message = prepare(output, *arguments, '--structure=none')
  assert message.endswith(
    'was made from other input or with other settings (structure '
    "'sentences'): choose another --output, or --overwrite it."
  )
  books.write_bytes(books.read_bytes() + jsonl(['more']))
  assert '(other files)' in prepare(output, *arguments)
  assert files_of(output) == before
  assert prepare(output, *arguments, '--overwrite') is None
  assert 'more' in texts_of(output, 'train') + texts_of(output, 'test')


def test_names_and_order_of_files_make_no_difference(tmp_path):
  for folder, names in (('one', 'abc'), ('other', 'cab')):
    (tmp_path / folder).mkdir()
    for part, name in enumerate(names):
      (tmp_path / folder / name).write_bytes(jsonl(TEXTS[part::3]))
    pattern = tmp_path / folder / '*'
    prepare(tmp_path / f'{folder}-out', '--input', pattern, '--format=jsonl')
  one, other = (files_of(tmp_path / f'{f}-out') for f in ('one', 'other'))
  del one['manifest.json'], other['manifest.json']
  assert one == other


def write_input(format, path):
  match format:
    case 'txt':
      path.write_text('\n\n\n'.join(t.replace('\n', ' ') for t in TEXTS))
    case 'parquet':
      write_parquet(path, TEXTS, row_group_size=20)
    case 'wet':
      path.write_bytes(wet([f'Home\n{LONG} {t[:9]}' for t in TEXTS]))
    case 'tfds':
      write_tfds(path, {'train': TEXTS, 'test': write_texts(9, seed=1)})


@pytest.mark.parametrize(
  ('format', 'arguments'),
  [
    ('txt', ['--document=blank-line']),
    ('parquet', []),
    ('wet', []),
    ('tfds', ['--held-out', 'lm1b[test]']),
  ],
)
def test_every_format_comes_through_the_same_door(format, arguments, tmp_path):
  path = tmp_path / 'input'
  write_input(format, path)
  source = ['--input', path]
  if format == 'tfds':
    source = ['--input', 'lm1b', f'--data-dir={path}']
  output = tmp_path / 'out'
  assert prepare(output, *source, f'--format={format}', *arguments) is None
  found = texts_of(output, 'train') + texts_of(output, 'test')
  assert len(found) == 120 + 9 * (format == 'tfds')
  if format == 'wet':
    assert all(text.startswith(LONG) for text in found)
  if format == 'tfds':
    assert sorted(texts_of(output, 'test')) == sorted(write_texts(9, seed=1))


def test_files_to_evaluate_on_are_all_held_out(tmp_path):
  for name, part in (('train', TEXTS[:100]), ('test', TEXTS[100:])):
    (tmp_path / name).write_bytes(jsonl(part))
  files = ['--input', tmp_path / 'train', '--held-out', tmp_path / 'test']
  prepare(tmp_path / 'out', *files, '--format=jsonl')
  assert sorted(texts_of(tmp_path / 'out', 'train')) == sorted(TEXTS[:100])
  assert sorted(texts_of(tmp_path / 'out', 'test')) == sorted(TEXTS[100:])


def test_long_corpora_have_several_files(books, tmp_path, monkeypatch):
  monkeypatch.setattr(corpus_lib, 'SHARD_TOKENS', 1_000)
  prepare(tmp_path / 'out', '--input', books, '--format=jsonl')
  corpus = corpus_lib.open_corpus(tmp_path / 'out')
  assert len(corpus.splits['train'].shards) > 2
  assert len(texts_of(tmp_path / 'out', 'train')) > 60


def test_unknown_characters_are_lost_if_asked_for(books, tmp_path):
  output = tmp_path / 'out'
  arguments = ['--oov=unk', '--vocab-size=40', '--character-coverage=0.99']
  assert prepare(output, '--input', books, '--format=jsonl', *arguments) is None
  assert any('\ufffd' in text for text in texts_of(output, 'train'))
  manifest = json.loads((output / 'manifest.json').read_text())
  assert manifest['tokenizer']['invertible'] is False


def test_the_tokenizer_learns_from_so_many_documents(
  books, tmp_path, monkeypatch
):
  sampled = []
  real = preparation.train_tokenizer

  def train(texts, **keywords):
    sampled.append(texts)
    return real(TEXTS, **keywords)

  monkeypatch.setattr(preparation, 'train_tokenizer', train)
  for count in (5, 500):
    prepare(
      tmp_path / f'{count}',
      *('--input', books, '--format=jsonl', f'--train-from={count}'),
    )
  few, all_of_them = sampled
  assert len(few) == 5
  # None of those that are held out.
  assert set(all_of_them) == set(texts_of(tmp_path / '500', 'train'))


@pytest.mark.parametrize('terminal', [True, False])
def test_progress_has_a_rate_and_time_left(terminal, monkeypatch):
  clock = iter(range(100, 1_000, 10))
  monkeypatch.setattr(preparing.time, 'monotonic', lambda: next(clock))
  console = Console(
    file=io.StringIO(), force_terminal=terminal, width=120, color_system=None
  )
  display = preparing.Display(console)
  for done in (5, 10, 20):
    # An earlier run did 4 MB: they do not count as fast.
    prepare_text.show(
      display,
      'MB',
      preparation.Progress(
        'tokenising', done * 10**6, 80 * 10**6, 4 * 10**6, 1_234, 2_500_000
      ),
    )
  if terminal:
    [task] = display._bars.tasks
    line = f'{task.description}: {task.fields["status"]}'
  else:
    line = console.file.getvalue().splitlines()[-1]
  assert line == (
    'tokenising: 20.0/80.0 MB, 1,234 documents, 2.5 M tokens, 0.8 MB/s, '
    '1:15 left'
  )


# Interruptions, in processes of their own, which the tests can kill.

DRIVER = """
import sys, time
from data.preparing import resumable
from data.text import records
from scripts import prepare_text
records.CHUNK_BYTES, records._BLOCK_BYTES = 2_000, 500
write = resumable.write_state
def slowly(*arguments):
  write(*arguments)
  time.sleep({pause})
resumable.write_state = slowly
if __name__ == '__main__':
  sys.exit(prepare_text.main({arguments}))
"""


def start(tmp_path, pause, *arguments):
  script = tmp_path / 'driver.py'
  script.write_text(
    DRIVER.format(pause=pause, arguments=list(map(str, arguments)))
  )
  return subprocess.Popen(
    [sys.executable, str(script)],
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )


def wait_for_chunk(process, partial, chunk):
  deadline = time.monotonic() + 60
  while time.monotonic() < deadline:
    try:
      state = json.loads((partial / 'state.json').read_text())
    except FileNotFoundError:
      state = {'chunk': 0}
    if state['chunk'] >= chunk:
      return
    assert process.poll() is None, process.communicate()
    time.sleep(0.02)
  raise TimeoutError


def test_interrupted_runs_go_on_and_end_the_same(books, tmp_path):
  arguments = [
    *('--input', books, '--format=jsonl', VOCAB, '--held-out-fraction=0.2'),
    '--workers=1',
  ]
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  partial = resumable.partial_of(broken)
  # In this process; the last of the others has more workers.
  assert prepare(whole, *arguments) is None
  for number, chunk in ((signal.SIGKILL, 2), (signal.SIGINT, 4)):
    process = start(tmp_path, 1, *arguments, f'--output={broken}')
    wait_for_chunk(process, partial, chunk)
    workers = psutil.Process(process.pid).children(recursive=True)
    if number == signal.SIGINT:
      # As a terminal does: to all of them.
      os.killpg(process.pid, number)
    else:
      process.kill()
    _, errors = process.communicate(timeout=30)
    assert not broken.exists()
    with pytest.raises(corpus_lib.CorpusError, match='is not finished'):
      corpus_lib.open_corpus(broken)
    if number == signal.SIGINT:
      assert process.returncode == 130
      assert errors == 'Interrupted: the same command goes on from here.\n'
    # Nobody works on.
    assert not psutil.wait_procs(workers, timeout=20)[1]
  # As if it had died while it wrote.
  with open(partial / 'train' / 'tokens-00000.bin', 'ab') as file:
    file.write(b'half a token')
  (partial / 'train' / 'tokens-00001.bin').write_bytes(b'more')
  # Another run with other settings does not go on with these.
  message = prepare(broken, *arguments, '--structure=none')
  assert 'was begun from other input or with other settings' in message
  process = start(tmp_path, 0, *arguments, f'--output={broken}', '--workers=2')
  output, errors = process.communicate(timeout=60)
  assert (process.returncode, errors) == (0, '')
  # It went on, and did not begin anew.
  assert 'sampling' not in output
  assert files_of(broken) == files_of(whole)
  assert not partial.exists()


def test_one_run_at_a_time(books, tmp_path):
  arguments = ['--input', books, '--format=jsonl']
  output = tmp_path / 'out'
  with resumable.locked(resumable.partial_of(output), output):
    assert prepare(output, *arguments) == (
      f'Another run is making {output}: wait for it, or end it.'
    )


def test_a_worker_that_dies_is_one_sentence(books, tmp_path, monkeypatch):
  class Dying:
    def submit(self, function, *arguments, **keywords):
      raise concurrent.futures.BrokenExecutor

    def shutdown(self, **keywords):
      pass

  # The pool itself, of processes that the system ends.
  monkeypatch.setattr(workers, 'processes', processes)
  monkeypatch.setattr(
    workers.concurrent.futures,
    'ProcessPoolExecutor',
    lambda *arguments, **keywords: Dying(),
  )
  message = prepare(tmp_path / 'out', '--input', books, '--format=jsonl')
  assert message.startswith('A worker died, perhaps for want of memory: run')


@pytest.mark.parametrize(
  ('arguments', 'sentence'),
  [
    (['--format=wet'], 'does not start with a WARC record'),
    (['--format=jsonl', '--text-key=body'], "no text under 'body', but text"),
    (['--format=jsonl', '--vocab-size=60000'], 'is too large for this text'),
    (['--format=jsonl', '--language=klingon'], '--language klingon is not kno'),
    (['--format=jsonl', '--language=de'], 'No document is left to train on, o'),
    (['--format=jsonl', '--held-out-fraction=0'], 'raise --held-out-fraction'),
  ],
)
def test_what_a_user_may_do_wrong_is_one_sentence(
  arguments, sentence, books, tmp_path
):
  message = prepare(tmp_path / 'out', '--input', books, *arguments)
  assert sentence in message
  assert '\n' not in message
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  ('arguments', 'sentence'),
  [
    (['--format=jsonl'], '--input is needed'),
    (['--format=csv', '--input=x'], 'invalid choice'),
    (['--format=txt', '--input=x', '--train-from=0'], 'must be at least 1'),
    (['--format=txt', '--input=x', '--held-out-fraction=2'], 'between 0 and 1'),
  ],
)
def test_a_wrong_command_line_is_named(arguments, sentence, tmp_path, capsys):
  with pytest.raises(SystemExit) as caught:
    prepare(tmp_path / 'out', *arguments)
  assert caught.value.code == 2
  assert sentence in capsys.readouterr().err


def test_a_folder_of_something_else_is_not_touched(books, tmp_path):
  output = tmp_path / 'out'
  output.mkdir()
  (output / 'thesis.tex').write_text('mine')
  for more in ([], ['--overwrite']):
    message = prepare(output, '--input', books, '--format=jsonl', *more)
    assert (
      message == f'{output} has something else in it: choose another --output.'
    )
  assert files_of(output) == {'thesis.tex': b'mine'}

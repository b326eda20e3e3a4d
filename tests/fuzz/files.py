"""Files of text and clicks, and the provenance of a run."""

from __future__ import annotations

import bz2
import collections
import contextlib
import dataclasses
import functools
import gzip
import io
import itertools
import json
import lzma
import pathlib
import random
from collections.abc import Iterator
from unittest import mock

import numpy as np
import pyarrow
from pyarrow import parquet

from data.clicks import log
from data.preparing.compressed import InputError, read_blocks
from data.text import documents, inputs, records
from experiments import config, runs, workdir
from experiments.errors import UserError
from scripts import status
from tests.fuzz.reader import Reader, Seed, check_sentence

_COMPRESS = (
  functools.partial(gzip.compress, mtime=0),
  bz2.compress,
  lzma.compress,
)
_MAGIC = (b'\x1f\x8b', b'BZh', b'\xfd7zXZ')
_READING = inputs.Reading(
  format='jsonl',
  document='whole',
  text_key='text',
  data_dir=None,
  language=None,
  min_language_probability=0.0,
  min_paragraph_words=0,
  min_paragraphs=0,
)


class Text(Reader):
  """Text in any format that is read as bytes, compressed or not.

  The first byte chooses the format.
  """

  def __init__(self, folder: pathlib.Path):
    self._path = folder / 'input'
    formats = [('jsonl', 'whole'), ('wet', 'whole')]
    formats += [('txt', document) for document in inputs.DOCUMENTS]
    self._readings = [
      dataclasses.replace(_READING, format=format, document=document)
      for format, document in formats
    ]

  def seeds(self) -> Iterator[Seed]:
    lines = b'one line\n\n \nanother, \xc3\xa4\r\nits end\n\n\nthe last'
    texts = 'a text', 'a\n\nb', '\ud800', '', 'the same', 'the same'
    objects = [json.dumps({'text': text, 'n': 1 << 70}) for text in texts]
    page = 'WARC/1.0\r\nWARC-Type: {}\r\nContent-Length: {}\r\n\r\n{}\r\n\r\n'
    pages = [
      page.format(kind, len(text), text).encode()
      for kind, text in (
        ('warcinfo', 'about'),
        ('conversion', 'a page\n\nof text'),
        ('conversion', 'another'),
      )
    ]
    contents = ['\n'.join(objects).encode(), b''.join(pages), *[lines] * 3]
    for number, (content, taken) in enumerate(
      zip(contents, (4, 2, 1, 3, 4), strict=True)
    ):
      kind = bytes([number])
      yield Seed(kind + content, taken)
      half = len(content) // 2
      for compress in _COMPRESS:
        yield Seed(kind + compress(content), taken)
        parts = compress(content[:half]), compress(content[half:])
        yield Seed(kind + b''.join(parts), taken)
    streams = b''.join(map(gzip.compress, pages))
    yield Seed(bytes([1]) + streams, 2)
    yield Seed(bytes([1]) + streams + b'bytes behind the end', 2)

  def try_one(self, data: bytes) -> int:
    reading = self._readings[data[0] % len(self._readings) if data else 0]
    data, size = data[1:], 0
    self._path.write_bytes(data)
    found, counts = _read_documents(self._path, reading)
    # Of a few bytes compressed, millions of bytes may come.
    with self._path.open('rb') as raw, contextlib.suppress(InputError):
      for block in read_blocks(raw, 1 << 20):
        size += len(block) if isinstance(block, bytes) else 0
    part = 50 + size // 2_000
    with (
      mock.patch('data.preparing.compressed._PART_BYTES', part),
      mock.patch('data.text.records._BLOCK_BYTES', 4 * part),
      mock.patch('data.text.records.CHUNK_BYTES', 6 * part),
    ):
      in_small_blocks = _read_documents(self._path, reading)
    assert in_small_blocks == (found, counts)
    if reading.document == 'whole':
      _check_counts(found, counts)
    if reading.format == 'jsonl' and counts and not data.startswith(_MAGIC):
      lines = [line for line in data.split(b'\n') if line.strip()]
      assert counts['records'] == len(lines)
    return len(found)


def _read_documents(path, reading):
  """The documents of a file, and their counts; none if it is refused."""
  counts = collections.Counter()
  found = []
  try:
    [one] = inputs.find_inputs([str(path)], reading, lambda name: [name])
    for chunk in records.read_chunks(one, reading):
      found += documents.read_documents(chunk, reading, counts)
  except InputError as error:
    check_sentence(error)
    return [], collections.Counter()
  return found, counts


def _check_counts(found, counts):
  """Every record is a document, or counted as left out."""
  left_out = sum(
    count
    for reason, count in counts.items()
    if reason.startswith(('bad: ', 'filtered: '))
  )
  # This is no record.
  damage = counts['bad: a damaged part of a file']
  assert len(found) + left_out == counts['records'] + damage


class Parquet(Reader):
  """Text in Parquet."""

  def __init__(self, folder: pathlib.Path):
    self._path = folder / 'input'

  def seeds(self) -> Iterator[Seed]:
    texts = ['a text', None, 'another', '', 'a text'] * 3
    types = pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()
    columns = [pyarrow.array(texts, one) for one in types]
    columns.append(columns[0].dictionary_encode())
    compressions = itertools.cycle(['none', 'snappy', 'gzip', 'zstd'])
    for column, compression in zip(columns, compressions, strict=False):
      for version, checksum in (('1.0', False), ('2.0', True)):
        out = io.BytesIO()
        parquet.write_table(
          pyarrow.table({'id': range(len(texts)), 'text': column}),
          out,
          row_group_size=6,
          compression=compression,
          data_page_version=version,
          write_page_checksum=checksum,
        )
        yield Seed(out.getvalue(), 9)

  def try_one(self, data: bytes) -> int:
    self._path.write_bytes(data)
    reading = dataclasses.replace(_READING, format='parquet')
    found, counts = _read_documents(self._path, reading)
    assert _read_documents(self._path, reading) == (found, counts)
    _check_counts(found, counts)
    return len(found)


class Clicks(Reader):
  """A click log, compressed or not."""

  def __init__(self, folder: pathlib.Path):
    self._path = folder / 'input'

  def seeds(self) -> Iterator[Seed]:
    fields = ['1', '', '-2', '0', '2147483647', *'345678', '', '9']
    fields += ['68fd1e64', '', 'ABCDEF01', '1', '0' * 8, *'2' * 21]
    line = '\t'.join(['1', *fields]).encode()
    good = b'\n'.join([line, b'0' + line[1:], line + b'\r', line, b''])
    bad = b'\n'.join([line, b'2' + line[1:], line[:-2], b'', line, b'x'])
    for content, taken in ((good, 4), (bad, 2)):
      yield Seed(content, taken)
      yield Seed(content[:-1], taken)
      for compress in _COMPRESS:
        yield Seed(compress(content), taken)
        yield Seed(compress(content + b'\n') + compress(content), 2 * taken)
        yield Seed(compress(content) + b'bytes behind the end', taken)

  def try_one(self, data: bytes) -> int:
    self._path.write_bytes(data)
    found = self._read()
    with (
      mock.patch('data.preparing.compressed._PART_BYTES', 50),
      mock.patch('data.clicks.log._BLOCK_BYTES', 200),
      mock.patch('data.clicks.log.CHUNK_BYTES', 100),
    ):
      assert self._read() == found
    return len(found[0]) if found else 0

  def _read(self):
    """Rows and malformed lines, or None if it is refused."""
    rows, malformed = [], []
    try:
      [one] = log.find_inputs([str(self._path)], lambda name: [name])
      for chunk in log.read_chunks(one):
        parsed, bad = log.parse(chunk.data, chunk.first_line)
        malformed += bad
        left_out = {one.line for one in bad}
        lines = chunk.data.split(b'\n')
        if not lines[-1]:
          del lines[-1]
        good = [
          line
          for number, line in enumerate(lines, start=chunk.first_line)
          if number not in left_out
        ]
        assert len(good) + len(bad) == len(lines)
        assert _tuples(parsed) == list(map(_in_python, good))
        rows += _tuples(parsed)
    except InputError as error:
      check_sentence(error)
      return None
    return rows, malformed


def _tuples(rows):
  """Label, integers and categories of each row; −1 for a missing category."""
  categories = np.where(rows.there, rows.categories.astype(np.int64), -1)
  columns = rows.labels, rows.integers.T, categories.T
  return list(zip(*(column.tolist() for column in columns), strict=True))


def _in_python(line):
  """The same of a good line, without Arrow."""
  label, *fields = line.removesuffix(b'\r').decode().split('\t')
  integers = fields[: log.NUM_INTEGERS]
  categories = fields[log.NUM_INTEGERS :]
  return (
    int(label),
    [int(one) if one else log.MISSING for one in integers],
    [int(one, 16) if one else -1 for one in categories],
  )


class Run(Reader):
  """A `run.json`: damaged bytes, or other JSON without a checksum."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    first = json.loads(next(self.seeds()).data)
    self._another = {**first, 'config_hash': 'another'}

  def seeds(self) -> Iterator[Seed]:
    version = {
      'config_file': {'module': None, 'path': 'a.py', 'sha256': 'a'},
      'code': 'a',
      'commit': 'b',
      'dirty': False,
      'packages': {},
      'device': {'count': 1},
    }
    for name in ('imagenet_codistill', 'lm_codistill', 'mixed_members'):
      run = {
        'schema': 1,
        'experiment': name,
        'variant': 'smoke',
        'member': None,
        'status': 'running',
        'seed': 0,
        'config': config.load(f'{name}:smoke').to_dict(),
        'overrides': {},
        'config_hash': 'c',
        **version,
        'started': '2026-11-28T12:00:00+00:00',
        'data': {'fingerprint': 'd'},
        'diverged': {'1': {'step': 3}},
        'resumed': [{**version, 'changed': {}}],
        'taught_by': {'started': ['e'], 'config_hash': 'f'},
      }
      yield Seed(json.dumps(run).encode(), 1)

  def try_one(self, data: bytes) -> int:
    (self._folder / 'run.json').write_bytes(data)
    try:
      run = runs.some_run(runs.read_runs(self._folder))
    except UserError as error:
      check_sentence(error)
      return 0
    runs.reference_of(run)
    runs.commit_of(run)
    runs.identity_of(self._folder)
    with contextlib.suppress(UserError):
      opened = workdir.open_workdir(
        self._folder,
        self._another,
        member=None,
        overwrite=False,
        allow_code_change=False,
      )
      opened.check_data('another')
      opened.check_teachers({'started': ['g'], 'config_hash': 'h'})
    out, err = io.StringIO(), io.StringIO()
    with (
      contextlib.redirect_stdout(out),
      contextlib.redirect_stderr(err),
      mock.patch('scripts.status._SECOND_LOOK_S', 0),
    ):
      failed = status.main([str(self._folder)])
    if failed:
      check_sentence(err.getvalue().removesuffix('\n'))
    return 1 - failed

  def mutate(self, data: bytes, seed: int) -> bytes | None:
    """Puts another value somewhere into the JSON, or takes one away."""
    draw = random.Random(seed)
    if not draw.randrange(4):
      return None
    try:
      run = json.loads(data)
      places = _places(run)
      holder, key = draw.choice(places)
      match draw.randrange(4):
        case 0:
          del holder[key]
        case 1:
          other, there = draw.choice(places)
          holder[key] = other[there]
        case _:
          holder[key] = draw.choice(_VALUES)
      return json.dumps(run).encode()
    # It is no JSON, has no place, or would be within itself.
    except (ValueError, RecursionError, IndexError):
      return None


_VALUES = (
  *(None, True, False, 0, -1, 3, 1 << 70, 0.5, float('nan'), float('inf')),
  *('', 'none', 'abc', '\ud800', '\0', '/', '3', [], {}, [None], {'': None}),
)


def _places(content):
  """Where values are: (dictionary or list, key), at any depth."""
  found = []
  waiting = [content] if isinstance(content, (dict, list)) else []
  while waiting:
    one = waiting.pop()
    keys = one if isinstance(one, dict) else range(len(one))
    found += [(one, key) for key in keys]
    waiting += [one[key] for key in keys if isinstance(one[key], (dict, list))]
  return found

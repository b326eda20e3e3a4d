import bz2
import collections
import gzip
import json
import lzma
import random

import pytest

from data.preparing.compressed import InputError
from data.text import inputs, records
from data.text.documents import read_documents
from data.text.inputs import Reading

WORDS = ['the', 'cat', 'sat', 'on', 'a', 'mat', 'and', 'saw', 'that', 'rats']


def reading_of(format, **changes):
  arguments = {
    'document': 'whole',
    'text_key': 'text',
    'data_dir': None,
    'language': None,
    'min_language_probability': 0.9,
    'min_paragraph_words': 0,
    'min_paragraphs': 1,
  }
  return Reading(format=format, **(arguments | changes))


def find(reading, *paths):
  return inputs.find_inputs(
    list(map(str, paths)), reading, lambda pattern: [pattern]
  )


def read(reading, *paths):
  """All documents of all files, and what became of the others."""
  counts, texts = collections.Counter(), []
  for one in find(reading, *paths):
    for chunk in records.read_chunks(one, reading):
      texts += read_documents(chunk, reading, counts)
  return texts, dict(counts)


def write_texts(count, seed=0):
  rng = random.Random(seed)
  return [
    f'{number} ' + ' '.join(rng.choices(WORDS, k=rng.randrange(1, 60)))
    for number in range(count)
  ]


def jsonl(texts):
  return b''.join(json.dumps({'text': text}).encode() + b'\n' for text in texts)


def wet_record(text, kind='conversion', headers=''):
  content = text if isinstance(text, bytes) else text.encode()
  return (
    (
      f'WARC/1.0\r\nWARC-Type: {kind}\r\n{headers}'
      'WARC-Target-URI: http://a.example/\r\n'
      'WARC-Date: 2017-06-22T10:00:00Z\r\n'
      'WARC-Record-ID: <urn:uuid:12345678-1234-1234-1234-123456789012>\r\n'
      'Content-Type: text/plain\r\n'
      f'Content-Length: {len(content)}\r\n\r\n'
    ).encode()
    + content
    + b'\r\n\r\n'
  )


def wet(texts):
  return wet_record('software: x', 'warcinfo') + b''.join(
    map(wet_record, texts)
  )


def write_parquet(path, texts, column='text', **options):
  import pyarrow
  from pyarrow import parquet

  parquet.write_table(pyarrow.table({column: texts}), path, **options)
  return path


@pytest.fixture
def small_chunks(monkeypatch):
  monkeypatch.setattr(records, 'CHUNK_BYTES', 500)
  monkeypatch.setattr(records, '_BLOCK_BYTES', 128)
  monkeypatch.setattr(records, '_ROWS', 7)


COMPRESSIONS = {
  'plain': bytes,
  'gzip': gzip.compress,
  'gzip of records': lambda content: b''.join(
    gzip.compress(content[i : i + 100]) for i in range(0, len(content), 100)
  ),
  'bzip2': bz2.compress,
  'xz': lzma.compress,
}
FORMATS = {
  'jsonl': (reading_of('jsonl'), jsonl),
  'line': (
    reading_of('txt', document='line'),
    lambda texts: '\n'.join(texts).encode(),
  ),
  'blank-line': (
    reading_of('txt', document='blank-line'),
    lambda texts: '\n \t\n\n'.join(texts).encode(),
  ),
  'wet': (reading_of('wet'), wet),
}


@pytest.mark.parametrize('compression', COMPRESSIONS)
@pytest.mark.parametrize('format', FORMATS)
def test_chunks_lose_nothing(format, compression, small_chunks, tmp_path):
  reading, write = FORMATS[format]
  texts = write_texts(40)
  if format in ('jsonl', 'blank-line', 'wet'):
    texts[3] += '\n  with\nlines'
  path = tmp_path / 'file'
  path.write_bytes(COMPRESSIONS[compression](write(texts)))
  found, counts = read(reading, path)
  assert found == texts
  assert counts == {'records': 40}
  [one] = find(reading, path)
  chunks = list(records.read_chunks(one, reading))
  assert len(chunks) > 5
  assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
  # From anywhere the same chunks, in whatever pieces the file was read.
  assert list(records.read_chunks(one, reading, 4)) == chunks[4:]
  positions = [chunk.position for chunk in chunks]
  assert positions == sorted(positions)
  assert positions[-1] <= one.size


def test_a_parquet_row_group_is_a_chunk(tmp_path, small_chunks):
  texts = write_texts(40)
  reading = reading_of('parquet', text_key='body')
  path = write_parquet(
    tmp_path / 'file', [*texts, None], 'body', row_group_size=9
  )
  found, counts = read(reading, path)
  assert found == texts
  assert counts == {'records': 41, 'bad: the text is not a string': 1}
  [one] = find(reading, path)
  assert len(list(records.read_chunks(one, reading))) == 5
  assert [c.number for c in records.read_chunks(one, reading, 3)] == [
    3,
    4,
  ]


def test_a_damaged_row_group_is_counted(tmp_path, small_chunks):
  from pyarrow import parquet

  texts = write_texts(40)
  path = write_parquet(tmp_path / 'file', texts, row_group_size=10)
  with parquet.ParquetFile(path) as file:
    start = file.metadata.row_group(1).column(0).dictionary_page_offset
  content = bytearray(path.read_bytes())
  content[start : start + 50] = b'\xff' * 50
  path.write_bytes(content)
  found, counts = read(reading_of('parquet'), path)
  assert found == texts[:10] + texts[20:]
  assert counts == {'records': 31, 'bad: a damaged row group': 1}


def test_a_file_is_a_document(tmp_path, small_chunks):
  text = '\n\n'.join(write_texts(40))
  (tmp_path / 'a').write_text(text)
  (tmp_path / 'b').write_bytes(gzip.compress(b'b\n'))
  found, _ = read(reading_of('txt'), tmp_path / 'a', tmp_path / 'b')
  assert sorted(found) == sorted([text, 'b\n'])


@pytest.mark.parametrize(
  ('document', 'wanted'),
  [
    ('whole', ['One.\ntwo\n \n\nthree\n', 'four']),
    ('blank-line', ['One.\ntwo', 'three', 'four']),
    ('line', ['One.', 'two', 'three', 'four']),
  ],
)
def test_records_may_be_several_documents(document, wanted, tmp_path):
  path = tmp_path / 'file'
  path.write_bytes(jsonl(['One.\ntwo\n \n\nthree\n', 'four']))
  reading = reading_of('jsonl', document=document)
  found, counts = read(reading, path)
  assert found == wanted
  assert counts['records'] == 2


@pytest.mark.parametrize(
  ('line', 'reason'),
  [
    (b'{"text": "a', 'not JSON'),
    (b'[' * 100_000, 'not JSON'),
    (b'"text"', 'not a JSON object'),
    (b'{"body": "a"}', "nothing under 'text'"),
    (b'{"text": 3}', 'the text is not a string'),
    (b'{"text": null}', 'the text is not a string'),
    (b'{"text": "\xff"}', 'not UTF-8'),
    (b'{"text": "\\ud83d"}', 'half of a surrogate pair'),
  ],
)
def test_bad_lines_are_counted_and_skipped(line, reason, tmp_path):
  path = tmp_path / 'file'
  path.write_bytes(jsonl(['a']) + line + b'\n\n' + jsonl(['b']))
  found, counts = read(reading_of('jsonl'), path)
  assert found == ['a', 'b']
  assert counts == {'records': 3, f'bad: {reason}': 1}


def test_empty_documents_are_filtered(tmp_path):
  path = tmp_path / 'file'
  path.write_bytes(jsonl(['', ' \n', 'a']))
  assert read(reading_of('jsonl'), path) == (
    ['a'],
    {'records': 3, 'filtered: empty': 2},
  )


def test_bad_text_is_counted(tmp_path):
  path = tmp_path / 'file'
  path.write_bytes(b'a' * (1 << 20) + b'a\n\xff\nb\n')
  found, counts = read(reading_of('txt', document='line'), path)
  assert [len(text) for text in found] == [(1 << 20) + 1, 1]
  assert counts['bad: not UTF-8'] == 1


@pytest.mark.parametrize(
  'bad',
  [
    b'rubbish\r\n\r\n',
    b'WARC/1.0\r\nWARC-Type: conversion\r\n\r\nno length\r\n\r\n',
    b'WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: x\r\n\r\n\r\n\r\n',
  ],
)
def test_bad_records_do_not_cost_those_around_them(bad, tmp_path, small_chunks):
  texts = write_texts(30)
  path = tmp_path / 'file'
  path.write_bytes(wet(texts[:10]) + bad + wet(texts[10:]))
  found, counts = read(reading_of('wet'), path)
  assert found == texts
  assert counts == {'records': 31, 'bad: not a whole WARC record': 1}


def test_a_record_may_speak_of_records(tmp_path, small_chunks):
  texts = ['one', wet(['inner', 'other']).decode(), 'three\r\n\r\n', 'four']
  path = tmp_path / 'file'
  path.write_bytes(wet(texts))
  assert read(reading_of('wet'), path)[0] == texts


def test_other_records_are_no_documents(tmp_path):
  path = tmp_path / 'file'
  path.write_bytes(
    wet(['a']) + wet_record('b', 'metadata') + wet_record(b'\xff')
  )
  assert read(reading_of('wet'), path) == (
    ['a'],
    {'records': 2, 'bad: not UTF-8': 1},
  )


@pytest.mark.parametrize('format', FORMATS)
def test_a_file_that_ends_too_early_keeps_what_is_whole(
  format, tmp_path, small_chunks
):
  reading, write = FORMATS[format]
  texts = write_texts(400)
  path = tmp_path / 'file'
  content = gzip.compress(write(texts))
  path.write_bytes(content[: len(content) // 2])
  found, counts = read(reading, path)
  assert 20 < len(found) < 400
  assert found == texts[: len(found)]
  assert counts['bad: the file is damaged from here on'] == 1
  assert sum(counts.values()) == len(found) + 1


def test_a_wet_that_is_cut_off_counts_its_last_record(tmp_path):
  path = tmp_path / 'file'
  path.write_bytes(wet(['a', 'b' * 50])[:-20])
  assert read(reading_of('wet'), path) == (
    ['a'],
    {'records': 2, 'bad: not a whole WARC record': 1},
  )


def test_a_record_too_large_for_memory_is_refused(
  tmp_path, small_chunks, monkeypatch
):
  monkeypatch.setattr(records, 'MAX_RECORD_BYTES', 2_000)
  path = tmp_path / 'file'
  path.write_text('a' * 5_000)
  with pytest.raises(InputError, match='has a record of more than'):
    read(reading_of('txt'), path)


# What is said of files that are something else.


@pytest.mark.parametrize(
  ('format', 'content', 'sentence'),
  [
    (
      'jsonl',
      b'Once upon a time\n',
      'is not jsonl: its first line is not JSON',
    ),
    ('jsonl', b'["a"]\n', 'its first line is not a JSON object'),
    (
      'jsonl',
      b'{"body": "a", "url": "b"}',
      "under 'text', but body, url; name",
    ),
    ('jsonl', wet(['a']), 'it is WARC or WET'),
    ('jsonl', b'PAR1aaa', 'it is Parquet'),
    ('txt', b'a\0b', 'it has bytes of zero'),
    ('txt', b'caf\xe9 and more', 'byte 3 is not UTF-8'),
    ('txt', gzip.compress(wet(['a'])), 'is not txt: it is WARC or WET'),
    ('wet', jsonl(['a']), 'it does not start with a WARC record'),
    (
      'wet',
      wet_record('a', 'response'),
      'are of type response, not conversion',
    ),
    (
      'wet',
      wet([]) + wet_record('a', 'request') + wet_record('a', 'response'),
      'it is a WARC of whole pages',
    ),
    ('parquet', jsonl(['a']), 'is not parquet: its end does not say so'),
    ('jsonl', b'\x1f\x8bnonsense', 'it cannot be decompressed'),
    (
      'jsonl',
      b'\x28\xb5\x2f\xfd',
      'is compressed with zstd, which is not read',
    ),
  ],
)
def test_another_format_is_one_sentence(format, content, sentence, tmp_path):
  path = tmp_path / 'file'
  path.write_bytes(content)
  with pytest.raises(InputError, match=sentence) as caught:
    find(reading_of(format), path)
  assert '\n' not in str(caught.value)
  assert str(path) in str(caught.value)


def test_a_parquet_column_that_is_not_text_is_named(tmp_path):
  path = write_parquet(tmp_path / 'file', [1, 2], 'number')
  with pytest.raises(InputError, match="has no column 'text', but number"):
    find(reading_of('parquet'), path)
  with pytest.raises(InputError, match='holds int64, not strings'):
    find(reading_of('parquet', text_key='number'), path)


def test_a_pattern_that_names_nothing_is_named(tmp_path):
  with pytest.raises(InputError, match=r'There is no file .*nothing\.txt'):
    find(reading_of('txt'), tmp_path / 'nothing.txt')


def test_some_bad_lines_at_the_start_are_not_another_format(tmp_path):
  path = tmp_path / 'file'
  path.write_bytes(b'rubbish\n' + jsonl(['a']))
  assert read(reading_of('jsonl'), path)[0] == ['a']


def test_names_and_order_of_files_do_not_matter(tmp_path):
  reading = reading_of('txt')
  for name, content in (('a', 'one'), ('b', 'two'), ('c', 'three')):
    (tmp_path / name).write_text(content)
  first = [
    one.key for one in find(reading, *(tmp_path / n for n in ('a', 'b', 'c')))
  ]
  (tmp_path / 'a').rename(tmp_path / 'z')
  again = [
    # The same file twice is one input.
    one.key
    for one in find(reading, *(tmp_path / n for n in ('z', 'c', 'b', 'z')))
  ]
  assert first == again


# The filter.

LONG = (
  'The committee met on Thursday evening in order to discuss how the old '
  'library might be kept open for the children of the town during the winter.'
)
GERMAN = (
  'Der Ausschuss traf sich am Donnerstagabend, um zu besprechen, wie die alte '
  'Bibliothek für die Kinder der Stadt im Winter geöffnet bleiben kann.'
)
WET = reading_of('wet', language='en', min_paragraph_words=20)


@pytest.mark.parametrize(
  ('text', 'kept', 'reason'),
  [
    (f'Home\nAbout us\n{LONG}\nImprint', LONG, None),
    (f'{LONG}\nHome\n{LONG}', f'{LONG}\n{LONG}', None),
    ('Home\nAbout us\nImprint', None, 'too few long paragraphs'),
    (f'{GERMAN} {GERMAN}', None, 'not en'),
  ],
)
def test_english_documents_with_long_paragraphs_stay(
  text, kept, reason, tmp_path
):
  path = tmp_path / 'file'
  path.write_bytes(wet([text]))
  found, counts = read(WET, path)
  assert found == ([kept] if kept else [])
  assert counts.get(f'filtered: {reason}', 0) == (reason is not None)


def test_thresholds_are_options(tmp_path):
  path = tmp_path / 'file'
  path.write_bytes(wet([f'Home\n{LONG}']))
  for changes, count in (
    ({'min_paragraphs': 2}, 0),
    ({'min_paragraph_words': 40}, 0),
    ({'language': 'de'}, 0),
    ({'language': None}, 1),
    ({'min_language_probability': 1.1}, 0),
  ):
    reading = reading_of(
      'wet', **({'language': 'en', 'min_paragraph_words': 20} | changes)
    )
    assert len(read(reading, path)[0]) == count


def test_other_formats_are_left_as_they_are(tmp_path):
  path = tmp_path / 'file'
  path.write_bytes(jsonl(['Home\n\n', GERMAN]))
  assert read(reading_of('jsonl'), path)[0] == ['Home\n\n', GERMAN]


# TFDS.


def write_tfds(folder, texts, file_format='array_record'):
  """A set in TFDS's form, without TensorFlow."""
  import tensorflow_datasets as tfds
  from array_record.python import array_record_module

  path = folder / 'lm1b' / '1.1.0'
  path.mkdir(parents=True)
  features = tfds.features.FeaturesDict({'text': tfds.features.Text()})
  for split, some in texts.items():
    file = path / f'lm1b-{split}.{file_format}-00000-of-00001'
    writer = array_record_module.ArrayRecordWriter(str(file), 'group_size:1')
    for one in some:
      writer.write(features.serialize_example({'text': one}))
    writer.close()
  features.save_config(path)
  info = {
    'name': 'lm1b',
    'version': '1.1.0',
    'fileFormat': file_format,
    'splits': [
      {
        'name': split,
        'shardLengths': [str(len(some))],
        'numBytes': '1',
        'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
      }
      for split, some in texts.items()
    ],
  }
  (path / 'dataset_info.json').write_text(json.dumps(info))


@pytest.fixture
def no_sets_kept():
  inputs.tfds_source.cache_clear()
  yield
  inputs.tfds_source.cache_clear()


def test_a_prepared_set_is_read(tmp_path, small_chunks, no_sets_kept):
  texts = write_texts(23)
  write_tfds(tmp_path, {'train': texts[:20], 'test': texts[20:]})
  reading = reading_of('tfds', data_dir=str(tmp_path))
  for pattern, wanted in (
    ('lm1b', texts[:20]),
    ('lm1b[train]', texts[:20]),
    ('lm1b:1.1.0[test]', texts[20:]),
    ('lm1b[train[:50%]]', texts[:10]),
  ):
    assert read(reading, pattern)[0] == wanted


@pytest.mark.parametrize(
  ('pattern', 'changes', 'sentence'),
  [
    (
      'tiny_shakespeare',
      {},
      'tiny_shakespeare is not prepared in .*: run `pyt',
    ),
    ('no_such_set', {}, "no set called 'no_such_set'"),
    ('lm1b[validation]', {}, "no split 'validation', but train"),
    ('lm1b', {'text_key': 'body'}, "no text under 'body', but text"),
  ],
)
def test_a_set_that_is_not_there_is_one_sentence(
  pattern, changes, sentence, tmp_path, no_sets_kept
):
  write_tfds(tmp_path, {'train': ['a']})
  reading = reading_of('tfds', data_dir=str(tmp_path), **changes)
  with pytest.raises(InputError, match=sentence):
    find(reading, pattern)


def test_a_set_in_another_form_is_one_sentence(tmp_path, no_sets_kept):
  write_tfds(tmp_path, {'train': ['a']}, file_format='tfrecord')
  with pytest.raises(InputError, match='as tfrecord, not as array_record'):
    find(reading_of('tfds', data_dir=str(tmp_path)), 'lm1b')

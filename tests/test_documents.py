import bz2
import collections
import dataclasses
import gzip
import json
import lzma
import random

import pytest
from preparations import write_tfds

from data.preparing.compressed import InputError, file_input
from data.text import inputs, records
from data.text.documents import read_documents
from data.text.inputs import Reading
from data.text.records import read_chunks

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
  return inputs.find_inputs([*map(str, paths)], reading, lambda name: [name])


def read(reading, *paths):
  """All documents of all files, and counts of the others."""
  counts, texts = collections.Counter(), []
  for one in find(reading, *paths):
    for chunk in read_chunks(one, reading):
      texts += read_documents(chunk, reading, counts)
  return texts, dict(counts)


def write_texts(count):
  rng = random.Random(0)
  return [
    f'{number} ' + ' '.join(rng.choices(WORDS, k=rng.randrange(1, 60)))
    for number in range(count)
  ]


def jsonl(texts):
  return b''.join(json.dumps({'text': text}).encode() + b'\n' for text in texts)


def wet_record(text, kind='conversion'):
  content = text if isinstance(text, bytes) else text.encode()
  head = (
    f'WARC/1.0\r\nWARC-Type: {kind}\r\n'
    'WARC-Target-URI: http://a.example/\r\n'
    'WARC-Date: 2017-06-22T10:00:00Z\r\n'
    'WARC-Record-ID: <urn:uuid:12345678-1234-1234-1234-123456789012>\r\n'
    f'Content-Type: text/plain\r\nContent-Length: {len(content)}\r\n\r\n'
  )
  return head.encode() + content + b'\r\n\r\n'


def wet(texts):
  first = wet_record('software: x', 'warcinfo')
  return first + b''.join(map(wet_record, texts))


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


@pytest.fixture
def file(tmp_path):
  """A function that writes bytes to a file, the same one every time."""

  def write(content):
    (tmp_path / 'file').write_bytes(content)
    return tmp_path / 'file'

  return write


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


@pytest.mark.parametrize('format', FORMATS)
def test_chunks_lose_nothing(format, small_chunks, file):
  reading, write = FORMATS[format]
  texts = write_texts(40)
  if format in ('jsonl', 'blank-line', 'wet'):
    texts[3] += '\n  with\nlines'
  for compress in COMPRESSIONS.values():
    path = file(compress(write(texts)))
    assert read(reading, path) == (texts, {'records': 40})
    [one] = find(reading, path)
    chunks = list(read_chunks(one, reading))
    assert len(chunks) > 5
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    # From any start come the same chunks, and from reads of any size.
    assert list(read_chunks(one, reading, 4)) == chunks[4:]
    positions = [chunk.position for chunk in chunks]
    assert positions == sorted(positions)
    assert positions[-1] <= one.size
  # A file that ends too early keeps its whole records.
  texts = write_texts(400)
  content = gzip.compress(write(texts))
  found, counts = read(reading, file(content[: len(content) // 2]))
  assert 20 < len(found) < 400
  assert found == texts[: len(found)]
  assert counts['bad: a damaged part of a file'] == 1
  assert sum(counts.values()) == len(found) + 1


def test_parquet_with_any_byte_damaged_is_counted_or_refused(file):
  import pyarrow

  values = pyarrow.array(['a', 'b', 'a', 'c']).dictionary_encode()
  options = {'store_schema': False, 'write_statistics': False}
  checked = {'write_page_checksum': True, 'compression': 'none'}
  path = write_parquet(file(b''), values, **options, **checked)
  whole = path.read_bytes()
  found = collections.Counter()
  for position in range(len(whole)):
    damaged = bytearray(whole)
    damaged[position] ^= 0xFF
    try:
      texts, counts = read(reading_of('parquet'), file(damaged))
    except InputError:
      found['refused'] += 1
    else:
      found['counted'] += any(name.startswith('bad') for name in counts)
      # These bytes have no checksum, but the text is never another one.
      assert set(texts) <= set('abc')
  assert min(found['refused'], found['counted']) > 50


def test_a_parquet_row_group_is_a_chunk(tmp_path, small_chunks):
  import pyarrow
  from pyarrow import parquet

  texts = write_texts(40)
  reading = reading_of('parquet', text_key='body')
  rows = [*texts, None]
  path = write_parquet(tmp_path / 'file', rows, 'body', row_group_size=9)
  counts = {'records': 41, 'bad: the text is not a string': 1}
  assert read(reading, path) == (texts, counts)
  [one] = find(reading, path)
  assert len(list(read_chunks(one, reading))) == 5
  assert [c.number for c in read_chunks(one, reading, 3)] == [3, 4]
  # Text is text in any type of column.
  for column in (
    pyarrow.array(texts, pyarrow.string_view()),
    pyarrow.array(texts).dictionary_encode(),
  ):
    assert read(reading, write_parquet(path, column, 'body'))[0] == texts
  twice = pyarrow.table([texts, texts], ['body', 'body'])
  parquet.write_table(twice, path)
  with pytest.raises(InputError, match="has 2 columns 'body': rename"):
    find(reading, path)
  write_parquet(path, rows, 'body', row_group_size=9)
  # A damaged one is counted.
  with parquet.ParquetFile(path) as file:
    start = file.metadata.row_group(1).column(0).dictionary_page_offset
  with open(path, 'r+b') as file:
    file.seek(start)
    file.write(b'\xff' * 50)
  found, counts = read(reading, path)
  assert found == texts[:9] + texts[18:]
  assert counts['bad: a damaged row group'] == 1


def test_records_may_be_several_documents(file):
  whole = ['One.\ntwo\n \n\nthree\n', 'four']
  path = file(jsonl(whole))
  for document, wanted in (
    ('whole', whole),
    ('blank-line', ['One.\ntwo', 'three', 'four']),
    ('line', ['One.', 'two', 'three', 'four']),
  ):
    found, counts = read(reading_of('jsonl', document=document), path)
    assert found == wanted
    assert counts['records'] == 2
  # Some bad lines at the start are not another format.
  path = file(b'rubbish\n' + jsonl(['a']))
  assert read(reading_of('jsonl'), path)[0] == ['a']


@pytest.mark.parametrize('ends', ['', ' \t', 'more'])
def test_a_megabyte_of_empty_lines_is_read_at_once(ends, file):
  """An expression that tries a run again at each of its lines takes days."""
  empty = '\n' + ' \n\n' * 500_000
  path = file(f'{empty}  one\ntwo {empty}three{empty}{ends}'.encode())
  found, counts = read(reading_of('txt', document='blank-line'), path)
  assert found == ['  one\ntwo ', 'three', *filter(str.strip, [ends])]
  assert counts['records'] == len(found)


def test_a_chunk_of_empty_lines_is_no_record(file, small_chunks):
  one = 'one' * 200
  path = file(b'\n' * 700 + f'{one}\n\ntwo'.encode())
  found, counts = read(reading_of('txt', document='blank-line'), path)
  assert (found, counts) == ([one, 'two'], {'records': 2})


WHOLE = 'bad: not a whole WARC record'


@pytest.mark.parametrize(
  ('format', 'bad', 'reason'),
  [
    ('jsonl', b'{"text": "a\n', 'bad: not JSON'),
    ('jsonl', b'[' * 100_000 + b'\n', 'bad: not JSON'),
    ('jsonl', b'"text"\n', 'bad: not a JSON object'),
    ('jsonl', b'{"body": "a"}\n', "bad: nothing under 'text'"),
    ('jsonl', b'{"text": 3}\n', 'bad: the text is not a string'),
    ('jsonl', b'{"text": null}\n \n', 'bad: the text is not a string'),
    ('jsonl', b'{"text": "\xff"}\n', 'bad: not UTF-8'),
    ('jsonl', b'{"text": "\\ud83d"}\n', 'bad: half of a surrogate pair'),
    ('jsonl', jsonl(['']), 'filtered: empty'),
    ('jsonl', jsonl([' \n']), 'filtered: empty'),
    ('line', b'\xff\n', 'bad: not UTF-8'),
    ('wet', wet_record(b'\xff'), 'bad: not UTF-8'),
    ('wet', b'rubbish\r\n\r\n', WHOLE),
    ('wet', b'WARC/1.0\r\nWARC-Type: conversion\r\n\r\nno\r\n\r\n', WHOLE),
    ('wet', b'WARC/1.1\r\nContent-Length: x\r\n\r\n\r\n\r\n', WHOLE),
    ('wet', b'WARC/1.1\r\nContent-Length:%b\r\n\r\n' % (b'9' * 5_000), WHOLE),
  ],
)
def test_bad_records_do_not_cost_those_around_them(
  format, bad, reason, file, small_chunks
):
  reading, write = FORMATS[format]
  # They are longer than the part that is looked at before a file is read.
  texts = ['a' * (1 << 16), *write_texts(30)]
  end = b'\n' if format == 'line' else b''
  path = file(write(texts[:10]) + end + bad + write(texts[10:]))
  assert read(reading, path) == (texts, {'records': 32, reason: 1})


def test_which_records_of_a_wet_are_documents(file, small_chunks, monkeypatch):
  # A record may speak of records.
  texts = ['one', wet(['inner', 'other']).decode(), 'three\r\n\r\n', 'four']
  content = wet(texts) + wet_record('b', 'metadata')
  assert read(reading_of('wet'), file(content)) == (texts, {'records': 4})
  counts = {'records': 2, WHOLE: 1}
  path = file(wet(['a', 'b' * 50])[:-20])
  assert read(reading_of('wet'), path) == (['a'], counts)
  # One too large for memory is refused.
  monkeypatch.setattr(records, 'MAX_RECORD_BYTES', 2_000)
  with pytest.raises(InputError, match='has a record of more than'):
    read(reading_of('txt'), file(b'a' * 5_000))


@pytest.mark.parametrize('document', ['line', 'blank-line', 'whole'])
def test_texts_of_windows_are_the_same_texts(document, file):
  reading = reading_of('txt', document=document)
  text = 'one\n\ntwo\nthree\n'
  plain = read(reading, file(text.encode()))
  for other in (
    text.encode('utf-8-sig'),
    text.replace('\n', '\r\n').encode(),
    text.replace('\n', '\r\n').encode('utf-8-sig'),
  ):
    assert read(reading, file(other)) == plain


@pytest.mark.parametrize('format', ['jsonl', 'line', 'blank-line', 'wet'])
@pytest.mark.parametrize('block', [128, 1 << 20])
def test_damage_costs_what_is_damaged(format, block, file, monkeypatch):
  monkeypatch.setattr(records, '_BLOCK_BYTES', block)
  reading, write = FORMATS[format]
  texts = write_texts(90)
  # Bytes after the end of a file may be anything: no data are lost.
  found, counts = read(reading, file(gzip.compress(write(texts)) + b'garbage'))
  note = 'note: a file has bytes behind its end'
  assert (found, counts) == (texts, {'records': 90, note: 1})
  # Each third is a stream of its own; the second one's checksum is wrong.
  ends = {'line': b'\n', 'blank-line': b'\n\n'}.get(format, b'')
  parts = [write(texts[at : at + 30]) + ends for at in (0, 30, 60)]
  first, second, third = map(gzip.compress, parts)
  second = second[:-8] + bytes([second[-8] ^ 1]) + second[-7:]
  found, counts = read(reading, file(first + second + third))
  # In text, nobody knows what the third begins in, nor whether the paragraph
  # before goes on.
  before = texts[: 60 - (format == 'blank-line')]
  assert found == before + texts[60 + (format in ('line', 'blank-line')) :]
  assert counts == {'records': len(found), 'bad: a damaged part of a file': 1}


def test_some_records_of_a_file_may_lack_text(file):
  texts = write_texts(5)
  lines = b'{"note": "of this file"}\n{"id": 0, "text": null}\n' + jsonl(texts)
  lines += b'{"id": %s, "text": "long"}\n' % (b'1' * 5_000)
  found, counts = read(reading_of('jsonl'), file(lines))
  assert found == [*texts, 'long']
  assert counts['records'] == 8


# Messages about files in another format.

PAGES = wet([]) + wet_record('a', 'request') + wet_record('a', 'response')


@pytest.mark.parametrize(
  ('format', 'content', 'sentence'),
  [
    ('jsonl', b'Once upon\n', 'is not jsonl: its first line is not JSON'),
    ('jsonl', b'["a"]\n', 'its first line is not a JSON object'),
    ('jsonl', b'{"body": "", "b": 1}', "under 'text', but 'body', 'b'; name"),
    ('jsonl', b'{"a": 1}\n{"b": 1}\n{}', "under 'text', but 'a', 'b'; name"),
    ('jsonl', b'{"\\n\\u001b": 1}', r"under 'text', but '\\n\\x1b'; name"),
    ('jsonl', b'{}\n{}', "no text under 'text', but nothing; name"),
    ('jsonl', wet(['a']), 'it is WARC or WET'),
    ('jsonl', b'PAR1aaa', 'it is Parquet'),
    ('txt', b'a\0b', 'it has bytes of zero'),
    ('txt', b'caf\xe9 and more', 'byte 3 is not UTF-8'),
    ('txt', gzip.compress(wet(['a'])), 'is not txt: it is WARC or WET'),
    ('wet', jsonl(['a']), 'it does not start with a WARC record'),
    ('wet', wet_record('a', 'response'), 'of type response, not conversion'),
    ('wet', PAGES, 'it is a WARC of whole pages'),
    (
      'parquet',
      jsonl(['a']),
      'is not parquet: it does not end as Parquet does',
    ),
    ('jsonl', b'\x1f\x8bnonsense', 'it cannot be decompressed'),
    ('jsonl', b'\x28\xb5\x2f\xfd', 'is compressed with zstd, which is not sup'),
  ],
)
def test_another_format_is_one_sentence(format, content, sentence, file):
  path = file(content)
  with pytest.raises(InputError, match=sentence) as caught:
    find(reading_of(format), path)
  assert '\n' not in str(caught.value)
  assert str(path) in str(caught.value)


def test_names_and_order_of_files_do_not_matter(tmp_path):
  reading = reading_of('txt')

  def keys(names):
    return [one.key for one in find(reading, *(tmp_path / n for n in names))]

  for name, content in (('a', 'one'), ('b', 'two'), ('c', 'three')):
    (tmp_path / name).write_text(content)
  first = keys('abc')
  (tmp_path / 'a').rename(tmp_path / 'z')
  # The same file twice is one input.
  assert keys('zcbz') == first
  # Old preparations know their files by their first and last bytes.
  (tmp_path / 'c').write_bytes(bytes(range(200)) * 1_000)
  key = file_input(str(tmp_path / 'c')).key
  assert key == 'eb1321ff8ab3b453bd0e17e768516604'
  # A file of text is a document, compressed or not.
  (tmp_path / 'b').write_bytes(gzip.compress(b'two\n\n2\n'))
  found, _ = read(reading, tmp_path / 'z', tmp_path / 'b')
  assert sorted(found) == ['one', 'two\n\n2\n']


# The filter.

LONG = (
  'The committee met on Thursday evening in order to discuss how the old '
  'library might be kept open for the children of the town during the winter.'
)
GERMAN = (
  'Der Ausschuss traf sich am Donnerstagabend, um zu besprechen, wie die alte '
  'Bibliothek für die Kinder der Stadt im Winter geöffnet bleiben kann.'
)


def test_english_documents_with_long_paragraphs_stay(file):
  nothing = {'language': None, 'min_paragraph_words': 0}
  for text, changes, kept, reason in (
    (f'Home\nAbout us\n{LONG}\nImprint', {}, LONG, None),
    (f'{LONG}\nHome\n{LONG}', {}, f'{LONG}\n{LONG}', None),
    ('Home\nAbout us\nImprint', {}, None, 'too few long paragraphs'),
    (f'{GERMAN} {GERMAN}', {}, None, 'not en'),
    (LONG, {'min_paragraphs': 2}, None, 'too few long paragraphs'),
    (LONG, {'min_paragraph_words': 40}, None, 'too few long paragraphs'),
    (LONG, {'language': 'de'}, None, 'not de'),
    (f'{GERMAN} {GERMAN}', {'language': None}, f'{GERMAN} {GERMAN}', None),
    (LONG, {'min_language_probability': 1.1}, None, 'not surely en'),
    # Without a length any line with words is a paragraph, and the text stays.
    (f'a\n\n{LONG}', nothing | {'min_paragraphs': 2}, f'a\n\n{LONG}', None),
    (
      f'{LONG}\n \n',
      nothing | {'min_paragraphs': 2},
      None,
      'too few paragraphs',
    ),
    # Without a filter all of them stay.
    (f'Home\n\n{GERMAN}', nothing, f'Home\n\n{GERMAN}', None),
  ):
    reading = {'language': 'en', 'min_paragraph_words': 20} | changes
    found, counts = read(reading_of('wet', **reading), file(wet([text])))
    assert found == ([kept] if kept else []), (text, changes)
    assert counts.get(f'filtered: {reason}', 0) == (reason is not None)


# TFDS.


def write_set(folder, splits, file_format='array_record'):
  import tensorflow_datasets as tfds

  features = {'text': tfds.features.Text()}
  examples = {
    split: [{'text': text} for text in texts] for split, texts in splits.items()
  }
  write_tfds(folder, 'lm1b', '1.1.0', features, examples, file_format)


def test_a_prepared_set_is_read(tmp_path, small_chunks):
  texts = write_texts(23)
  write_set(tmp_path, {'train': texts[:20], 'test': texts[20:]})
  reading = reading_of('tfds', data_dir=str(tmp_path))
  for pattern, wanted in (
    ('lm1b', texts[:20]),
    ('lm1b[train]', texts[:20]),
    ('lm1b:1.1.0[test]', texts[20:]),
    ('lm1b[train[:50%]]', texts[:10]),
  ):
    assert read(reading, pattern)[0] == wanted
  # A split has several names.
  names = ('lm1b', 'lm1b[train]', 'lm1b:1.1.0[train]')
  assert read(reading, *names)[0] == texts[:20]


def test_a_damaged_set_is_named_and_not_a_part_of_it_read(tmp_path):
  write_set(tmp_path, {'train': write_texts(20)})
  [path] = tmp_path.rglob('*.array_record-*')
  content = bytearray(path.read_bytes())
  content[300] ^= 1
  path.write_bytes(content)
  with pytest.raises(
    InputError, match=r'lm1b\[train\] cannot be read in .*hash'
  ):
    read(reading_of('tfds', data_dir=str(tmp_path)), 'lm1b')


def test_what_cannot_be_read_is_named(tmp_path):
  path = write_parquet(tmp_path / 'file', [1, 2], 'number')
  for form in ('array_record', 'tfrecord'):
    write_set(tmp_path / form, {'train': ['a']}, form)
  prepared = reading_of('tfds', data_dir=str(tmp_path / 'array_record'))
  other = reading_of('tfds', data_dir=str(tmp_path / 'tfrecord'))
  body = dataclasses.replace(prepared, text_key='body')
  for reading, wrong, sentence in (
    (reading_of('parquet'), path, "has no column 'text', but 'number'"),
    (reading_of('parquet', text_key='number'), path, 'int64, not strings'),
    (reading_of('txt'), tmp_path / 'no.txt', r'There is no file .*no\.txt'),
    (prepared, 'tiny_shakespeare', 'is not prepared in .*: run `p'),
    (prepared, 'no_such_set', "no set called 'no_such_set'"),
    (prepared, 'lm1b[validation]', "no split 'validation', but tr"),
    (body, 'lm1b', "no text under 'body', but 'text'"),
    (other, 'lm1b', 'as tfrecord, not as array_record'),
  ):
    with pytest.raises(InputError, match=sentence):
      find(reading, wrong)

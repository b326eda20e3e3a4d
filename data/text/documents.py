"""Documents out of files: text, JSON lines, Parquet, WET and TFDS sets.

Files are read in chunks of a few megabytes that are cut between records, so
that any number of processes can work on one file and nothing larger than a
chunk is in memory. Chunks depend on the files alone, and files come in an order
of their contents, whatever they are called.
"""

from __future__ import annotations

import bz2
import collections
import dataclasses
import functools
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

FORMATS = ('txt', 'jsonl', 'parquet', 'wet', 'tfds', 'builtin')
# What one document is: a whole file or record, or a part of it.
DOCUMENTS = ('whole', 'blank-line', 'line')

# Of bytes that are not compressed: a second or so of work.
CHUNK_BYTES = 4 << 20
MAX_RECORD_BYTES = 1 << 28
_BLOCK_BYTES = 1 << 20
_HEAD_BYTES = 1 << 16
# Records, of formats that are not read as bytes.
_ROWS = 500
# Characters that say enough of a document's language.
_LANGUAGE_SAMPLE = 1_000

_WARC_RECORD = re.compile(rb'WARC/1\.[01]\r?\n')
_BLANK_LINE = re.compile(rb'\r?\n\r?\n')
_WARC_LENGTH = re.compile(rb'\r?\ncontent-length:\s*(\d+)\s*\r?\n', re.I)


class InputError(ValueError):
  """The input is not what it is said to be; the message is for the user."""


class BadRecordError(ValueError):
  """A record is left out; the message is the reason, a few words."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
  """How files become documents.

  Attributes:
    format: one of FORMATS.
    document: one of DOCUMENTS.
    text_key: the field or column of jsonl, parquet and tfds with the text.
    data_dir: where TFDS sets lie; None for TFDS's own default.
    language: documents in another are left out; None for any. ISO 639-1.
    min_language_probability: how sure the language has to be.
    min_paragraph_words: shorter paragraphs are left out of their document; 0
      for none.
    min_paragraphs: documents that have fewer left are left out.
  """

  format: str
  document: str
  text_key: str
  data_dir: str | None
  language: str | None
  min_language_probability: float
  min_paragraph_words: int
  min_paragraphs: int


@dataclasses.dataclass(frozen=True)
class Input:
  """A file, or a split of a set.

  Attributes:
    name: of the file, without its folder; or of the set and split.
    path: where it is; the same as `name` for a set.
    size: bytes of a file, documents of a set.
    key: a hash of its size and of its first and last bytes.
  """

  name: str
  path: str
  size: int
  key: str


@dataclasses.dataclass(frozen=True)
class Chunk:
  """Some records of one input.

  Attributes:
    input: which.
    number: of the chunk within its input.
    data: the records' bytes; empty for formats read by `rows`.
    rows: for parquet the row group, for sets the first record and the one past
      the last.
    position: how much of `input.size` had been read at its end.
    damaged: the file could not be read on after it.
  """

  input: Input
  number: int
  data: bytes
  rows: tuple[int, int]
  position: int
  damaged: bool = False


def find_inputs(
  patterns: Sequence[str], reading: Reading, glob: Callable[[str], list[str]]
) -> list[Input]:
  """All inputs that patterns name, each once, in the order of their keys.

  Args:
    patterns: of files; of TFDS, `NAME` or `NAME[SPLIT]`.
    reading: how they are to be read.
    glob: from a pattern to paths.

  Raises:
    InputError: if a pattern names nothing, or something that is not in the
      format that `reading` says.
  """
  if reading.format == 'builtin':
    from data.text import builtin as builtin_corpus

    count = len(builtin_corpus.documents())
    return [Input('builtin', 'builtin', count, builtin_corpus.FINGERPRINT)]
  if reading.format == 'tfds':
    found = [
      _tfds_input(pattern, reading) for pattern in dict.fromkeys(patterns)
    ]
  else:
    paths = {}
    for pattern in patterns:
      matches = [path for path in glob(pattern) if os.path.isfile(path)]
      if not matches:
        raise InputError(
          f'There is no file {pattern}: check --input, and quote wildcards.'
        )
      paths |= {os.path.realpath(path): path for path in matches}
    found = []
    for path in paths.values():
      check_format(path, reading)
      found.append(file_input(path))
  return sorted(found, key=lambda one: (one.key, one.name))


def file_input(path: str) -> Input:
  """A file as an input, known by its size, its first and its last bytes."""
  size = os.path.getsize(path)
  digest = hashlib.blake2b(f'{size}:'.encode(), digest_size=16)
  with open(path, 'rb') as file:
    digest.update(file.read(_HEAD_BYTES))
    file.seek(max(0, size - _HEAD_BYTES))
    digest.update(file.read())
  return Input(os.path.basename(path), path, size, digest.hexdigest())


# What a file is.


def decompress(raw: io.BufferedReader) -> io.BufferedIOBase:
  """A file to be read decompressed, whatever its name ends in.

  Raises:
    InputError: for a compression that is not read here.
  """
  magic = raw.read(6)
  raw.seek(0)
  if magic.startswith(b'\x1f\x8b'):
    return gzip.GzipFile(fileobj=raw)
  if magic.startswith(b'BZh'):
    return bz2.BZ2File(raw)
  if magic.startswith(b'\xfd7zXZ\x00'):
    return lzma.LZMAFile(raw)
  if magic.startswith(b'\x28\xb5\x2f\xfd'):
    raise InputError(
      f'{raw.name} is compressed with zstd, which is not read here: compress '
      'it with gzip, or not at all.'
    )
  return raw


_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, OSError)


def check_format(path: str, reading: Reading) -> None:
  """Looks at the start of a file.

  Raises:
    InputError: if it is not in the format that `reading` says.
  """

  def refuse(why):
    return InputError(
      f'{path} is not {reading.format}: {why}; choose another --format, or '
      'leave the file out.'
    )

  try:
    if reading.format == 'parquet':
      _check_parquet(path, reading, refuse)
      return
    with open(path, 'rb') as raw, decompress(raw) as stream:
      head, whole = b'', False
      try:
        while len(head) < _HEAD_BYTES and not whole:
          block = stream.read(4_096)
          head, whole = head + block, not block
      except _DAMAGE as error:
        # If it is damaged further on, what comes before is of use.
        if not head:
          raise refuse(f'it cannot be decompressed ({error})') from error
  except PermissionError as error:
    raise InputError(f'{path} cannot be read: {error.strerror}.') from error
  if not head:
    # Nothing is a file of any format.
    return
  if head.startswith(b'PAR1'):
    raise refuse('it is Parquet')
  if reading.format != 'wet' and _WARC_RECORD.match(head):
    raise refuse('it is WARC or WET')
  match reading.format:
    case 'txt':
      try:
        text = head.decode('utf-8')
      except UnicodeDecodeError as error:
        # A character may be cut in two at the end.
        if error.start < len(head) - 3:
          raise refuse(f'byte {error.start} is not UTF-8') from error
        text = ''
      if '\0' in text:
        raise refuse('it has bytes of zero, as no text has')
    case 'jsonl':
      _check_jsonl(head, whole, reading, refuse)
    case 'wet':
      types = _warc_types(head)
      if not types:
        raise refuse('it does not start with a WARC record')
      if not set(types) & {'conversion', 'warcinfo', 'metadata'}:
        raise refuse(f'its records are of type {types[0]}, not conversion')
      if 'response' in types:
        raise refuse(
          'it is a WARC of whole pages, where a WET has their plain text'
        )


def _check_jsonl(head, whole, reading, refuse):
  lines = [line for line in head.split(b'\n') if line.strip()]
  # The last one may be cut.
  if not whole:
    lines = lines[:-1]
  why = None
  for line in lines[:50]:
    try:
      record = json.loads(line)
    except ValueError:
      why = why or 'its first line is not JSON'
      continue
    if isinstance(record, dict) and isinstance(
      record.get(reading.text_key), str
    ):
      return
    if isinstance(record, dict):
      keys = ', '.join(record) or 'nothing'
      raise refuse(
        f'its records have no text under {reading.text_key!r}, but {keys}; '
        'name what holds it with --text-key'
      )
    why = why or 'its first line is not a JSON object'
  if why:
    raise refuse(why)


def _check_parquet(path, reading, refuse):
  import pyarrow
  from pyarrow import parquet

  try:
    schema = parquet.read_schema(path)
  except (pyarrow.ArrowInvalid, OSError) as error:
    raise refuse('its end does not say so') from error
  names = schema.names
  if reading.text_key not in names:
    raise InputError(
      f'{path} has no column {reading.text_key!r}, but '
      f'{", ".join(names) or "none"}: name the one that holds the text with '
      '--text-key.'
    )
  kind = schema.field(reading.text_key).type
  if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
    raise InputError(
      f'The column {reading.text_key!r} of {path} holds {kind}, not strings: '
      'name the one that holds the text with --text-key.'
    )


def _warc_types(head):
  if not _WARC_RECORD.match(head):
    return []
  return [
    kind.decode('latin-1').lower()
    for kind in re.findall(rb'(?im)^warc-type:\s*(\w+)', head)
  ]


# From files to chunks.


def read_chunks(
  source: Input, reading: Reading, start: int = 0
) -> Iterator[Chunk]:
  """Chunks of an input, from number `start` on, in order.

  Raises:
    InputError: if a record is too large to be held.
  """
  if reading.format == 'parquet':
    yield from _parquet_chunks(source, start)
  elif reading.format == 'tfds' or reading.format == 'builtin':
    yield from _row_chunks(source, start)
  else:
    yield from _byte_chunks(source, reading, start)


def _parquet_chunks(source, start):
  from pyarrow import parquet

  with parquet.ParquetFile(source.path) as file:
    groups = file.metadata.num_row_groups
  for number in range(start, groups):
    yield Chunk(
      source,
      number,
      b'',
      (number, number + 1),
      source.size * (number + 1) // groups,
    )


def _row_chunks(source, start):
  for number in range(start, -(-source.size // _ROWS)):
    rows = (number * _ROWS, min(source.size, (number + 1) * _ROWS))
    yield Chunk(source, number, b'', rows, rows[1])


def _byte_chunks(source, reading, start):
  cut = {
    'jsonl': _after_newline,
    'wet': _after_warc_record,
    'txt': {
      'line': _after_newline,
      'blank-line': _after_blank_line,
      'whole': lambda data: 0,
    }.get(reading.document),
  }[reading.format]
  number, kept, damaged = 0, bytearray(), False
  with open(source.path, 'rb') as raw, decompress(raw) as stream:
    while True:
      try:
        block = stream.read(_BLOCK_BYTES)
      except _DAMAGE:
        # What came before may be whole; the record that was begun is not.
        block, damaged = b'', True
      kept += block
      if len(kept) >= CHUNK_BYTES or damaged:
        end = cut(kept)
        if end or damaged:
          if number >= start:
            yield Chunk(
              source, number, bytes(kept[:end]), (0, 0), raw.tell(), damaged
            )
          number += 1
          del kept[:end]
      if damaged or not block:
        break
      if len(kept) > MAX_RECORD_BYTES:
        raise InputError(
          f'{source.path} has a record of more than '
          f'{MAX_RECORD_BYTES >> 20} MiB: cut it into several.'
        )
  if kept and not damaged and number >= start:
    yield Chunk(source, number, bytes(kept), (0, 0), source.size)


def _after_newline(data: bytearray) -> int:
  return data.rfind(b'\n') + 1


def _after_blank_line(data: bytearray) -> int:
  # The last place where text starts again after empty lines.
  ends = [found.end() for found in _BLANK_LINES.finditer(data)]
  return ends[-1] if ends else 0


_BLANK_LINES = re.compile(rb'\n(?:[ \t\r]*\n)+(?=[ \t\r]*\S)')


_EMPTY_ENDS = re.compile(rb'\A(?:[ \t\r]*\n)+|(?:\n[ \t\r]*)+\Z')


def _after_warc_record(data: bytearray) -> int:
  """Where the last record of `data` ends that is there as a whole."""
  position = 0
  while True:
    end = _end_of_warc_record(data, position)
    if end is None:
      return position
    position = end


def _end_of_warc_record(data, position):
  if not _WARC_RECORD.match(data, position):
    # Lost: what follows is bad until the next record.
    found = _WARC_RECORD.search(data, position + 1)
    return found.start() if found else None
  blank = _BLANK_LINE.search(data, position)
  if not blank:
    return None
  length = _WARC_LENGTH.search(data, position, blank.end())
  if not length:
    found = _WARC_RECORD.search(data, blank.end())
    return found.start() if found else None
  end = blank.end() + int(length[1])
  following = data[end : end + 4]
  # Two line ends, and a byte more to be sure that the next record is there.
  if len(following) < 4:
    return None
  return end + len(following) - len(following.lstrip(b'\r\n'))


# From chunks to documents.


def read_documents(
  chunk: Chunk, reading: Reading, counts: collections.Counter[str]
) -> Iterator[str]:
  """The documents of a chunk.

  Args:
    chunk: of `read_chunks`, whose files are where they were.
    reading: the same.
    counts: is added to: `records`, `bad: REASON` and `filtered: REASON`.

  Yields:
    Text without surrogates.
  """
  records = {
    'txt': _txt_records,
    'jsonl': _jsonl_records,
    'parquet': _parquet_records,
    'wet': _wet_records,
    'tfds': _tfds_records,
    'builtin': _builtin_records,
  }[reading.format]
  if chunk.damaged:
    counts['bad: the file is damaged from here on'] += 1
  for record in records(chunk, reading):
    counts['records'] += 1
    try:
      text = record() if callable(record) else record
      if not isinstance(text, str):
        raise BadRecordError('the text is not a string')
      try:
        text.encode('utf-8')
      except UnicodeEncodeError:
        raise BadRecordError('half of a surrogate pair') from None
    except BadRecordError as error:
      counts[f'bad: {error}'] += 1
      continue
    for document in _documents_in(text, reading):
      kept, why = _filter(document, reading)
      if why:
        counts[f'filtered: {why}'] += 1
      else:
        yield kept


def _documents_in(text: str, reading: Reading) -> list[str]:
  """The documents in a record; of txt records are documents already."""
  if reading.format == 'txt' or reading.document == 'whole':
    return [text]
  if reading.document == 'line':
    return text.split('\n')
  return re.split(r'\n(?:[ \t\r]*\n)+', text.strip('\n'))


def _decode(data: bytes) -> str:
  try:
    return data.decode('utf-8')
  except UnicodeDecodeError:
    raise BadRecordError('not UTF-8') from None


def _txt_records(chunk, reading):
  if not chunk.data:
    # All that is left of a damaged file.
    return
  match reading.document:
    case 'whole':
      parts = [chunk.data]
    case 'line':
      parts = chunk.data.removesuffix(b'\n').split(b'\n')
    case 'blank-line':
      whole = _EMPTY_ENDS.sub(b'', chunk.data)
      parts = re.split(rb'\n(?:[ \t\r]*\n)+', whole)
  for part in parts:
    yield functools.partial(_decode, part)


def _jsonl_records(chunk, reading):
  def parse(line):
    try:
      # As bytes json would guess the encoding.
      record = json.loads(_decode(line).removeprefix('\ufeff'))
    except BadRecordError:
      raise
    except (ValueError, RecursionError):
      raise BadRecordError('not JSON') from None
    if not isinstance(record, dict):
      raise BadRecordError('not a JSON object')
    if reading.text_key not in record:
      raise BadRecordError(f'nothing under {reading.text_key!r}')
    return record[reading.text_key]

  for line in chunk.data.split(b'\n'):
    if line.strip():
      yield functools.partial(parse, line)


def _parquet_records(chunk, reading):
  import pyarrow
  from pyarrow import parquet

  def bad(reason):
    raise BadRecordError(reason)

  try:
    with parquet.ParquetFile(chunk.input.path) as file:
      batches = file.iter_batches(
        batch_size=_ROWS,
        row_groups=[chunk.rows[0]],
        columns=[reading.text_key],
        use_threads=False,
      )
      for batch in batches:
        for value in batch.column(0):
          try:
            yield value.as_py()
          except UnicodeDecodeError:
            yield functools.partial(bad, 'not UTF-8')
  except (pyarrow.ArrowInvalid, OSError):
    yield functools.partial(bad, 'a damaged row group')


def _wet_records(chunk, reading):
  del reading
  position = 0
  while position < len(chunk.data):
    # One by one, so that a bad one does not cost those behind it.
    end = _end_of_warc_record(chunk.data, position) or len(chunk.data)
    kind, text = _parse_warc(chunk.data[position:end])
    position = end
    if kind in ('conversion', None):
      yield text


def _parse_warc(data):
  """The type of a record, None if it is none, and its text or a function."""
  from warcio.archiveiterator import ArchiveIterator
  from warcio.exceptions import ArchiveLoadFailed

  def bad():
    raise BadRecordError('not a whole WARC record')

  if not _WARC_RECORD.match(data):
    return None, bad
  try:
    # The content is there until the iterator goes on.
    record = next(iter(ArchiveIterator(io.BytesIO(data))))
    content = record.content_stream().read()
    length = int(record.rec_headers.get_header('Content-Length'))
  except (ArchiveLoadFailed, StopIteration, TypeError, ValueError, EOFError):
    return None, bad
  if len(content) < length:
    return None, bad
  return record.rec_type, functools.partial(_decode, content)


def _tfds_input(pattern: str, reading: Reading) -> Input:
  name = pattern if pattern.endswith(']') else f'{pattern}[train]'
  full_name, split, examples = _tfds_source(name, reading)
  key = f'{full_name}[{split}] {len(examples)}'
  return Input(
    name,
    name,
    len(examples),
    hashlib.blake2b(key.encode(), digest_size=16).hexdigest(),
  )


@functools.cache
def _tfds_source(name: str, reading: Reading) -> tuple[str, str, Any]:
  """Full name of a set, its split, and the examples of `NAME[SPLIT]`."""
  import tensorflow_datasets as tfds

  dataset, _, split = name.removesuffix(']').partition('[')
  prepare = (
    f'run `python -m scripts.prepare_images {dataset}` once (it prepares sets '
    'of text as well), or set --data-dir to the folder that holds it.'
  )
  try:
    builder = tfds.builder(dataset, data_dir=reading.data_dir)
  # AssertionError for a version that TFDS does not have.
  except (ValueError, AssertionError) as error:
    raise InputError(f'TFDS has no set called {dataset!r}.') from error
  except ImportError as error:
    raise InputError(
      f'TFDS cannot open {dataset!r} without the package {error.name}.'
    ) from error
  if not builder.info.initialized:
    raise InputError(
      f'{dataset} is not prepared in {builder.data_dir}: {prepare}'
    )
  formats = {form.value for form in builder.info.available_file_formats()}
  if 'array_record' not in formats:
    raise InputError(
      f'{dataset} is prepared in {builder.data_dir} as '
      f'{" and ".join(sorted(formats))}, not as array_record: with another '
      f'--data_dir, {prepare}'
    )
  features = builder.info.features
  if reading.text_key not in features or not isinstance(
    features[reading.text_key], tfds.features.Text
  ):
    raise InputError(
      f'{dataset} has no text under {reading.text_key!r}, but '
      f'{", ".join(features)}: name the one that holds it with '
      '--text-key.'
    )
  try:
    examples = builder.as_data_source(split, file_format='array_record')
  except (ValueError, KeyError, AssertionError) as error:
    raise InputError(
      f'{dataset} has no split {split!r}, but {", ".join(builder.info.splits)}.'
    ) from error
  return builder.info.full_name, split, examples


def _tfds_records(chunk, reading):
  examples = _tfds_source(chunk.input.name, reading)[2]
  for example in examples.__getitems__(list(range(*chunk.rows))):
    text = example[reading.text_key]
    yield functools.partial(_decode, text) if isinstance(text, bytes) else text


def _builtin_records(chunk, reading):
  del reading
  from data.text import builtin as builtin_corpus

  return iter(builtin_corpus.documents()[slice(*chunk.rows)])


# Which documents stay.


def _filter(text: str, reading: Reading) -> tuple[str, str | None]:
  """What stays of a document, and why nothing does."""
  if not text.strip():
    return text, 'empty'
  if reading.min_paragraph_words:
    paragraphs = [
      paragraph
      for paragraph in text.split('\n')
      if len(paragraph.split()) >= reading.min_paragraph_words
    ]
    if len(paragraphs) < max(1, reading.min_paragraphs):
      return text, 'too few long paragraphs'
    text = '\n'.join(paragraphs)
  if reading.language:
    language, probability = _identifier().classify(text[:_LANGUAGE_SAMPLE])
    if language != reading.language:
      return text, f'not {reading.language}'
    if probability < reading.min_language_probability:
      return text, f'not surely {reading.language}'
  return text, None


@functools.cache
def _identifier():
  # Half a second, and not needed by most.
  from py3langid import langid

  return langid.LanguageIdentifier.from_model_file(
    langid.MODEL_FILE, norm_probs=True
  )


def languages() -> Sequence[str]:
  """What `Reading.language` can be."""
  return [str(one) for one in _identifier().nb_classes]

"""Records from inputs: lines, paragraphs, whole files, rows, web pages.

Files are read in chunks of a few megabytes that are cut between records. So any
number of processes can work on one file, and nothing larger than a chunk is in
memory. Chunks depend on the files alone.
"""

from __future__ import annotations

import codecs
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterator

from data.preparing.compressed import (
  Behind,
  Gap,
  Input,
  InputError,
  read_blocks,
)
from data.text import builtin_sources, warc
from data.text.inputs import Reading, tfds_source

# Uncompressed bytes: about a second of work.
CHUNK_BYTES = 4 << 20
MAX_RECORD_BYTES = 1 << 28
_BLOCK_BYTES = 1 << 20
# Records of a chunk, for formats that are not read as bytes.
_ROWS = 500
# With nothing after it that could fail, so that each line is looked at once.
_BLANK_LINES = re.compile(rb'\n[ \t\r\n]*\n')
_TEXT = re.compile(rb'[ \t\r]*\S')
_SPACE = b' \t\r\n'


class BadRecordError(ValueError):
  """A record is left out for a reason of a few words, the message."""


@dataclasses.dataclass(frozen=True)
class Chunk:
  """Some records of one input.

  Attributes:
    input: the input.
    number: index of the chunk in its input.
    data: the records' bytes; empty for formats read by `rows`.
    rows: for parquet the row group, for sets the first record and the one past
      the last.
    position: bytes of `input.size` that had been read at the chunk's end.
    damaged: whether a part of the file is missing after the chunk.
    behind: whether the file has bytes behind the end of its data.
  """

  input: Input
  number: int
  data: bytes
  rows: tuple[int, int]
  position: int
  damaged: bool = False
  behind: bool = False


def read_chunks(
  source: Input, reading: Reading, start: int = 0
) -> Iterator[Chunk]:
  """Yields the chunks of an input, from number `start` on, in order.

  Raises:
    InputError: if a record is too large for memory.
  """
  if reading.format == 'parquet':
    yield from _parquet_chunks(source, start)
  elif reading.format in ('tfds', 'builtin'):
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
    'wet': warc.end_of_last,
    'txt': {
      'line': _after_newline,
      'blank-line': _after_blank_line,
      'whole': lambda data, first=False: 0,
    }.get(reading.document),
  }[reading.format]
  number, kept, begun, behind = 0, bytearray(), True, False
  with open(source.path, 'rb') as raw:
    for part in read_blocks(raw, _BLOCK_BYTES):
      damaged, behind = (isinstance(part, one) for one in (Gap, Behind))
      if isinstance(part, bytes):
        kept += part
      if not begun:
        # The beginning of the current record is missing.
        end = cut(kept, first=True)
        begun = end > 0
        del kept[:end]
      if damaged or (begun and len(kept) >= CHUNK_BYTES):
        # Records before damage may be complete; the current one is not.
        end = cut(kept) if begun else 0
        if end or damaged:
          if number >= start:
            yield Chunk(
              source, number, bytes(kept[:end]), (0, 0), raw.tell(), damaged
            )
          number += 1
          del kept[:end]
      if damaged:
        kept.clear()
        begun = reading.format != 'txt'
      if len(kept) > MAX_RECORD_BYTES:
        raise InputError(
          f'{source.path} has a record of more than '
          f'{MAX_RECORD_BYTES >> 20} MiB: cut it into several.'
        )
  rest = bytes(kept) if begun else b''
  if (rest or behind) and number >= start:
    yield Chunk(source, number, rest, (0, 0), source.size, behind=behind)


def _after_newline(data: bytearray, first: bool = False) -> int:
  return (data.find(b'\n') if first else data.rfind(b'\n')) + 1


def _after_blank_line(data: bytearray, first: bool = False) -> int:
  # The last place where text begins again after empty lines.
  ends = [found.end() for found in _BLANK_LINES.finditer(data)]
  ends = [end for end in ends if _TEXT.match(data, end)]
  return ends[0 if first else -1] if ends else 0


def read_records(
  chunk: Chunk, reading: Reading
) -> Iterator[str | Callable[[], str]]:
  """Yields the records of a chunk; its files must still be there.

  Yields:
    Text, or a function that returns it or raises BadRecordError. A record of
    Parquet or JSON may be something other than a string.
  """
  return {
    'txt': _txt_records,
    'jsonl': _jsonl_records,
    'parquet': _parquet_records,
    'wet': _wet_records,
    'tfds': _tfds_records,
    'builtin': _builtin_records,
  }[reading.format](chunk, reading)


def _decode(data: bytes) -> str:
  try:
    return data.decode('utf-8')
  except UnicodeDecodeError:
    raise BadRecordError('not UTF-8') from None


def _bad(reason: str):
  raise BadRecordError(reason)


def _txt_records(chunk, reading):
  if not chunk.data:
    # Damage left nothing of the file.
    return
  data = chunk.data
  if not chunk.number:
    data = data.removeprefix(codecs.BOM_UTF8)
  # Line ends of Windows would make equal texts differ.
  data = data.replace(b'\r\n', b'\n')
  match reading.document:
    case 'whole':
      parts = [data]
    case 'line':
      parts = data.removesuffix(b'\n').split(b'\n')
    case 'blank-line':
      # A chunk of empty lines alone is no record.
      data = _without_empty_ends(data) if data.strip(_SPACE) else b''
      parts = _BLANK_LINES.split(data) if data else []
  for part in parts:
    yield functools.partial(_decode, part)


def _without_empty_ends(data: bytes) -> bytes:
  begin = len(data) - len(data.lstrip(_SPACE))
  data = data[data.rfind(b'\n', 0, begin) + 1 :]
  end = data.find(b'\n', len(data.rstrip(_SPACE)))
  return data if end < 0 else data[:end]


def _jsonl_records(chunk, reading):
  def parse(line):
    try:
      # Decoded first, because json guesses the encoding of bytes.
      record = json.loads(_decode(line).removeprefix('\ufeff'), parse_int=float)
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

  try:
    with parquet.ParquetFile(
      chunk.input.path, page_checksum_verification=True
    ) as file:
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
            yield functools.partial(_bad, 'not UTF-8')
  except (pyarrow.ArrowException, OSError):
    yield functools.partial(_bad, 'a damaged row group')


def _wet_records(chunk, reading):
  del reading
  position = 0
  while position < len(chunk.data):
    # One by one, so that a bad record does not spoil the ones after it.
    end = warc.end_of_record(chunk.data, position) or len(chunk.data)
    kind, content = warc.parse(chunk.data[position:end])
    position = end
    if kind is None:
      yield functools.partial(_bad, 'not a whole WARC record')
    elif kind == 'conversion':
      yield functools.partial(_decode, content)


def _tfds_records(chunk, reading):
  examples = tfds_source(chunk.input.name, reading)[2]
  try:
    found = examples.__getitems__(list(range(*chunk.rows)))
  except RuntimeError as error:  # ArrayRecord's for any fault.
    why = ' '.join(str(error).split())[:300]
    raise InputError(
      f'{chunk.input.name} cannot be read in {examples.dataset_info.data_dir} '
      f'({why}): remove that folder, and prepare the set again.'
    ) from error
  for example in found:
    text = example[reading.text_key]
    yield functools.partial(_decode, text) if isinstance(text, bytes) else text


def _builtin_records(chunk, reading):
  del reading
  return iter(builtin_sources.documents()[slice(*chunk.rows)])

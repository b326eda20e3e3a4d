"""Click logs in the format of the Display Advertising Challenge.

A line is an impression: label, 13 integers and 26 categories, separated by
tabs. The label is 1 for a click and 0 for none, categories are hexadecimal
numbers of 32 bits, a missing value is empty, and there is no header.

Malformed lines are left out and reported with their number and the reason.
"""

from __future__ import annotations

import binascii
import dataclasses
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, UInt8, UInt32

from data.preparing.compressed import (
  Behind,
  Gap,
  Input,
  InputError,
  file_input,
  read_blocks,
)

NUM_INTEGERS = 13
NUM_CATEGORIES = 26
NUM_FIELDS = 1 + NUM_INTEGERS + NUM_CATEGORIES
# Stands for a missing integer.
MISSING = -(2**31)

# About half a second of work.
CHUNK_BYTES = 8 << 20
_BLOCK_BYTES = 1 << 20
_MAX_LINE_BYTES = 1 << 20
# All characters that a line may contain. This keeps out characters that Arrow
# accepts in a number: spaces around it, or 0x1F.
_ALPHABET = b'0123456789abcdefABCDEF-\t\n'
_LINE = re.compile(
  rb'[01]'
  + rb'(?:\t(?:-?[0-9]+)?)' * NUM_INTEGERS
  + rb'(?:\t(?:[0-9a-fA-F]{1,8})?)' * NUM_CATEGORIES
)


class Rows(NamedTuple):
  """Rows of a log.

  Attributes:
    labels: 1 for a click.
    integers: MISSING where a value is missing.
    categories: arbitrary where a value is missing.
    there: False where a category is missing.
  """

  labels: UInt8[np.ndarray, ' rows']
  integers: Int32[np.ndarray, '13 rows']
  categories: UInt32[np.ndarray, '26 rows']
  there: Bool[np.ndarray, '26 rows']


class BadLine(NamedTuple):
  """A line that is left out.

  Attributes:
    line: its number in the file, from 1.
    kind: the malformed part: 'fields', 'label', 'integer' or 'category'.
    reason: a sentence about it.
  """

  line: int
  kind: str
  reason: str


@dataclasses.dataclass(frozen=True)
class Chunk:
  """Some lines of a file.

  Attributes:
    input: the file.
    number: index of the chunk in the file.
    data: the lines' bytes.
    first_line: number of the first line, from 1.
    position: bytes of `input.size` that had been read at the chunk's end.
    behind: whether the file has bytes behind the end of the compressed data.
  """

  input: Input
  number: int
  data: bytes
  first_line: int
  position: int
  behind: bool = False


def find_inputs(
  patterns: Sequence[str], glob: Callable[[str], list[str]]
) -> list[Input]:
  """Finds the files of a log in the order of time.

  Args:
    patterns: in the order given; the matches of one are sorted by name.
    glob: function from a pattern to paths.

  Raises:
    InputError: if a pattern matches nothing, or a file is named twice.
  """
  paths = []
  for pattern in patterns:
    found = [path for path in glob(pattern) if os.path.isfile(path)]
    if not found:
      raise InputError(
        f'There is no file {pattern}: check --input, and quote wildcards.'
      )
    paths += sorted(found)
  real = [os.path.realpath(path) for path in paths]
  for path, place in zip(paths, real, strict=True):
    if real.count(place) > 1:
      raise InputError(f'{path} is named twice: name each file once.')
  return [file_input(path) for path in paths]


def read_chunks(source: Input, start: int = 0) -> Iterator[Chunk]:
  """Yields a file's chunks, compressed or not, from number `start` on.

  Raises:
    InputError: if the file cannot be decompressed, or has no lines.
  """
  number, line, kept, behind = 0, 1, bytearray(), False

  def chunk(end, position):
    data = bytes(kept[:end])
    return Chunk(source, number, data, line, position, behind)

  with open(source.path, 'rb') as raw:
    for part in read_blocks(raw, _BLOCK_BYTES):
      if isinstance(part, Gap):
        line += kept.count(b'\n')
        raise InputError(
          f'{source.path} cannot be read beyond line {line:,} ({part.reason}): '
          'it is damaged or was cut short; get it again.'
        )
      if isinstance(part, Behind):
        behind = True
        break
      kept += part
      if len(kept) >= CHUNK_BYTES:
        end = kept.rfind(b'\n') + 1
        if not end:
          if len(kept) > CHUNK_BYTES + _MAX_LINE_BYTES:
            raise InputError(
              f'Line {line:,} of {source.path} has no end within '
              f'{len(kept) >> 20} MiB: is it a click log?'
            )
          continue
        found = chunk(end, raw.tell())
        if number >= start:
          yield found
        number += 1
        line += found.data.count(b'\n')
        del kept[:end]
  if (kept or behind) and number >= start:
    yield chunk(len(kept), source.size)


def parse(data: bytes, first_line: int) -> tuple[Rows, list[BadLine]]:
  """Parses lines, and leaves out malformed ones.

  Args:
    data: the lines; the last one need not end.
    first_line: number of the first line, for reports.

  Returns:
    The rows of the good lines, and the malformed lines.
  """
  # Line ends of Windows; any other carriage return is malformed.
  data = data.replace(b'\r\n', b'\n')
  rows = _parse_quickly(data)
  if rows is not None:
    return rows, []
  # Line by line is slower, but finds the malformed ones.
  good, bad = [], []
  lines = data.split(b'\n')
  if not lines[-1]:
    del lines[-1]
  for number, line in enumerate(lines, start=first_line):
    if problem := _problem(line):
      bad.append(BadLine(number, *problem))
    else:
      good.append(line)
  rows = _parse_quickly(b'\n'.join(good))
  if rows is None:
    raise AssertionError('a line without a problem that cannot be read')
  return rows, bad


def _parse_quickly(data: bytes) -> Rows | None:
  """Parses all lines with Arrow; None if any of them is malformed."""
  import pyarrow
  from pyarrow import compute, csv

  if not data:
    return Rows(
      np.empty(0, np.uint8),
      np.empty((NUM_INTEGERS, 0), np.int32),
      np.empty((NUM_CATEGORIES, 0), np.uint32),
      np.empty((NUM_CATEGORIES, 0), bool),
    )
  if data.translate(None, _ALPHABET):
    return None
  names = [str(number) for number in range(NUM_FIELDS)]
  integers = names[1 : 1 + NUM_INTEGERS]
  types = dict.fromkeys(names, pyarrow.binary())
  types |= dict.fromkeys(integers, pyarrow.int32())
  try:
    table = csv.read_csv(
      pyarrow.BufferReader(data),
      read_options=csv.ReadOptions(
        # The pool already keeps all cores busy.
        use_threads=False,
        column_names=names,
        block_size=len(data) + 1,
      ),
      parse_options=csv.ParseOptions(
        delimiter='\t', quote_char=False, ignore_empty_lines=False
      ),
      convert_options=csv.ConvertOptions(
        column_types=types, null_values=[''], strings_can_be_null=True
      ),
    ).combine_chunks()
  except pyarrow.ArrowInvalid:
    return None
  columns = [column.chunk(0) for column in table.columns]
  if any(
    compute.equal(column, MISSING).true_count
    for column in columns[1 : 1 + NUM_INTEGERS]
  ):
    return None
  lengths, labels = _bytes_of(columns[0])
  if (lengths != 1).any() or not set(labels) <= set(b'01'):
    return None
  categories = np.zeros((NUM_CATEGORIES, len(lengths)), np.uint32)
  there = np.empty((NUM_CATEGORIES, len(lengths)), bool)
  for field, column in enumerate(columns[1 + NUM_INTEGERS :]):
    lengths, digits = _bytes_of(column)
    there[field] = lengths > 0
    try:
      values = _parse_hexadecimal(lengths[there[field]], digits)
    except ValueError:
      return None
    categories[field, there[field]] = values
  return Rows(
    np.frombuffer(labels, np.uint8) - ord('0'),
    np.stack(
      [
        column.fill_null(MISSING).to_numpy()
        for column in columns[1 : 1 + NUM_INTEGERS]
      ]
    ),
    categories,
    there,
  )


def _bytes_of(column) -> tuple[np.ndarray, bytes]:
  """Lengths of an Arrow array's values, and their bytes one after another."""
  _, offsets, data = column.buffers()
  offsets = np.frombuffer(offsets, np.int32)
  offsets = offsets[column.offset : column.offset + len(column) + 1]
  data = b'' if data is None else data.to_pybytes()
  return np.diff(offsets), data[offsets[0] : offsets[-1]]


def _parse_hexadecimal(lengths: np.ndarray, digits: bytes) -> np.ndarray:
  """Parses numbers from their digits; raises ValueError for other bytes."""
  if not len(lengths):
    return np.empty(0, np.uint32)
  if lengths.max() > 8:
    raise ValueError
  if lengths.min() < 8:
    # Pads short ones with leading zeros.
    padded = np.full((len(lengths), 8), ord('0'), np.uint8)
    padded[np.arange(8) >= 8 - lengths[:, None]] = np.frombuffer(
      digits, np.uint8
    )
    digits = padded.tobytes()
  return np.frombuffer(binascii.unhexlify(digits), '>u4')


def _problem(line: bytes) -> tuple[str, str] | None:
  """The kind of a line's fault, and a sentence; None for a good line."""
  # This is the definition of a good line, not only a shortcut.
  if _LINE.fullmatch(line):
    numbers = line.split(b'\t')[1 : 1 + NUM_INTEGERS]
    for place, number in enumerate(numbers, start=1):
      digits = number.lstrip(b'-').lstrip(b'0')
      if len(digits) > 10 or int(digits or b'0') >= -MISSING:
        return 'integer', f'integer {place} is {_show(number)}, above 31 bits'
    return None
  fields = line.split(b'\t')
  if len(fields) != NUM_FIELDS:
    what = f'it has {len(fields)} fields instead of {NUM_FIELDS}'
    if len(fields) == NUM_FIELDS - 1:
      what += ', as in a log without labels'
    return 'fields', what
  if fields[0] not in (b'0', b'1'):
    return 'label', f'its label is {_show(fields[0])}, neither 0 nor 1'
  for place, field in enumerate(fields[1 : 1 + NUM_INTEGERS], start=1):
    if not re.fullmatch(rb'(?:-?[0-9]+)?', field):
      return 'integer', f'integer {place} is {_show(field)}'
  for place, field in enumerate(fields[1 + NUM_INTEGERS :], start=1):
    if not re.fullmatch(rb'(?:[0-9a-fA-F]{1,8})?', field):
      return 'category', (
        f'category {place} is {_show(field)}, not a hexadecimal number of at '
        'most 8 digits'
      )
  raise AssertionError(line)


def _show(field: bytes) -> str:
  text = field.decode('utf-8', 'backslashreplace')
  return repr(text if len(text) <= 20 else f'{text[:20]}…')


def format_rows(rows: Rows) -> bytes:
  """Writes rows as lines; the inverse of `parse`."""
  import pyarrow
  from pyarrow import compute, csv

  def integers(column):
    return pyarrow.array(column, mask=column == MISSING)

  def categories(column, there):
    digits = binascii.hexlify(column.astype('>u4').tobytes())
    strings = pyarrow.Array.from_buffers(
      pyarrow.binary(8), len(column), [None, pyarrow.py_buffer(digits)]
    )
    missing = pyarrow.array(~there)
    nothing = pyarrow.scalar(None, pyarrow.binary(8))
    strings = compute.if_else(missing, nothing, strings)
    return strings.cast(pyarrow.binary()).cast(pyarrow.string())

  columns = [
    pyarrow.array(rows.labels),
    *map(integers, rows.integers),
    *map(categories, rows.categories, rows.there),
  ]
  names = [str(number) for number in range(NUM_FIELDS)]
  out = io.BytesIO()
  csv.write_csv(
    pyarrow.table(columns, names=names),
    out,
    csv.WriteOptions(
      include_header=False, delimiter='\t', quoting_style='none'
    ),
  )
  return out.getvalue()

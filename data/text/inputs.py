"""Finds the files and sets that text is read from, and checks their format."""

from __future__ import annotations

import codecs
import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Collection, Sequence
from typing import Any

from data.preparing.compressed import (
  Gap,
  Input,
  InputError,
  file_input,
  read_blocks,
)
from data.preparing.tfds import NotPreparedError, open_builder
from data.text import builtin_sources, warc

FORMATS = ('txt', 'jsonl', 'parquet', 'wet', 'tfds', 'builtin')
# One document: a whole file or record, or a part of it.
DOCUMENTS = ('whole', 'blank-line', 'line')
_HEAD_BYTES = 1 << 16
# Names to show of a file's columns.
_MOST_NAMES = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
  """How files become documents.

  Attributes:
    format: one of FORMATS.
    document: one of DOCUMENTS.
    text_key: the field or column of jsonl, parquet and tfds with the text.
    data_dir: folder of TFDS sets; None for TFDS's own default.
    language: documents in other languages are left out; None for any. ISO
      639-1.
    min_language_probability: documents with a less certain language are left
      out.
    min_paragraph_words: shorter paragraphs are left out of their document; 0
      for none.
    min_paragraphs: documents with fewer remaining paragraphs, lines that are
      not empty, are left out.
  """

  format: str
  document: str
  text_key: str
  data_dir: str | None
  language: str | None
  min_language_probability: float
  min_paragraph_words: int
  min_paragraphs: int


def find_inputs(
  patterns: Sequence[str], reading: Reading, glob: Callable[[str], list[str]]
) -> list[Input]:
  """Finds all inputs that match patterns, each once, sorted by their keys.

  Args:
    patterns: of files; for TFDS, `NAME` or `NAME[SPLIT]`.
    reading: the expected format.
    glob: function from a pattern to paths.

  Raises:
    InputError: if a pattern matches nothing, or something in another format.
  """
  if reading.format == 'builtin':
    count = len(builtin_sources.documents())
    return [Input('builtin', 'builtin', count, builtin_sources.FINGERPRINT)]
  if reading.format == 'tfds':
    found = [_tfds_input(pattern, reading) for pattern in patterns]
  else:
    found = []
    for pattern in patterns:
      matches = [path for path in glob(pattern) if os.path.isfile(path)]
      if not matches:
        raise InputError(
          f'There is no file {pattern}: check the name, and quote wildcards.'
        )
      for path in matches:
        check_format(path, reading)
        found.append(file_input(path))
  once = {place(one): one for one in found}
  return sorted(once.values(), key=lambda one: (one.key, one.name))


def place(one: Input) -> str:
  """Where an input is read from, the same for all names of it."""
  return os.path.realpath(one.path)


def check_format(path: str, reading: Reading) -> None:
  """Checks the format at the start of a file.

  Raises:
    InputError: if it is not the format of `reading`.
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
    head, whole = b'', True
    with open(path, 'rb') as raw:
      for part in read_blocks(raw, 4_096):
        if isinstance(part, bytes):
          head += part
        elif isinstance(part, Gap) and not head:
          raise refuse(f'it cannot be decompressed ({part.reason})')
        if len(head) >= _HEAD_BYTES or isinstance(part, Gap):
          # Damage further on leaves the part before it usable.
          whole = False
          break
  except PermissionError as error:
    raise InputError(f'{path} cannot be read: {error.strerror}.') from error
  if not head:
    # An empty file is valid in every format.
    return
  if head.startswith(b'PAR1'):
    raise refuse('it is Parquet')
  if reading.format != 'wet' and warc.RECORD.match(head):
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
        raise refuse('it has bytes of zero, which text never has')
    case 'jsonl':
      _check_jsonl(head, whole, reading, refuse)
    case 'wet':
      types = warc.types(head)
      if not types:
        raise refuse('it does not start with a WARC record')
      if not set(types) & {'conversion', 'warcinfo', 'metadata'}:
        raise refuse(f'its records are of type {types[0]}, not conversion')
      if 'response' in types:
        raise refuse('it is a WARC of whole pages; a WET has their plain text')


def _check_jsonl(head, whole, reading, refuse):
  lines = [line for line in head.split(b'\n') if line.strip()]
  # The last line may be cut.
  if not whole:
    lines = lines[:-1]
  keys, why = None, None
  for line in lines[:50]:
    try:
      # As a float, an integer may have any number of digits.
      record = json.loads(line.removeprefix(codecs.BOM_UTF8), parse_int=float)
    except (ValueError, RecursionError):
      why = why or 'its first line is not JSON'
      continue
    if not isinstance(record, dict):
      why = why or 'its first line is not a JSON object'
      continue
    if isinstance(record.get(reading.text_key), str):
      return
    keys = (keys or {}) | dict.fromkeys(record)
  if keys is not None:
    raise refuse(
      f'its records have no text under {reading.text_key!r}, but '
      f'{_quoted(keys)}; name the right field with --text-key'
    )
  if why:
    raise refuse(why)


def _check_parquet(path, reading, refuse):
  import pyarrow
  from pyarrow import parquet

  try:
    schema = parquet.read_schema(path)
  # ValueError for names that are not UTF-8.
  except (pyarrow.ArrowException, OSError, ValueError) as error:
    raise refuse('it does not end as Parquet does') from error
  names = schema.names
  if reading.text_key not in names:
    raise InputError(
      f'{path} has no column {reading.text_key!r}, but '
      f'{_quoted(names)}: choose the text with --text-key.'
    )
  if names.count(reading.text_key) > 1:
    raise InputError(
      f'{path} has {names.count(reading.text_key)} columns '
      f'{reading.text_key!r}: rename all but the one with the text.'
    )
  kind = schema.field(reading.text_key).type
  types = pyarrow.types
  values = kind.value_type if types.is_dictionary(kind) else kind
  texts = (types.is_string, types.is_large_string, types.is_string_view)
  if not any(is_text(values) for is_text in texts):
    raise InputError(
      f'The column {reading.text_key!r} of {path} holds {kind}, not strings: '
      'choose the text with --text-key.'
    )


def _quoted(names: Collection[str]) -> str:
  """Quotes names that come from a file, so that each stays in its line."""
  shown = [repr(name) for name in itertools.islice(names, _MOST_NAMES)]
  return ', '.join(shown) + ' …' * (len(names) > _MOST_NAMES) or 'nothing'


def _tfds_input(pattern: str, reading: Reading) -> Input:
  name = pattern if pattern.endswith(']') else f'{pattern}[train]'
  full_name, split, examples = tfds_source(name, reading)
  key = f'{full_name}[{split}] {len(examples)}'
  return Input(
    name,
    f'{full_name}[{split}]',
    len(examples),
    hashlib.blake2b(key.encode(), digest_size=16).hexdigest(),
  )


@functools.cache
def tfds_source(name: str, reading: Reading) -> tuple[str, str, Any]:
  """Returns a set's full name, its split, and the examples of `NAME[SPLIT]`."""
  import tensorflow_datasets as tfds

  dataset, _, split = name.removesuffix(']').partition('[')
  try:
    builder = open_builder(dataset, reading.data_dir, folder_key='--data-dir')
  except (ValueError, NotPreparedError) as error:
    raise InputError(str(error)) from error
  features = builder.info.features
  if reading.text_key not in features or not isinstance(
    features[reading.text_key], tfds.features.Text
  ):
    raise InputError(
      f'{dataset} has no text under {reading.text_key!r}, but '
      f'{_quoted(features)}: choose the text with --text-key.'
    )
  try:
    examples = builder.as_data_source(split, file_format='array_record')
  except (ValueError, KeyError, AssertionError) as error:
    raise InputError(
      f'{dataset} has no split {split!r}, but {", ".join(builder.info.splits)}.'
    ) from error
  return builder.info.full_name, split, examples

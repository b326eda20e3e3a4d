"""Records in the bytes of WARC and WET files."""

from __future__ import annotations

import io
import re

RECORD = re.compile(rb'WARC/1\.[01]\r?\n')
_BLANK_LINE = re.compile(rb'\r?\n\r?\n')
# Python refuses to make an integer of thousands of digits.
_LENGTH = re.compile(rb'\r?\ncontent-length:\s*(\d{1,18})\s*\r?\n', re.I)


def types(head: bytes) -> list[str]:
  """Lists the types of the records in `head`; empty if it is not WARC."""
  if not RECORD.match(head):
    return []
  return [
    kind.decode('latin-1').lower()
    for kind in re.findall(rb'(?im)^warc-type:\s*(\w+)', head)
  ]


def end_of_last(data: bytearray) -> int:
  """Returns the end of the last complete record of `data`."""
  position = 0
  while True:
    end = end_of_record(data, position)
    if end is None:
      return position
    position = end


def end_of_record(data: bytes | bytearray, position: int) -> int | None:
  """Returns the end of the record at a position; None if it is not there."""
  if not RECORD.match(data, position):
    # Not a record: everything is bad up to the next one.
    found = RECORD.search(data, position + 1)
    return found.start() if found else None
  blank = _BLANK_LINE.search(data, position)
  if not blank:
    return None
  length = _LENGTH.search(data, position, blank.end())
  if not length:
    found = RECORD.search(data, blank.end())
    return found.start() if found else None
  end = blank.end() + int(length[1])
  following = data[end : end + 4]
  # Two line ends, and one byte more to be sure that the next record begins.
  if len(following) < 4:
    return None
  return end + len(following) - len(following.lstrip(b'\r\n'))


def parse(data: bytes) -> tuple[str | None, bytes | None]:
  """Parses a record into its type and content; None if it is incomplete."""
  from warcio.archiveiterator import ArchiveIterator
  from warcio.exceptions import ArchiveLoadFailed

  if not RECORD.match(data):
    return None, None
  try:
    # The content must be read before the iterator moves on.
    record = next(iter(ArchiveIterator(io.BytesIO(data))))
    content = record.content_stream().read()
    length = int(record.rec_headers.get_header('Content-Length'))
  except (ArchiveLoadFailed, StopIteration, TypeError, ValueError, EOFError):
    return None, None
  if len(content) < length:
    return None, None
  return record.rec_type, content

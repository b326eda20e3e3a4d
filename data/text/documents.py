"""Documents from inputs: read, split and filtered.

`data.text.records` reads records, and `data.text.inputs` finds and checks the
inputs. The order of files depends on their contents, not on their names.
"""

from __future__ import annotations

import collections
import functools
import re
from collections.abc import Iterator, Sequence

from data.text.inputs import Reading
from data.text.records import BadRecordError, Chunk, read_records

# Characters that are enough to identify a document's language.
_LANGUAGE_SAMPLE = 1_000


def read_documents(
  chunk: Chunk, reading: Reading, counts: collections.Counter[str]
) -> Iterator[str]:
  """Yields the documents of a chunk.

  Args:
    chunk: a chunk of `read_chunks`; its files must still be there.
    reading: the same as for `read_chunks`.
    counts: adds to `records`, `bad: REASON` and `filtered: REASON`.

  Yields:
    Text without surrogates.
  """
  if chunk.damaged:
    counts['bad: a damaged part of a file'] += 1
  if chunk.behind:
    counts['note: a file has bytes behind its end'] += 1
  for record in read_records(chunk, reading):
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
  """Splits a record into documents; txt records are documents already."""
  if reading.format == 'txt' or reading.document == 'whole':
    return [text]
  if reading.document == 'line':
    return text.split('\n')
  return re.split(r'\n(?:[ \t\r]*\n)+', text.strip('\n'))


def _filter(text: str, reading: Reading) -> tuple[str, str | None]:
  """Returns the rest of a document, and the reason to leave it out, if any."""
  if not text.strip():
    return text, 'empty'
  words = reading.min_paragraph_words
  if words or reading.min_paragraphs > 1:
    # An empty line is no paragraph.
    paragraphs = [
      line for line in text.split('\n') if len(line.split()) >= max(1, words)
    ]
    if len(paragraphs) < reading.min_paragraphs:
      return text, f'too few {"long " if words else ""}paragraphs'
    if words:
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
  # The import takes half a second, and most runs do not need it.
  from py3langid import langid

  return langid.LanguageIdentifier.from_model_file(
    langid.MODEL_FILE, norm_probs=True
  )


def languages() -> Sequence[str]:
  """Lists the possible values of `Reading.language`."""
  return [str(one) for one in _identifier().nb_classes]

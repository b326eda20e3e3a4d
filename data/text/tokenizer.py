"""Text to pieces and back, exactly: SentencePiece with the paper's pieces.

The paper's 24,006 word pieces "include special pieces" for the start and end
of sentences and paragraphs, unknown words and the end of a document. Here the
six have the first numbers, and no text produces them. The pieces
are SentencePiece's unigram model, which encodes several times faster than its
byte-pair model and is as invertible: no normalisation, no space put in front,
and characters outside the vocabulary spelled as their UTF-8 bytes, so that the
unknown piece stays unused.

A document of N paragraphs is `<P> … </P>` N times and `</D>`; a paragraph is
`<S> … </S>` for each sentence. Between two paragraphs stood one newline and
between two sentences one space; neither is spelled out, and any others are.
"""

from __future__ import annotations

import functools
import io
import itertools
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import sentencepiece
import sentencex
from jaxtyping import Integer, UInt16

# The numbers of the special pieces are their places here.
SPECIAL_PIECES = ('<UNK>', '</D>', '<S>', '</S>', '<P>', '</P>')
UNKNOWN, END_OF_DOCUMENT, SENTENCE, END_OF_SENTENCE, PARAGRAPH, _ = range(6)
END_OF_PARAGRAPH = 5

# What of a document is marked besides its end.
STRUCTURES = ('none', 'paragraphs', 'sentences')
OOV = ('bytes', 'unk')

# SentencePiece writes a space as this character, and so cannot tell them apart.
_SPACE = '\u2581'
# Noncharacters, which no text is meant to contain; if one does, the first is
# escaped itself.
_ESCAPE, _ESCAPED_ESCAPE, _ESCAPED_SPACE = '\ufdd0', '\ufdd1', '\ufdd2'
_UNESCAPE = {
  _ESCAPE + _ESCAPED_ESCAPE: _ESCAPE,
  _ESCAPE + _ESCAPED_SPACE: _SPACE,
}
# Every newline that does not stand before another.
_BETWEEN_PARAGRAPHS = re.compile('\n(?=[^\n])')
# Training takes text by the line; longer ones would be left out.
_MAX_LINE_BYTES = 16_384
# A number for all machines: how training rounds depends on it.
_TRAINING_THREADS = 8


class VocabularyError(ValueError):
  """The text does not yield a vocabulary of that size; the message says why."""


def has_rules(language: str) -> bool:
  """Whether there are rules for where a sentence of a language ends.

  For a code without any, such as 'german', sentencex takes those of English,
  and does not say so.
  """
  # Only English knows that 'However' begins a sentence.
  text = 'He lives in the U.S. However he left.'
  return language == 'en' or (
    sentencex.segment(language, text) != sentencex.segment('en', text)
  )


def vocab_sizes(oov: str) -> range:
  """The numbers of pieces that a tokenizer with `oov` may have."""
  least = len(SPECIAL_PIECES) + (256 if oov == 'bytes' else 0) + 1
  return range(least, (1 << 16) + 1)


def train_tokenizer(
  texts: Iterable[str],
  *,
  vocab_size: int,
  oov: str,
  character_coverage: float,
  structure: str,
  language: str,
) -> bytes:
  """Learns the pieces.

  Args:
    texts: documents, or parts of some.
    vocab_size: number of pieces, the six special ones and, of `oov` 'bytes',
      256 for bytes among them.
    oov: what becomes of a character outside the vocabulary: 'bytes' (UTF-8,
      nothing is lost) or 'unk' (the unknown piece).
    character_coverage: share of the text's characters that the vocabulary has
      to contain.
    structure: of the texts, as they will be encoded.
    language: the same.

  Returns:
    The model, as `Tokenizer` takes it.

  Raises:
    VocabularyError: if the size does not suit the text.
    ValueError: for another `oov`.
  """
  if oov not in OOV:
    raise ValueError(f'Unknown oov {oov!r}, expected one of {OOV}.')
  sizes = vocab_sizes(oov)
  if vocab_size not in sizes:
    raise VocabularyError(
      f'A vocabulary of {vocab_size} pieces is out of range: there must be '
      f'{sizes[0]} to {sizes[-1]}, so that each number fits into two bytes.'
    )
  lines = _lines(texts, structure, language)
  first = next(lines, None)
  if first is None:
    raise VocabularyError('There is no text to learn a vocabulary from.')
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=itertools.chain((first,), lines),
      model_writer=model,
      model_type='unigram',
      vocab_size=vocab_size,
      normalization_rule_name='identity',
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      allow_whitespace_only_pieces=True,
      byte_fallback=oov == 'bytes',
      character_coverage=character_coverage,
      unk_id=UNKNOWN,
      unk_piece=SPECIAL_PIECES[UNKNOWN],
      unk_surface='\ufffd',
      bos_id=-1,
      eos_id=-1,
      pad_id=-1,
      control_symbols=list(SPECIAL_PIECES[1:]),
      max_sentence_length=_MAX_LINE_BYTES,
      num_threads=_TRAINING_THREADS,
      minloglevel=3,
    )
  except (RuntimeError, OSError) as error:
    raise VocabularyError(_explain(str(error), vocab_size)) from error
  return model.getvalue()


def _explain(message: str, vocab_size: int) -> str:
  """A sentence for what SentencePiece says, which names its source lines."""
  # The two that users can cause.
  if found := re.search(r'a value <= (\d+)', message):
    return (
      f'A vocabulary of {vocab_size} pieces is too large for this text, '
      f'which has {found[1]} at most: set a smaller one, or give more text.'
    )
  if 'smaller than required' in message:
    return (
      f'A vocabulary of {vocab_size} pieces is too small for the characters '
      'of this text: set a larger one, or a smaller character coverage.'
    )
  return f'No tokenizer could be trained on this text: {message}'


class Tokenizer:
  """Encodes documents and decodes them again.

  Attributes:
    vocab_size: number of pieces.
    invertible: whether every text comes back as it was; not with `oov` 'unk'.
  """

  def __init__(self, model: bytes):
    """Takes what `train_tokenizer` returned.

    Raises:
      ValueError: if it did not.
    """
    try:
      self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
      pieces = [self._model.id_to_piece(i) for i in range(len(SPECIAL_PIECES))]
    except (RuntimeError, IndexError) as error:
      raise ValueError('This is no SentencePiece model.') from error
    if tuple(pieces) != SPECIAL_PIECES:
      raise ValueError(
        f'A tokenizer starts with the pieces {SPECIAL_PIECES}, this one has '
        f'{tuple(pieces)}.'
      )
    self.vocab_size = self._model.vocab_size()
    # Bytes come next, if any character may be spelled with them.
    self.invertible = self._model.is_byte(len(SPECIAL_PIECES))

  @classmethod
  def from_file(cls, path: str | os.PathLike) -> Tokenizer:
    """Reads `tokenizer.model`; errors as the constructor's, and OSError."""
    return cls(pathlib.Path(path).read_bytes())

  def encode(
    self, text: str, *, structure: str, language: str, whole: bool = True
  ) -> UInt16[np.ndarray, ' tokens']:
    """A document's tokens, `</D>` at their end.

    Args:
      text: without surrogates, which are not Unicode text.
      structure: 'none', 'paragraphs' or 'sentences' (and paragraphs).
      language: whose rules end a sentence, for 'sentences'; ISO 639-1.
      whole: False for the beginning of a document, which has no marks at its
        end.

    Raises:
      ValueError: for another structure.
    """
    marks, parts = _parts(text, structure, language)
    encoded = self._model.encode(
      [_escape(part) for part in parts], return_type='numpy'
    )
    pieces = []
    for mark, part in zip(marks, encoded, strict=True):
      pieces += [_array(mark), part]
    if whole:
      pieces.append(_END[structure])
    return np.concatenate(pieces).astype(np.uint16)

  def decode(
    self, tokens: Integer[np.ndarray, ' tokens'] | Sequence[int]
  ) -> str:
    """The text of a document, or of what there is of it.

    Of all that `encode` returns it is the inverse, if the tokenizer is
    `invertible`. Other tokens, as a model may draw them, have a text too:
    bytes that are not UTF-8 become U+FFFD.
    """
    text, run, before = [], [], END_OF_DOCUMENT
    for token in map(int, tokens):
      if UNKNOWN < token < len(SPECIAL_PIECES):
        text.append(self._text_of(run))
        run = []
        if token == PARAGRAPH and before != END_OF_DOCUMENT:
          text.append('\n')
        elif token == SENTENCE and before == END_OF_SENTENCE:
          text.append(' ')
      else:
        run.append(token)
      before = token
    text.append(self._text_of(run))
    return ''.join(text)

  def _text_of(self, run: list[int]) -> str:
    if not run:
      return ''
    text = self._model.decode(run)
    if _ESCAPE in text:
      text = re.sub(
        '|'.join(_UNESCAPE), lambda found: _UNESCAPE[found[0]], text
      )
    return text


def _parts(
  text: str, structure: str, language: str
) -> tuple[list[tuple[int, ...]], list[str]]:
  """What is between marks, and the marks in front of each part."""
  match structure:
    case 'none':
      return [()], [text]
    case 'paragraphs':
      parts = _BETWEEN_PARAGRAPHS.split(text)
      marks = [(END_OF_PARAGRAPH, PARAGRAPH)] * len(parts)
      return [(PARAGRAPH,), *marks[1:]], parts
    case 'sentences':
      marks, parts = [], []
      mark: tuple[int, ...] = (PARAGRAPH, SENTENCE)
      for paragraph in _BETWEEN_PARAGRAPHS.split(text):
        for sentence in _sentences(paragraph, language):
          marks.append(mark)
          parts.append(sentence)
          mark = (END_OF_SENTENCE, SENTENCE)
        mark = (END_OF_SENTENCE, END_OF_PARAGRAPH, PARAGRAPH, SENTENCE)
      return marks, parts
    case _:
      raise ValueError(
        f'Unknown structure {structure!r}, expected one of {STRUCTURES}.'
      )


def _sentences(paragraph: str, language: str) -> list[str]:
  """Parts of a paragraph that single spaces join to it again."""
  found = sentencex.segment(language, paragraph)
  if ''.join(found) != paragraph:
    # It has a reason to change a text that is ours to keep.
    return [paragraph]
  sentences, start = [], 0
  end = 0
  for part in found[:-1]:
    end += len(part)
    if part.endswith(' '):
      sentences.append(paragraph[start : end - 1])
      start = end
  return [*sentences, paragraph[start:]]


def _escape(text: str) -> str:
  if _SPACE in text or _ESCAPE in text:
    text = text.replace(_ESCAPE, _ESCAPE + _ESCAPED_ESCAPE)
    text = text.replace(_SPACE, _ESCAPE + _ESCAPED_SPACE)
  return text


def _lines(
  texts: Iterable[str], structure: str, language: str
) -> Iterator[str]:
  """What training takes: parts of texts that are neither long nor empty."""
  # A character has four bytes at most, and some are escaped as two.
  length = _MAX_LINE_BYTES // 8
  for text in texts:
    for part in _parts(text, structure, language)[1]:
      for start in range(0, len(part), length):
        # NUL is what training cannot take.
        line = _escape(part[start : start + length]).replace('\0', '')
        if line.strip('\r\n'):
          yield line


@functools.cache
def _array(mark: tuple[int, ...]) -> np.ndarray:
  return np.array(mark, np.int32)


_END = {
  'none': _array((END_OF_DOCUMENT,)),
  'paragraphs': _array((END_OF_PARAGRAPH, END_OF_DOCUMENT)),
  'sentences': _array((END_OF_SENTENCE, END_OF_PARAGRAPH, END_OF_DOCUMENT)),
}

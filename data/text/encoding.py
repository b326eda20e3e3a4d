"""What becomes of a chunk in the pool's processes: hashes, a sample, tokens."""

from __future__ import annotations

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt64

from data.partition import mix
from data.text import corpus
from data.text.documents import read_documents
from data.text.inputs import Reading
from data.text.records import Chunk
from data.text.tokenizer import Tokenizer

# A file with the sorted hashes of the documents of held-out input.
HELD_OUT = 'held_out.bin'
HASH = np.dtype('<u8')
# The most characters that the tokenizer takes from one document, and in all.
_SAMPLE_CHARACTERS = 1_000_000
_SAMPLE_CHARACTERS_IN_ALL = 100_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """All settings that the result depends on.

  Attributes:
    reading: how files become documents.
    vocab_size: number of pieces.
    oov: 'bytes' or 'unk', see `data.text.tokenizer`.
    character_coverage: share of characters that the vocabulary covers.
    train_from: most documents that the tokenizer learns from.
    structure: structure to mark: 'none', 'paragraphs' or 'sentences'.
    sentence_language: language of the rules that end a sentence.
    held_out_fraction: share of the documents to keep from training, unless
      there is held-out input.
    shard_tokens: a file that has so many tokens is full.
  """

  reading: Reading
  vocab_size: int
  oov: str
  character_coverage: float
  train_from: int
  structure: str
  sentence_language: str
  held_out_fraction: float
  shard_tokens: int


@dataclasses.dataclass(frozen=True)
class Encoded:
  """The tokens, hashes and lengths of a chunk by split; and counts."""

  splits: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
  counts: collections.Counter[str]


def hash_chunk(
  chunk: Chunk, settings: Settings
) -> tuple[UInt64[np.ndarray, ' documents'], collections.Counter[str]]:
  """Hashes a chunk's documents; also returns counts."""
  counts: collections.Counter[str] = collections.Counter()
  found = [key for key, _ in _read(chunk, settings, None, counts)]
  return np.array(found, np.uint64), counts


def encode_chunk(
  chunk: Chunk,
  settings: Settings,
  split: str | None,
  held_out: pathlib.Path | None,
  tokenizer: pathlib.Path,
) -> Encoded:
  """Tokenises a chunk's documents.

  Args:
    chunk: a chunk of `read_chunks`.
    settings: all of them.
    split: of all documents; None for a share of them in each.
    held_out: file of hashes of held-out input, if there is any.
    tokenizer: its file.
  """
  encode = _open_tokenizer(tokenizer).encode
  counts: collections.Counter[str] = collections.Counter()
  hashes, tokens = [], []
  known = None if split == 'test' else held_out
  for key, text in _read(chunk, settings, known, counts):
    hashes.append(key)
    tokens.append(
      encode(
        text,
        structure=settings.structure,
        language=settings.sentence_language,
      )
    )
    counts['characters'] += len(text)
  all_hashes = np.array(hashes, np.uint64)
  if split is None:
    test = corpus.is_held_out(all_hashes, settings.held_out_fraction)
  else:
    test = np.full(len(hashes), split == 'test')
  splits = {}
  for name, wanted in (('train', ~test), ('test', test)):
    chosen = np.flatnonzero(wanted)
    joined, lengths = corpus.join_documents([tokens[i] for i in chosen])
    splits[name] = (joined, all_hashes[chosen], lengths)
  return Encoded(splits, counts)


def _read(
  chunk: Chunk,
  settings: Settings,
  held_out: pathlib.Path | None,
  counts: collections.Counter[str],
) -> Iterator[tuple[int, str]]:
  """Yields hash and text of each document, unless its hash is held out."""
  # Mapped, so that all processes share the memory.
  known = None if held_out is None else np.memmap(held_out, HASH, 'r')
  for text in read_documents(chunk, settings.reading, counts):
    key = corpus.hash_document(text)
    if known is not None:
      place = np.searchsorted(known, np.uint64(key))
      if place < len(known) and known[place] == key:
        counts['filtered: equal to a held-out document'] += 1
        continue
    counts['documents'] += 1
    yield key, text


@functools.lru_cache(maxsize=1)
def _open_tokenizer(path: pathlib.Path) -> Tokenizer:
  return Tokenizer.from_file(path)


class Sample:
  """The texts with the smallest hashes of all that were added."""

  def __init__(self, num_texts: int):
    """Keeps so many texts at most, and not too many characters."""
    self._limits = (num_texts, _SAMPLE_CHARACTERS_IN_ALL)
    self._texts: dict[int, str] = {}
    self._characters = 0

  def add(self, texts: dict[int, str]) -> None:
    """Adds texts by hash."""
    new = {key: text for key, text in texts.items() if key not in self._texts}
    self._texts |= new
    self._characters += sum(map(len, new.values()))
    # Only now and then, because sorting takes a moment.
    if (
      len(self._texts) > 2 * self._limits[0]
      or self._characters > 2 * self._limits[1]
    ):
      self._drop()

  def kept(self) -> dict[int, str]:
    """Returns the chosen texts by hash."""
    self._drop()
    return self._texts

  def texts(self) -> list[str]:
    """Returns the texts in the order of their hashes."""
    return list(self.kept().values())

  def _drop(self):
    num_texts, num_characters = self._limits
    kept, self._characters = {}, 0
    for key in sorted(self._texts)[:num_texts]:
      size = len(self._texts[key])
      if kept and self._characters + size > num_characters:
        break
      kept[key] = self._texts[key]
      self._characters += size
    self._texts = kept


def sample_chunk(
  chunk: Chunk, settings: Settings, held_out: pathlib.Path | None
) -> tuple[dict[int, str], collections.Counter[str]]:
  """Chooses texts of a chunk for `Sample`; also returns counts."""
  counts: collections.Counter[str] = collections.Counter()
  texts = {
    key: text[:_SAMPLE_CHARACTERS]
    for key, text in _read(chunk, settings, held_out, counts)
  }
  keys = np.array(list(texts), np.uint64)
  test = corpus.is_held_out(keys, settings.held_out_fraction)
  sample = Sample(settings.train_from)
  # Rehashed, so that this choice is independent of the held-out one.
  order = mix(keys, 'tokenizer')
  sample.add(
    {
      int(place): texts[int(key)]
      for key, place in zip(keys[~test], order[~test], strict=True)
    }
  )
  return sample.kept(), counts

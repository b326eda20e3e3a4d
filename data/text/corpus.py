"""A folder of tokens: two splits of documents, mapped into memory.

    manifest.json        counts, hashes, and how it was made; written last
    tokenizer.model      SentencePiece
    train/, test/
      tokens-00000.bin   uint16, little-endian, documents one after another
      documents.bin      a hash and the first token of each document
      counts.bin         int64, number of occurrences of each piece

A document lies in one file. The hash of its text alone decides which member
reads it, and when.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64, Integer, UInt16, UInt64

from data.partition import mix
from data.preparing import resumable
from data.text.tokenizer import (
  END_OF_DOCUMENT,
  SPECIAL_PIECES,
  Tokenizer,
)

FORMAT = 'codistill-text/1'
SPLITS = ('train', 'test')
TOKENIZER = 'tokenizer.model'
DOCUMENTS = 'documents.bin'
COUNTS = 'counts.bin'
DOCUMENT = np.dtype([('hash', '<u8'), ('start', '<u8')])
TOKEN = np.dtype('<u2')
# A file that has so many tokens (4 GiB) is full. The paper's corpus needs some
# 300 files, and a process may not map many more.
SHARD_TOKENS = 1 << 31


class CorpusError(ValueError):
  """A folder has no finished corpus; the message says what to do."""


def hash_document(text: str) -> int:
  """Hashes a document's UTF-8 to 64 bits of BLAKE2b."""
  digest = hashlib.blake2b(text.encode('utf-8'), digest_size=8).digest()
  return int.from_bytes(digest, 'little')


def is_held_out(
  hashes: UInt64[np.ndarray, ' documents'], fraction: float
) -> Bool[np.ndarray, ' documents']:
  """Chooses documents to keep from training, by their hashes alone."""
  return mix(hashes, 'held out') < fraction * 2.0**64


def shard_name(number: int) -> str:
  """Returns the name of a shard's file."""
  return f'tokens-{number:05d}.bin'


@dataclasses.dataclass(frozen=True, eq=False)
class Documents:
  """The stored documents of one split.

  Attributes:
    hashes: hash of each document's text.
    starts: each document's first token, counted over the split; and the number
      of all tokens.
    shards: the tokens, file by file.
    counts: number of occurrences of each piece.
  """

  hashes: UInt64[np.ndarray, ' documents']
  starts: Int64[np.ndarray, ' documents_and_one']
  shards: tuple[UInt16[np.ndarray, ' _'], ...]
  counts: Int64[np.ndarray, ' vocab']

  @property
  def num_tokens(self) -> int:
    """Number of tokens of all documents."""
    return int(self.starts[-1])

  def read(
    self,
    starts: Integer[np.ndarray, ' pieces'],
    lengths: Integer[np.ndarray, ' pieces'],
  ) -> UInt16[np.ndarray, ' tokens']:
    """Reads pieces of documents, one after another.

    Args:
      starts: first token of each piece, counted over the split.
      lengths: lengths of the pieces; none may go beyond its document.
    """
    ends = np.cumsum(lengths)
    out = np.empty(ends[-1] if len(ends) else 0, np.uint16)
    if len(self.shards) == 1:
      shards = (0,) * len(starts)
      within = starts
    else:
      first = np.cumsum([0, *map(len, self.shards[:-1])])
      # Shards may be empty: the last one that begins there has the token.
      shards = np.searchsorted(first, starts, 'right') - 1
      within = starts - first[shards]
      shards = shards.tolist()
    arrays, begin = self.shards, 0
    for shard, start, length, end in zip(
      shards, within.tolist(), lengths.tolist(), ends.tolist(), strict=True
    ):
      out[begin:end] = arrays[shard][start : start + length]
      begin = end
    return out


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
  """An opened folder.

  Attributes:
    folder: its path.
    manifest: content of `manifest.json`.
    splits: documents by split.
  """

  folder: pathlib.Path
  manifest: dict[str, Any]
  splits: dict[str, Documents]

  @property
  def fingerprint(self) -> str:
    """A hash of all documents, their order and the tokenizer."""
    return self.manifest['fingerprint']

  @property
  def vocab_size(self) -> int:
    """Number of pieces."""
    return self.manifest['tokenizer']['vocab_size']

  @property
  def vocabulary(self) -> str:
    """A hash of the tokenizer: texts with the same one mix."""
    return self.manifest['tokenizer']['sha256']

  def tokenizer(self) -> Tokenizer:
    """Opens the tokenizer that made the tokens.

    Raises:
      CorpusError: if it is gone or damaged.
    """
    try:
      model = (self.folder / TOKENIZER).read_bytes()
      if hashlib.sha256(model).hexdigest() != self.vocabulary:
        raise ValueError('This is another one.')
      return Tokenizer(model)
    except (OSError, ValueError) as error:
      raise CorpusError(
        f'{self.folder / TOKENIZER} is gone or damaged: copy {self.folder} '
        'again, or prepare it again with --overwrite.'
      ) from error

  def beginning(self, text: str) -> list[int]:
    """`</D>`, and the tokens of a document that begins with a text.

    Raises:
      ValueError: if the tokenizer is gone or damaged, or the text is not UTF-8.
    """
    # The built-in corpus says nothing of itself: it marks ends alone.
    settings = self.manifest.get('settings', {})
    tokens = self.tokenizer().encode(
      text.encode().decode(),  # No surrogates.
      structure=settings.get('structure', 'none'),
      language=settings.get('sentence_language', 'en'),
      whole=False,
    )
    return [END_OF_DOCUMENT, *tokens.tolist()]


def open_corpus(folder: str | os.PathLike) -> Corpus:
  """Opens a folder; reads the index of its documents, but no tokens.

  Raises:
    CorpusError: if it is missing, unfinished or incomplete.
  """
  folder = pathlib.Path(folder)
  manifest = resumable.open_manifest(
    folder,
    FORMAT,
    what='prepared text',
    command='scripts.prepare_text --input=FILES --format=FORMAT --vocab-size=N',
    error=CorpusError,
  )
  try:
    splits = {
      split: _open_split(folder / split, manifest['splits'][split], manifest)
      for split in SPLITS
    }
  except (OSError, ValueError) as error:
    raise CorpusError(
      f'{folder} is incomplete ({error}): copy it again, or prepare it again '
      'with --overwrite.'
    ) from error
  return Corpus(folder, manifest, splits)


def _open_split(folder, facts, manifest):
  def array(name, dtype, length):
    path = folder / name
    size = path.stat().st_size
    if size != length * dtype.itemsize:
      raise ValueError(
        f'{folder.name}/{name} has {size} bytes, not {length * dtype.itemsize}'
      )
    if not length:
      return np.empty(0, dtype)
    # A plain array on the same memory: slicing a memmap costs ten times more.
    return np.asarray(np.memmap(path, dtype, 'r', shape=(length,)))

  documents = array(DOCUMENTS, DOCUMENT, facts['documents'])
  return Documents(
    hashes=documents['hash'].astype(np.uint64),
    starts=np.append(documents['start'], facts['tokens']).astype(np.int64),
    shards=tuple(
      array(shard['file'], TOKEN, shard['tokens']) for shard in facts['shards']
    ),
    counts=np.array(
      array(COUNTS, np.dtype('<i8'), manifest['tokenizer']['vocab_size'])
    ),
  )


class CorpusWriter:
  """Appends documents to the two splits of an unfinished folder."""

  def __init__(
    self, folder: pathlib.Path, state: dict[str, Any], shard_tokens: int
  ):
    """Begins a folder, or continues it.

    Args:
      folder: the unfinished folder.
      state: a result of `state`, to continue from: content written later is
        dropped; {} to begin.
      shard_tokens: a file that has so many tokens is full.
    """
    self._folder = folder
    self._shard_tokens = shard_tokens
    self._shards = {
      split: list(state.get(split, {}).get('shards', [])) for split in SPLITS
    }
    self._documents = {
      split: state.get(split, {}).get('documents', 0) for split in SPLITS
    }
    self._written: set[pathlib.Path] = set()
    for split in SPLITS:
      (folder / split).mkdir(parents=True, exist_ok=True)
      wanted = {
        DOCUMENTS: self._documents[split] * DOCUMENT.itemsize,
        **{
          shard_name(number): tokens * TOKEN.itemsize
          for number, tokens in enumerate(self._shards[split])
        },
      }
      for path in (folder / split).iterdir():
        if path.name not in wanted:
          path.unlink()
      for name, size in wanted.items():
        with open(folder / split / name, 'ab') as file:
          if file.tell() < size:
            raise CorpusError(
              f'{folder} is incomplete ({split}/{name} is too short): remove '
              'it and begin anew.'
            )
          file.truncate(size)

  def append(
    self,
    split: str,
    tokens: UInt16[np.ndarray, ' tokens'],
    hashes: UInt64[np.ndarray, ' documents'],
    lengths: Integer[np.ndarray, ' documents'],
  ) -> None:
    """Adds documents, which come one after another in `tokens`."""
    if not len(hashes):
      return
    shards = self._shards[split]
    documents = np.empty(len(hashes), DOCUMENT)
    documents['hash'] = hashes
    documents['start'] = sum(shards) + np.cumsum(lengths) - lengths
    if not shards or shards[-1] >= self._shard_tokens:
      shards.append(0)
    self._write(split, shard_name(len(shards) - 1), tokens.astype(TOKEN))
    self._write(split, DOCUMENTS, documents)
    shards[-1] += len(tokens)
    self._documents[split] += len(hashes)

  def state(self) -> dict[str, Any]:
    """Writes everything to the disk; returns its description, for JSON."""
    for path in self._written:
      with open(path, 'ab') as file:
        os.fsync(file.fileno())
    self._written.clear()
    return {
      split: {
        'shards': list(self._shards[split]),
        'documents': self._documents[split],
      }
      for split in SPLITS
    }

  def _write(self, split, name, array):
    path = self._folder / split / name
    with open(path, 'ab') as file:
      file.write(array.tobytes())
    self._written.add(path)


def seal_file(
  path: pathlib.Path, vocab_size: int | None
) -> tuple[str, Int64[np.ndarray, ' vocab'] | None]:
  """Reads a file back; returns its SHA-256, and each token's count, if any."""
  digest = hashlib.sha256()
  counts = None if vocab_size is None else np.zeros(vocab_size, np.int64)
  with open(path, 'rb') as file:
    while block := file.read(1 << 24):
      digest.update(block)
      if counts is not None:
        tokens = np.frombuffer(block, TOKEN)
        counts += np.bincount(tokens, minlength=vocab_size)
  return digest.hexdigest(), counts


def files_to_seal(
  state: dict[str, Any], vocab_size: int
) -> list[tuple[str, int | None]]:
  """Lists the arguments of `seal_file`, with paths relative to the folder."""
  files: list[tuple[str, int | None]] = [(TOKENIZER, None)]
  for split in SPLITS:
    files.append((f'{split}/{DOCUMENTS}', None))
    for number in range(len(state[split]['shards'])):
      files.append((f'{split}/{shard_name(number)}', vocab_size))
  return files


def finish(
  partial: pathlib.Path,
  folder: pathlib.Path,
  state: dict[str, Any],
  seals: dict[str, tuple[str, np.ndarray | None]],
  facts: dict[str, Any],
  *,
  vocab_size: int,
  invertible: bool,
  leave_out: Iterable[str] = (),
) -> None:
  """Writes the manifest and gives the finished folder its name.

  Args:
    partial: the unfinished folder.
    folder: its final path; must not exist.
    state: the writer's final state.
    seals: results of `seal_file` for `files_to_seal`, by file.
    facts: further content of the manifest: how the text was made.
    vocab_size: number of the tokenizer's pieces.
    invertible: whether the tokenizer is invertible.
    leave_out: names of files in `partial` that only the preparation needed.

  Raises:
    OSError: if `folder` exists and is not empty.
  """
  splits = {}
  for split in SPLITS:
    counts = sum(
      (
        seal[1]
        for path, seal in seals.items()
        if path.startswith(f'{split}/') and seal[1] is not None
      ),
      np.zeros(vocab_size, np.int64),
    )
    (partial / split / COUNTS).write_bytes(counts.astype('<i8').tobytes())
    splits[split] = {
      'documents': state[split]['documents'],
      'tokens': sum(state[split]['shards']),
      'shards': [
        {
          'file': shard_name(number),
          'tokens': tokens,
          'sha256': seals[f'{split}/{shard_name(number)}'][0],
        }
        for number, tokens in enumerate(state[split]['shards'])
      ],
      'documents_sha256': seals[f'{split}/{DOCUMENTS}'][0],
    }
  identity = {
    'tokenizer': {
      'file': TOKENIZER,
      'sha256': seals[TOKENIZER][0],
      'vocab_size': vocab_size,
      'invertible': invertible,
      'special_pieces': list(SPECIAL_PIECES),
    },
    'splits': splits,
  }
  manifest = {
    'format': FORMAT,
    'fingerprint': hashlib.sha256(
      json.dumps(identity, sort_keys=True).encode()
    ).hexdigest(),
    **identity,
    **facts,
  }
  resumable.finish(partial, folder, manifest, leave_out)


def join_documents(
  documents: Sequence[np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
  """Joins the tokens of documents; returns each document's length, too."""
  lengths = np.array([len(one) for one in documents], np.int64)
  tokens = np.concatenate([np.empty(0, np.uint16), *documents])
  return tokens, lengths

"""The built-in corpus: the tokens of `data.text.builtin_sources`."""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from data.preparing import cache, resumable
from data.text import builtin_sources, corpus
from data.text.builtin_sources import BuiltinCorpusError
from data.text.tokenizer import Tokenizer

TOKENIZER = pathlib.Path(__file__).with_name('builtin_tokenizer.model')
HELD_OUT_FRACTION = 0.02


def open_builtin(cache_dir: str | os.PathLike | None) -> corpus.Corpus:
  """Opens the built-in corpus, made on first use in some ten seconds.

  Args:
    cache_dir: its folder; None for `codistill` in $XDG_CACHE_HOME, or in
      ~/.cache.

  Raises:
    BuiltinCorpusError: if the installed packages are not the pinned ones, or
      if it cannot be written.
  """
  model = TOKENIZER.read_bytes()
  made_of = (
    f'{builtin_sources.FINGERPRINT} {HELD_OUT_FRACTION} '.encode() + model
  )
  key = hashlib.sha256(made_of).hexdigest()[:16]
  folder = cache.cache_folder(cache_dir) / f'builtin-{key}'
  try:
    return cache.open_or_make(
      folder, corpus.open_corpus, lambda new: _make(model, new)
    )
  except OSError as error:
    raise BuiltinCorpusError(
      f'The built-in corpus cannot be written to {folder.parent} '
      f'({error.strerror}): set XDG_CACHE_HOME to a folder that you can write '
      'to.'
    ) from error


def _make(model: bytes, folder: pathlib.Path) -> None:
  partial = resumable.partial_of(folder)
  texts = builtin_sources.documents()
  tokenizer = Tokenizer(model)
  partial.mkdir()
  (partial / corpus.TOKENIZER).write_bytes(model)
  # Threads suffice: tokenising runs outside Python.
  with ThreadPoolExecutor(os.cpu_count()) as pool:
    encode = functools.partial(
      tokenizer.encode, structure='none', language='en'
    )
    tokens = list(pool.map(encode, texts))
  hashes = np.array([*map(corpus.hash_document, texts)], np.uint64)
  test = corpus.is_held_out(hashes, HELD_OUT_FRACTION)
  writer = corpus.CorpusWriter(partial, {}, corpus.SHARD_TOKENS)
  for split, wanted in (('train', ~test), ('test', test)):
    chosen = np.flatnonzero(wanted)
    joined, lengths = corpus.join_documents([tokens[i] for i in chosen])
    writer.append(split, joined, hashes[chosen], lengths)
  state = writer.state()
  seals = {
    name: corpus.seal_file(partial / name, size)
    for name, size in corpus.files_to_seal(state, tokenizer.vocab_size)
  }
  facts = {
    'counts': {
      'documents': len(texts),
      'characters': sum(map(len, texts)),
    },
    'inputs': [
      {'name': f'{package} {version}', 'key': digest}
      for package, (version, digest) in builtin_sources.PACKAGES.items()
    ],
  }
  corpus.finish(
    partial,
    folder,
    state,
    seals,
    facts,
    vocab_size=tokenizer.vocab_size,
    invertible=tokenizer.invertible,
  )
  # The text is large, and no longer needed.
  builtin_sources.documents.cache_clear()

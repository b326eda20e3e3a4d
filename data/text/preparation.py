"""From files to a corpus: read, filter, tokenise, on all cores, resumably.

Any number of processes work on chunks, which are written in their order, so the
result depends on the input and the settings alone. `state.json` records the
progress after every chunk: another run with the same settings continues from
there, and its result is the same, byte for byte.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import importlib.metadata
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from data.partition import mix
from data.preparing import resumable, workers
from data.preparing.compressed import Input
from data.preparing.resumable import PreparationError
from data.text import corpus
from data.text.documents import read_documents
from data.text.inputs import Reading
from data.text.records import Chunk, read_chunks
from data.text.tokenizer import Tokenizer, VocabularyError, train_tokenizer

# The tokenizer learns from `train_from` documents: those with the smallest
# hashes among this many times as many. These are the most characters that it
# takes from one document, and in all.
_SEARCH_FACTOR = 20
_SAMPLE_CHARACTERS = 1_000_000
SAMPLE_CHARACTERS_IN_ALL = 100_000_000
_PACKAGES = ('sentencepiece', 'sentencex', 'py3langid')


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
class Progress:
  """The progress of a run.

  Attributes:
    phase: 'sampling', 'training the tokenizer', 'tokenising' or 'sealing'.
    done: part of `total` that is done; bytes of input, or documents of sets;
      bytes of output for 'sealing'.
    total: 0 if unknown.
    resumed: part of `done` that an earlier run did.
    documents: kept in this phase so far, earlier runs included.
    tokens: written so far, earlier runs included.
  """

  phase: str
  done: int
  total: int
  resumed: int
  documents: int
  tokens: int


def prepare(
  settings: Settings,
  inputs: Sequence[Input],
  held_out: Sequence[Input],
  output: pathlib.Path,
  *,
  num_workers: int,
  overwrite: bool,
  report: Callable[[Progress], None],
) -> dict[str, Any]:
  """Makes a corpus, or continues an interrupted preparation.

  Args:
    settings: the settings that the result depends on.
    inputs: results of `inputs.find_inputs`.
    held_out: input to evaluate on; empty for a share of `inputs`.
    output: the folder to make; it has another name until it is complete.
    num_workers: processes besides this one.
    overwrite: replaces an existing folder, and begins anew.
    report: called now and then.

  Returns:
    The manifest.

  Raises:
    PreparationError: if the preparation fails.
    InputError: if an input cannot be read.
  """
  if held_out:
    settings = dataclasses.replace(settings, held_out_fraction=0.0)
  plain = _plain(settings, inputs, held_out)
  partial = resumable.partial_of(output)
  if resumable.is_finished(output) and not overwrite:
    resumable.check_finished(output, plain, _manifest(output))
    return _manifest(output)
  with resumable.locked(partial, output):
    if overwrite:
      resumable.empty(partial)
    state = resumable.begin(partial, plain) or {
      'input': 0,
      'chunk': 0,
      'position': 0,
      'counts': {},
      'written': {},
    }
    with workers.processes(num_workers) as pool:
      run = _Run(settings, inputs, held_out, partial, pool, report)
      tokenizer = run.make_tokenizer()
      run.tokenise(state, tokenizer)
      seals = run.seal(state)
    if overwrite and output.exists():
      shutil.rmtree(output)
    corpus.finish(
      partial,
      output,
      state['written'],
      seals,
      {'counts': dict(sorted(state['counts'].items())), **plain},
      vocab_size=tokenizer.vocab_size,
      invertible=tokenizer.invertible,
      leave_out=(resumable.STATE, resumable.PLAN, resumable.LOCK),
    )
  return _manifest(output)


class _Run:
  """One run of `prepare`, with the state that its phases share."""

  def __init__(self, settings, inputs, held_out, partial, pool, report):
    self._settings = settings
    # In order; held-out input comes last.
    self._inputs = [
      *((one, None if not held_out else 'train') for one in inputs),
      *((one, 'test') for one in held_out),
    ]
    self._partial = partial
    self._pool = pool
    self._report = report

  def make_tokenizer(self) -> Tokenizer:
    """Trains the tokenizer, unless an earlier run did."""
    path = self._partial / corpus.TOKENIZER
    if not path.exists():
      texts = self._sample()
      characters = sum(map(len, texts))
      self._report(
        Progress('training the tokenizer', 0, 0, 0, len(texts), characters)
      )
      settings = self._settings
      try:
        # In another process: it takes minutes and cannot be interrupted.
        model = self._pool.submit(
          train_tokenizer,
          texts,
          vocab_size=settings.vocab_size,
          oov=settings.oov,
          character_coverage=settings.character_coverage,
          structure=settings.structure,
          language=settings.sentence_language,
        ).result()
      except VocabularyError as error:
        raise PreparationError(str(error)) from error
      resumable.write(path, model)
    return Tokenizer.from_file(path)

  def _sample(self) -> list[str]:
    """Chooses texts to train the tokenizer on."""
    settings = self._settings
    sample = _Sample(settings.train_from, SAMPLE_CHARACTERS_IN_ALL)
    training = [one for one, split in self._inputs if split != 'test']
    total = sum(one.size for one in training)
    search = _SEARCH_FACTOR * settings.train_from
    before = 0
    counts: collections.Counter[str] = collections.Counter()
    for one in training:
      chunks = read_chunks(one, settings.reading)
      for chunk, (found, more) in self._map(_sample_chunk, chunks, settings):
        sample.add(found)
        counts.update(more)
        seen = counts['documents']
        done, enough = before + chunk.position, search / max(seen, 1)
        # A part of a large input is enough.
        ends = min(total, max(done, round(done * enough)))
        self._report(Progress('sampling', done, ends, 0, seen, 0))
        if seen >= search:
          return sample.texts()
      before += one.size
    if not sample.texts():
      raise _nothing_left('train', counts)
    return sample.texts()

  def tokenise(self, state: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Writes all documents from where `state` says on, and updates it."""
    settings = self._settings
    writer = corpus.CorpusWriter(
      self._partial, state['written'], settings.shard_tokens
    )
    counts = collections.Counter(state['counts'])
    total = sum(one.size for one, _ in self._inputs)
    path = str(self._partial / corpus.TOKENIZER)
    before = sum(one.size for one, _ in self._inputs[: state['input']])
    resumed = None
    for number in range(state['input'], len(self._inputs)):
      one, split = self._inputs[number]
      first = state['chunk'] if number == state['input'] else 0
      chunks = read_chunks(one, settings.reading, first)
      for chunk, encoded in self._map(
        _encode_chunk, chunks, settings, split, path
      ):
        if resumed is None:
          resumed = before + (state['position'] if first else 0)
        counts.update(encoded.counts)
        for name, documents in encoded.splits.items():
          writer.append(name, *documents)
        state |= {
          'input': number,
          'chunk': chunk.number + 1,
          'position': chunk.position,
          'counts': dict(counts),
          'written': writer.state(),
        }
        resumable.write_state(self._partial, state)
        self._report(
          Progress(
            'tokenising',
            before + chunk.position,
            total,
            resumed,
            counts['documents'],
            _tokens(state['written']),
          )
        )
      before += one.size
    state |= {'counts': dict(counts), 'written': writer.state()}
    for split in corpus.SPLITS:
      if not state['written'][split]['documents']:
        raise _nothing_left(split, counts)

  def seal(self, state: dict[str, Any]) -> dict[str, Any]:
    """Reads back and hashes all written files."""
    files = corpus.files_to_seal(state['written'], self._settings.vocab_size)
    for split in corpus.SPLITS:
      (self._partial / split / corpus.COUNTS).unlink(missing_ok=True)
    sizes = {name: (self._partial / name).stat().st_size for name, _ in files}
    futures = {
      name: self._pool.submit(corpus.seal_file, self._partial / name, size)
      for name, size in files
    }
    seals, done = {}, 0
    for name, future in futures.items():
      seals[name] = future.result()
      done += sizes[name]
      self._report(
        Progress(
          'sealing',
          done,
          sum(sizes.values()),
          0,
          state['counts'].get('documents', 0),
          _tokens(state['written']),
        )
      )
    return seals

  def _map(
    self, function: Callable[..., Any], chunks: Iterator[Chunk], *arguments: Any
  ) -> Iterator[tuple[Chunk, Any]]:
    """Yields each chunk, without its data, and the result for it, in order."""
    return workers.map_in_order(
      self._pool,
      function,
      chunks,
      *arguments,
      strip=lambda chunk: dataclasses.replace(chunk, data=b''),
    )


# Runs in the pool's processes.


@dataclasses.dataclass(frozen=True)
class _Encoded:
  """The tokens, hashes and lengths of a chunk by split; and counts."""

  splits: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
  counts: collections.Counter[str]


def _encode_chunk(
  chunk: Chunk, settings: Settings, split: str | None, tokenizer_path: str
) -> _Encoded:
  tokenizer = _open_tokenizer(tokenizer_path)
  counts: collections.Counter[str] = collections.Counter()
  hashes, tokens = [], []
  for text in read_documents(chunk, settings.reading, counts):
    hashes.append(corpus.hash_document(text))
    tokens.append(
      tokenizer.encode(
        text,
        structure=settings.structure,
        language=settings.sentence_language,
      )
    )
    counts['characters'] += len(text)
  counts['documents'] += len(hashes)
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
  return _Encoded(splits, counts)


@functools.lru_cache(maxsize=1)
def _open_tokenizer(path: str) -> Tokenizer:
  return Tokenizer.from_file(path)


class _Sample:
  """The texts with the smallest hashes of all that were added."""

  def __init__(self, num_texts: int, num_characters: int):
    self._limits = (num_texts, num_characters)
    self._texts: dict[int, str] = {}
    self._characters = 0

  def add(self, texts: dict[int, str]) -> None:
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


def _sample_chunk(
  chunk: Chunk, settings: Settings
) -> tuple[dict[int, str], collections.Counter[str]]:
  texts = {}
  counts: collections.Counter[str] = collections.Counter()
  for text in read_documents(chunk, settings.reading, counts):
    counts['documents'] += 1
    texts[corpus.hash_document(text)] = text[:_SAMPLE_CHARACTERS]
  keys = np.array(list(texts), np.uint64)
  test = corpus.is_held_out(keys, settings.held_out_fraction)
  sample = _Sample(settings.train_from, SAMPLE_CHARACTERS_IN_ALL)
  # Rehashed, so that this choice is independent of the held-out one.
  order = mix(keys, 'tokenizer')
  sample.add(
    {
      int(place): texts[int(key)]
      for key, place in zip(keys[~test], order[~test], strict=True)
    }
  )
  return sample.kept(), counts


def _plain(
  settings: Settings, inputs: Sequence[Input], held_out: Sequence[Input]
) -> dict[str, Any]:
  """Facts that must not change between runs; the manifest has them too."""
  plain = dataclasses.asdict(settings)
  # The folder of TFDS sets does not affect the result.
  del plain['reading']['data_dir']
  return {
    'settings': plain,
    'inputs': [_facts(one) for one in inputs],
    'held_out_inputs': [_facts(one) for one in held_out],
    'packages': {
      package: importlib.metadata.version(package) for package in _PACKAGES
    },
  }


def _facts(one: Input) -> dict[str, Any]:
  return {'name': one.name, 'size': one.size, 'key': one.key}


def _manifest(folder: pathlib.Path) -> dict[str, Any]:
  return corpus.open_corpus(folder).manifest


def _tokens(written: dict[str, Any]) -> int:
  return sum(sum(written[split]['shards']) for split in written)


def _nothing_left(split: str, counts: dict[str, int]) -> PreparationError:
  return PreparationError(
    f'No document is left to {split} on, of {counts["records"]} records '
    f'({_summary(counts)}): '
    + (
      'check the input, and whether the filter is too strict.'
      if split == 'train'
      else 'raise --held-out-fraction, or name files with --held-out.'
    )
  )


def _summary(counts: dict[str, int]) -> str:
  """Lists the reasons for leaving records out, most frequent first."""
  left_out = sorted(
    (
      (count, reason)
      for reason, count in counts.items()
      if reason.startswith(('bad: ', 'filtered: '))
    ),
    reverse=True,
  )
  return (
    ', '.join(f'{count} {reason}' for count, reason in left_out)
    or 'none left out'
  )

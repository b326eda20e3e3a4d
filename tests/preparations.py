"""Pools, folders and TFDS sets for tests of prepared data."""

import concurrent.futures
import contextlib
import pathlib

import numpy as np

from data.preparing.resumable import partial_of
from data.text import corpus
from data.text.dataset import make_text


class Inline:
  """A pool in this process."""

  size = 2

  def submit(self, function, *arguments, **keywords):
    future = concurrent.futures.Future()
    try:
      future.set_result(function(*arguments, **keywords))
    except Exception as error:
      future.set_exception(error)
    return future


def inline(size):
  """Makes a pool in this process, in place of `workers.processes`."""
  return contextlib.nullcontext(Inline())


def files_of(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(pathlib.Path(folder).rglob('*'))
    if path.is_file()
  }


def open_text(name, **changes):
  """`make_text` with all documents, and whole ones."""
  limits = ('max_document_tokens', 'max_train_tokens', 'max_test_tokens')
  arguments = {'sequence_length': 8, 'cache_dir': None, **dict.fromkeys(limits)}
  return make_text(str(name), **(arguments | changes))


def write_corpus(
  folder, train, test, shard_tokens=50, vocab_size=1 << 16, model=b'none'
):
  """Writes documents, pairs of a hash and tokens, as prepare_text would."""
  partial = partial_of(folder)
  writer = corpus.CorpusWriter(partial, {}, shard_tokens)
  for split, documents in (('train', train), ('test', test)):
    for key, tokens in documents:
      of_one = np.array([key], np.uint64), np.array([len(tokens)])
      writer.append(split, np.array(tokens, np.uint16), *of_one)
  (partial / corpus.TOKENIZER).write_bytes(model)
  state = writer.state()
  seals = {
    name: corpus.seal_file(partial / name, size)
    for name, size in corpus.files_to_seal(state, vocab_size)
  }
  corpus.finish(
    partial, folder, state, seals, {}, vocab_size=vocab_size, invertible=True
  )
  return folder


def texts_of(folder, split):
  made = corpus.open_corpus(folder)
  documents, tokenizer = made.splits[split], made.tokenizer()
  return [
    tokenizer.decode(documents.read(np.array([a]), np.array([b - a])))
    for a, b in zip(documents.starts[:-1], documents.starts[1:], strict=True)
  ]


def write_tfds(
  folder, name, version, features, splits, file_format='array_record'
):
  """Writes a set in TFDS's form, without TensorFlow."""
  import tensorflow_datasets as tfds
  from array_record.python import array_record_module

  path = pathlib.Path(folder, name, version)
  path.mkdir(parents=True)
  features = tfds.features.FeaturesDict(features)
  template = tfds.core.ShardedFileTemplate(path)
  infos = []
  for split, examples in splits.items():
    file = path / f'{name}-{split}.{file_format}-00000-of-00001'
    writer = array_record_module.ArrayRecordWriter(str(file), 'group_size:1')
    for example in examples:
      writer.write(features.serialize_example(example))
    writer.close()
    infos.append(tfds.core.SplitInfo(split, [len(examples)], 1, template))
  tfds.folder_dataset.write_metadata(
    data_dir=path,
    features=features,
    split_infos=infos,
    supervised_keys=('image', 'label') if 'image' in features else None,
    check_data=False,
  )

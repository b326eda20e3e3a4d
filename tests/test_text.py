import functools
import itertools

import numpy as np
import pytest
import streams
from preparations import open_text, write_corpus
from streams import MEMBER, assert_rows_are_slices, assert_same, differ

from data.text import dataset as text

T = 5
END = 1
# Documents are long and short; some get a file of their own.
LENGTHS = [1, 2, 3, 40, 7, 1, 1, 90, 13, 5, 2, 30, 11, 64, 8, 3, 1, 17, 21, 9]


def make_documents(lengths, first):
  """Documents in which all tokens differ; each is a hash and tokens."""
  rng = np.random.default_rng(first)
  hashes = rng.integers(1 << 63, size=len(lengths)).tolist()
  tokens = np.arange(first, first + sum(lengths))
  parts = np.split(tokens, np.cumsum(lengths)[:-1])
  return [*zip(hashes, (part.tolist() for part in parts), strict=True)]


def tokens_of(documents):
  return [token for _, tokens in documents for token in tokens]


make = functools.partial(open_text, sequence_length=T)
TRAIN = make_documents(LENGTHS, first=1_000)
TEST = make_documents([4, 1, 12, 3, 3], first=30_000)
NUM_TRAIN, NUM_TEST = sum(LENGTHS), 23


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  folder = tmp_path_factory.mktemp('text') / 'made'
  return make(write_corpus(folder, TRAIN, TEST))


def take(text_set, count, **changes):
  stream = text_set.train(**(MEMBER | {'batch_size': 4} | changes))
  return streams.take(stream, count)


def lanes_of(text_set, length, **changes):
  """The first tokens of each lane: [lanes, length]."""
  batches = take(text_set, -(-length // T), **changes)
  return np.concatenate([b['inputs'] for b in batches], axis=1)[:, :length]


def own_tokens(text_set, **changes):
  """All tokens that a member ever sees; two passes are more than enough."""
  return {*lanes_of(text_set, 2 * NUM_TRAIN, **changes).flat}


def test_a_batch_is_lanes_and_what_comes_next(prepared):
  assert prepared.num_train == prepared.num_examples('train') == NUM_TRAIN
  assert prepared.num_examples('test') == NUM_TEST
  assert prepared.num_documents == len(TRAIN)
  assert prepared.vocab_size == 1 << 16
  assert len(prepared.fingerprint) == 64
  batches = take(prepared, 40)
  for batch in batches:
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
      'inputs': ((4, T), np.int32),
      'labels': ((4, T), np.int32),
    }
    assert (batch['labels'][:, :-1] == batch['inputs'][:, 1:]).all()
  for one, other in itertools.pairwise(batches):
    assert (one['labels'][:, -1] == other['inputs'][:, 0]).all()
  # Members that share documents and seed draw the same.
  shared = {'members': 2, 'partition': 'shared', 'member': 1}
  assert_same(take(prepared, 9, **shared), batches[:9])
  assert differ(take(prepared, 9, **shared, seed=4), batches[:9])


@pytest.mark.parametrize('batch_size', [1, 4, 30])
def test_a_pass_has_every_token_once_and_documents_whole(batch_size, prepared):
  sizes = [*map(len, np.array_split(np.arange(NUM_TRAIN), batch_size))]
  lanes = lanes_of(prepared, 3 * max(sizes), batch_size=batch_size)
  orders = set()
  for turn in range(3):
    # End to end, the lanes are whole documents.
    parts = [lane[turn * n :][:n] for lane, n in zip(lanes, sizes, strict=True)]
    tokens = np.concatenate(parts)
    [begins] = np.nonzero(np.isin(tokens, [ts[0] for _, ts in TRAIN]))
    documents = np.split(tokens, begins[1:])
    assert sorted(map(list, documents)) == [tokens for _, tokens in TRAIN]
    orders.add(tuple(tokens[begins]))
  # Each pass has a new order.
  assert len(orders) == 3


@pytest.mark.parametrize('limit', [None, NUM_TRAIN // 2])
def test_members_documents_cover_and_do_not_meet(limit, prepared):
  text_set = make(prepared.corpus.folder, max_train_tokens=limit)
  in_order = sorted(TRAIN)
  ends = np.cumsum([len(tokens) for _, tokens in in_order])
  number = int(np.sum(ends <= (limit or NUM_TRAIN)))
  assert (1 < number < len(TRAIN)) == (limit is not None)
  assert text_set.num_documents == number
  assert text_set.num_train == ends[number - 1]
  thirds = {'members': 3, 'partition': 'disjoint', 'batch_size': 2}
  own = [own_tokens(text_set, member=m, **thirds) for m in range(3)]
  assert sum(map(len, own)) == text_set.num_train
  assert set.union(*own) == {*tokens_of(in_order[:number])}
  for tokens in own:
    # A document has one owner.
    assert all({*ts} <= tokens or not {*ts} & tokens for _, ts in TRAIN)


def test_a_batch_depends_on_nothing_before_it(prepared, monkeypatch):
  disjoint = {'members': 2, 'partition': 'disjoint', 'member': 1}
  straight = take(prepared, 60, **disjoint)
  for block_tokens in (1, 100, 1 << 20):
    monkeypatch.setattr(text, '_BLOCK_TOKENS', block_tokens)
    # In the middle of a pass, where lanes wrap around, and after several.
    for start in (0, 1, 7, 8, 31, 59):
      resumed = take(prepared, 60 - start, **disjoint, start=start)
      assert_same(straight[start:], resumed)


def test_rows_are_those_of_the_whole_batch(prepared):
  rows = ([0, 1, 2], [3, 4, 5, 6], [1, 5], [])
  train = functools.partial(prepared.train, **MEMBER, batch_size=7)
  assert_rows_are_slices(train, rows, 30)
  held_out = functools.partial(prepared.eval, 'test', batch_size=7)
  assert_rows_are_slices(held_out, rows, 1)


def test_lanes_do_not_depend_on_the_order_of_files(prepared, tmp_path):
  order = np.random.default_rng(0).permutation(len(TRAIN))
  shuffled = [TRAIN[i] for i in order]
  other = make(write_corpus(tmp_path / 'made', shuffled, TEST[::-1], 1_000))
  for changes in ({}, {'members': 2, 'partition': 'disjoint', 'member': 1}):
    assert_same(take(prepared, 50, **changes), take(other, 50, **changes))
  assert_same(*(list(t.eval('test', batch_size=3)) for t in (prepared, other)))


def test_a_batch_may_be_longer_than_many_passes(tmp_path, monkeypatch):
  monkeypatch.setattr(text, '_BLOCK_TOKENS', 1)
  documents = make_documents([2, 3, 1], 10)
  folder = write_corpus(tmp_path / 'made', documents, TEST)
  small = make(folder, sequence_length=50)
  [batch] = take(small, 1, batch_size=3)
  for turn in batch['inputs'].reshape(3, 25, 2).transpose(1, 0, 2):
    assert sorted(turn.flat) == [10, 11, 12, 13, 14, 15]


@pytest.mark.parametrize('split', ['train', 'test'])
@pytest.mark.parametrize(
  ('batch_size', 'length'),
  [(1, 1), (3, 5), (3, 100), (23, 1), (40, 5), (1, 100)],
)
def test_every_held_out_token_is_counted_once(
  batch_size, length, split, prepared
):
  text_set = make(prepared.corpus.folder, sequence_length=length)
  batches = list(text_set.eval(split, batch_size=batch_size))
  counted, before = [], {}
  documents = TRAIN if split == 'train' else TEST
  for batch in batches:
    assert batch['mask'].dtype == np.float32
    assert {array.shape for array in batch.values()} == {(batch_size, length)}
    there = batch['mask'] == 1
    assert not batch['inputs'][~there].any()
    assert not batch['labels'][~there].any()
    counted += batch['labels'][there].tolist()
    pairs = (batch[key][there] for key in ('labels', 'inputs'))
    before |= dict(zip(*pairs, strict=True))
    # Padding comes last in a lane.
    assert (np.diff(batch['mask'], axis=1) <= 0).all()
  for one, other in itertools.pairwise(batches):
    assert (one['mask'][:, -1] >= other['mask'][:, 0]).all()
  assert sorted(counted) == tokens_of(documents)
  assert len(counted) == text_set.num_examples(split)
  # The input is the token before: of the document before, or an end of one.
  in_order = tokens_of(sorted(documents))
  assert [before[t] for t in in_order] == [END, *in_order[:-1]]


def test_a_limit_takes_whole_documents_of_the_smallest_hashes(prepared):
  in_order = sorted(TEST)
  ends = np.cumsum([len(tokens) for _, tokens in in_order])
  for limit in (1, ends[0] + 1, 99):
    text_set = make(prepared.corpus.folder, max_test_tokens=int(limit))
    [*batches] = text_set.eval('test', batch_size=1)
    mask = np.concatenate([b['mask'][0] for b in batches]) == 1
    counted = np.concatenate([b['labels'][0] for b in batches])[mask].tolist()
    number = max(1, np.sum(ends <= limit))
    assert counted == tokens_of(in_order[:number])
    assert len(counted) == text_set.num_examples('test')


def test_long_documents_are_read_in_parts_that_lie_apart(prepared):
  limit = 4
  text_set = make(prepared.corpus.folder, max_document_tokens=limit)
  passes = lanes_of(text_set, 2 * NUM_TRAIN, batch_size=1).reshape(2, -1)
  for tokens in passes:
    assert sorted(tokens) == tokens_of(TRAIN)
    # Each token is its own number.
    places = {token: place for place, token in enumerate(tokens)}
    apart = 0
    for _, document in TRAIN:
      number = -(-len(document) // limit)
      edges = np.arange(1, number) * len(document) // number
      steps = np.diff([places[token] for token in document])
      assert (np.delete(steps, edges - 1) == 1).all()
      apart += np.sum(steps[edges - 1] != 1)
    assert apart
  assert (passes[0] != passes[1]).any()


def test_the_unigram_distribution_is_exact(tmp_path):
  documents = [(5, [7, 7, 1]), (6, [9, 1])]
  text_set = make(write_corpus(tmp_path / 'made', documents, TEST))
  shares = text_set.label_distribution()
  assert shares.dtype == np.float32
  wanted = np.zeros(1 << 16, np.float32)
  wanted[[7, 1, 9]] = [0.4, 0.4, 0.2]
  np.testing.assert_array_equal(shares, wanted)


def test_wrong_arguments_are_named(prepared):
  for changes, sentence in (
    ({'start': -1}, 'start must not be negative'),
    ({'seed': -1}, 'seed must not be negative'),
    ({'member': 1}, 'member 1 is out of range'),
    ({'partition': 'striped'}, "Unknown partition 'striped'"),
    ({'batch_size': NUM_TRAIN + 1}, f'too many for the {NUM_TRAIN} tokens'),
    ({'members': 99, 'partition': 'disjoint'}, 'too few for 99 disjoint'),
  ):
    with pytest.raises(ValueError, match=sentence):
      take(prepared, 0, **changes)
  for ask in (prepared.num_examples, lambda s: prepared.eval(s, batch_size=2)):
    with pytest.raises(ValueError, match="Unknown split 'validation'"):
      ask('validation')
  sizes = ('max_document_tokens', 'max_train_tokens', 'max_test_tokens')
  for key in ('sequence_length', *sizes):
    with pytest.raises(ValueError, match=f'{key} must be at least 1, got 0'):
      make(prepared.corpus.folder, **{key: 0})


def test_all_members_refuse_what_one_of_them_cannot_do(prepared):
  disjoint = {'members': 3, 'partition': 'disjoint', 'batch_size': 2}
  own = (own_tokens(prepared, member=m, **disjoint) for m in range(3))
  sizes = [*map(len, own)]
  poorest = int(np.argmin(sizes))
  disjoint['batch_size'] = sizes[poorest] + 1
  assert disjoint['batch_size'] <= max(sizes)
  for member in range(3):
    with pytest.raises(ValueError, match=f'of member {poorest}: prepare more'):
      take(prepared, 0, member=member, **disjoint)


def test_what_is_not_prepared_says_what_to_do(tmp_path):
  (tmp_path / 'begun.partial').mkdir()
  (tmp_path / 'manifest.json').write_text('{"format": "else"}')
  for name, sentence in (
    ('nowhere', r'no prepared text in .*prepare_text'),
    ('begun', 'run the same command again to continue'),
    ('.', 'describes no prepared text'),
  ):
    with pytest.raises(ValueError, match=sentence):
      make(tmp_path / name)
  folder = write_corpus(tmp_path / 'made', TRAIN, TEST)
  parts = ('tokens-00001.bin', 'documents.bin', 'counts.bin')
  for path in (folder / 'train' / name for name in parts):
    content = path.read_bytes()
    path.write_bytes(content[:-2])
    with pytest.raises(ValueError, match=f'{path.name} has .* with --overwr'):
      make(folder)
    path.unlink()
    with pytest.raises(ValueError, match='is incomplete'):
      make(folder)
    path.write_bytes(content)
  assert make(folder).num_train == NUM_TRAIN

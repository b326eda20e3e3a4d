import concurrent.futures
import hashlib
import importlib.metadata
import pathlib

import pytest
from preparations import open_text, texts_of

from data.preparing import cache
from data.text import builtin, builtin_sources
from data.text.builtin_sources import BuiltinCorpusError

ROOT = pathlib.Path(__file__).parents[1]


def open_builtin(cache_dir):
  return open_text('builtin', cache_dir=cache_dir)


@pytest.fixture
def small(monkeypatch):
  """Uses one package instead of all, so that it takes no time."""
  package = 'absl-py'
  only = {package: builtin_sources.PACKAGES[package]}
  monkeypatch.setattr(builtin_sources, 'PACKAGES', only)
  monkeypatch.setattr(builtin_sources, 'FINGERPRINT', 'of absl alone')
  monkeypatch.setattr(builtin, 'HELD_OUT_FRACTION', 0.3)
  builtin_sources.documents.cache_clear()
  yield package
  builtin_sources.documents.cache_clear()


def pretend(monkeypatch, tmp_path, change):
  """Installs a package of the corpus anew, elsewhere and changed."""
  name = 'absl-py'
  real = importlib.metadata.distribution(name)
  for path in real.files:
    if path.locate().is_file() and '..' not in path.parts:
      copy = tmp_path / path
      copy.parent.mkdir(parents=True, exist_ok=True)
      copy.write_bytes(change(str(path), path.locate().read_bytes()))
  [info] = tmp_path.glob('*.dist-info')
  fake = importlib.metadata.Distribution.at(info)
  monkeypatch.setattr(importlib.metadata, 'distribution', lambda _: fake)


def test_what_is_installed_is_what_everyone_has():
  # Raises unless every package is as it was when the hashes were written.
  documents = builtin_sources.documents()
  assert len(documents) == len(set(documents)) == 4_992
  assert sum(map(len, documents)) == 77_632_511
  # And its versions are those of the requirements.
  pinned = [
    line
    for name in ('requirements.txt', 'constraints.txt')
    for line in (ROOT / name).read_text(encoding='utf-8').splitlines()
  ]
  for package, (version, _) in builtin_sources.PACKAGES.items():
    assert f'{package}=={version}' in pinned
  # Another tokenizer makes other tokens, and results that cannot be compared.
  content = builtin.TOKENIZER.read_bytes()
  assert hashlib.sha256(content).hexdigest().startswith('ac740a200c711468')


def test_windows_line_ends_make_no_difference(small, monkeypatch, tmp_path):
  def with_returns(name, content):
    return content.replace(b'\n', b'\r\n') if name.endswith('.py') else content

  wanted = builtin_sources.documents()
  builtin_sources.documents.cache_clear()
  pretend(monkeypatch, tmp_path, with_returns)
  assert builtin_sources.documents() == wanted


def test_what_is_not_as_it_was_released_is_named(small, monkeypatch, tmp_path):
  def edited(name, content):
    return content + b'#' * (name == 'absl/app.py')

  with monkeypatch.context() as patch:
    pretend(patch, tmp_path, edited)
    sentence = r'absl-py .* --force-reinstall'
    with pytest.raises(BuiltinCorpusError, match=sentence):
      builtin_sources.documents()
  for package, found in ((small, r'\d'), ('no-such', 'none')):
    packages = {package: ('0.1', 'x')}
    monkeypatch.setattr(builtin_sources, 'PACKAGES', packages)
    sentence = rf'needs {package} 0\.1.*found {found}.*requirements'
    with pytest.raises(BuiltinCorpusError, match=sentence):
      builtin_sources.documents()


def test_it_is_made_once_and_reads_as_the_sources(small, monkeypatch, tmp_path):
  documents = builtin_sources.documents()
  # Several may make it at once.
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    text_set, *others = pool.map(open_builtin, [tmp_path / 'cache'] * 4)
  assert {o.fingerprint for o in others} == {text_set.fingerprint}
  folder, made = text_set.corpus.folder, builtin._make
  assert [folder] == list(folder.parent.iterdir())
  assert folder.name.startswith('builtin-')
  assert text_set.num_documents in range(len(documents) // 2, len(documents))
  tokenizer = text_set.tokenizer()
  assert tokenizer.invertible
  assert tokenizer.vocab_size == text_set.vocab_size == 512
  found = texts_of(folder, 'test')
  assert found
  assert set(found) < set(documents)
  # From now on it is only opened, and a broken one is made again.
  monkeypatch.setattr(builtin, '_make', None)
  assert open_builtin(tmp_path / 'cache').fingerprint == text_set.fingerprint
  monkeypatch.setattr(builtin, '_make', made)
  (folder / 'train' / 'documents.bin').write_bytes(b'')
  assert open_builtin(tmp_path / 'cache').num_train == text_set.num_train
  assert [folder] == list(folder.parent.iterdir())


def test_the_cache_is_the_users_or_one_sentence(small, monkeypatch, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(BuiltinCorpusError, match='set XDG_CACHE_HOME to a fol'):
    open_builtin(tmp_path / 'file' / 'cache')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  assert cache.cache_folder(None) == tmp_path / 'codistill'
  monkeypatch.delenv('XDG_CACHE_HOME')
  own = pathlib.Path.home() / '.cache' / 'codistill'
  assert cache.cache_folder(None) == own

"""Documents from Python sources that are installed with this project.

A document is a `.py` file of a package that requirements.txt pins, so it is the
same everywhere and needs no download. Files that differ between platforms or
Python versions are left out, and so are byte-for-byte duplicates.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import pathlib

from data.preparing.compressed import InputError

# The version of each package and a hash of its documents, as `python -m
# data.text.builtin_sources` prints them.
PACKAGES = {
  'absl-py': (
    '2.5.1',
    '06d5912f8e9b913be124ce73faa5e2cce2292217dbf585ea2cee885ae8371fb9',
  ),
  'etils': (
    '1.15.0',
    '11414aaf625bfe38f6719aa39851555ffaaaa59c3e5474a403c816d8f5f1f607',
  ),
  'flax': (
    '0.12.8',
    '42538105fcc4f171c72704cc2f42583e91ce5b1b6b50d07efad60b540ec71654',
  ),
  'grain': (
    '0.2.18',
    '110a8826dc7728f0503449e4de4a53d401dad38736b63a4b36b16aa326a91e07',
  ),
  'jax': (
    '0.10.2',
    '380016bca4e853e3ed3769da744ee5a25ce9fade1fcc359dea5c8cd8a8cc11cb',
  ),
  'matplotlib': (
    '3.11.2',
    '21315a8bcd8767fbd2b46548fe596a96af605f1a7a30dafc1f899aa3d9fc708f',
  ),
  'numpy': (
    '2.4.6',
    '96f288616ea3648fe6e371a4bfc711bebadc6868b7d2e258c6ba1ba1742a6156',
  ),
  'optax': (
    '0.2.8',
    '6bd7c7a39065a3bfa7325bfaefcb5717fdc6ea9e98a5f08b978a959acdfc02f6',
  ),
  'orbax-checkpoint': (
    '0.12.8',
    'be12be48acaa5f9f06863e2c754996255bde33fdd5f82e246590ae9f6724e9d7',
  ),
  'scikit-learn': (
    '1.9.1',
    '11186c7da80c1fa7fa8b2eda9dc6bbac7e98bb5baf88047038acb053ecba7189',
  ),
  'scipy': (
    '1.17.1',
    'a1f736890c0f11da5def21e068edf350f32210d6d8d34eef1735d96421471594',
  ),
  'tensorflow-datasets': (
    '4.9.10',
    '8d4ec9ebc45a7806089f000071951d28dc9b5f2ec629a9f3c9a8c4ed9f612759',
  ),
}
FINGERPRINT = hashlib.sha256(
  repr(sorted(PACKAGES.items())).encode()
).hexdigest()

# Installers or builds write these, so one version may differ.
_GENERATED = ('__config__.py', '_distributor_init.py')
# Windows wheels of these packages load their libraries in the first lines.
_PATCHED = ('numpy/__init__.py', 'scipy/__init__.py')
# Only in wheels for Python 3.11.
_OLD = ('numpy/distutils/',)


class BuiltinCorpusError(InputError):
  """The corpus cannot be made; the message says what to do."""


@functools.cache
def documents() -> tuple[str, ...]:
  """Returns all documents, by package and path.

  Raises:
    BuiltinCorpusError: if a package is missing, or not as released.
  """
  found, seen = [], set()
  for package, (version, digest) in PACKAGES.items():
    texts = _read(package, version)
    if _digest(texts) != digest:
      raise BuiltinCorpusError(
        f'The Python sources of {package} {version} differ from the release '
        'that the built-in corpus is made of: `pip install '
        f'--force-reinstall --no-deps {package}=={version}`.'
      )
    for text in texts.values():
      if text not in seen:
        seen.add(text)
        found.append(text)
  return tuple(found)


def _read(package: str, version: str) -> dict[str, str]:
  """Reads the sources of a package by path, sorted."""
  try:
    distribution = importlib.metadata.distribution(package)
  except importlib.metadata.PackageNotFoundError:
    distribution = None
  if distribution is None or distribution.version != version:
    raise BuiltinCorpusError(
      f'The built-in corpus needs {package} {version}, as requirements.txt '
      f'pins it, and found {distribution.version if distribution else "none"}: '
      '`pip install --requirement requirements.txt`.'
    )
  texts = {}
  for path in sorted(distribution.files or (), key=str):
    name = path.as_posix()
    if (
      path.suffix == '.py'
      and path.name not in _GENERATED
      and name not in _PATCHED
      and not name.startswith((*_OLD, '..'))
    ):
      # Line ends of Windows become those of other platforms.
      content = pathlib.Path(path.locate()).read_bytes().replace(b'\r\n', b'\n')
      texts[name] = content.decode('utf-8')
  # Not `sorted` above: a path's parts and its text sort differently.
  return {name: text for name, text in sorted(texts.items()) if text.strip()}


def _digest(texts: dict[str, str]) -> str:
  digest = hashlib.sha256()
  for name, text in texts.items():
    content = text.encode('utf-8')
    digest.update(f'{name} {len(content)}\n'.encode() + content)
  return digest.hexdigest()


def digests() -> dict[str, tuple[str, str]]:
  """Returns what PACKAGES should be for the installed packages."""
  versions = {
    package: importlib.metadata.version(package) for package in PACKAGES
  }
  return {
    package: (version, _digest(_read(package, version)))
    for package, version in versions.items()
  }


if __name__ == '__main__':
  for package, pair in digests().items():
    print(f'  {package!r}: {pair!r},')

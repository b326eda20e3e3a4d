"""Prepares a TFDS image set once, in the form that `data.images` reads.

  python -m scripts.prepare_images cifar10 [--data_dir=DIR]

The command downloads the set and writes it as ArrayRecord files under DIR,
$TFDS_DATA_DIR or ~/tensorflow_datasets. It needs TensorFlow, which nothing else
here does: give it an environment of its own, from
scripts/requirements-prepare.txt.

A program cannot download ImageNet (`imagenet2012`): if its two files are
missing, the command says which they are and where to put them.
"""

import argparse
import importlib.util
import logging
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence

from experiments.paths import local_path

ENVIRONMENT = (
  'Preparing {name} needs {package}, which is not installed here; use an '
  'environment of its own:\n'
  '  python3 -m venv .venv-prepare && '
  '.venv-prepare/bin/pip install -r scripts/requirements-prepare.txt && '
  '.venv-prepare/bin/python -m scripts.prepare_images {arguments}'
)


# Sets with files that a person has to fetch: the files, where, and the space.
MANUAL = {
  'imagenet2012': (
    ('ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'),
    'https://image-net.org/download-images',
    'about 300 GB of disk while it runs, half of that afterwards',
  )
}


class PreparationError(Exception):
  """The set is not prepared; the message is for the user."""


def prepare(name: str, data_dir: str | None) -> str:
  """Downloads a set and writes it, unless that has been done.

  Args:
    name: TFDS's name of the set, such as 'cifar10'.
    data_dir: folder of TFDS sets; None for $TFDS_DATA_DIR, or TFDS's default.

  Returns:
    A sentence that says where the set is.

  Raises:
    PreparationError: if it cannot be prepared.
  """
  if name == 'digits':
    return 'digits come with scikit-learn: there is nothing to prepare.'

  def lacks(package):
    arguments = [name] + ([f'--data_dir={data_dir}'] if data_dir else [])
    return PreparationError(
      ENVIRONMENT.format(
        name=name, package=package, arguments=shlex.join(arguments)
      )
    )

  if importlib.util.find_spec('tensorflow_datasets') is None:
    raise lacks('TensorFlow Datasets')
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder(name, data_dir=data_dir)
  # TFDS raises AssertionError for a version that it does not have.
  except (ValueError, AssertionError) as error:
    raise PreparationError(f'TFDS has no set called {name!r}.') from error
  except ImportError as error:
    # Some sets import TensorFlow before they are asked to prepare.
    raise lacks(error.name) from error
  if builder.info.initialized:
    formats = {form.value for form in builder.info.available_file_formats()}
    if 'array_record' not in formats:
      raise PreparationError(
        f'{name} is already in {builder.data_dir}, but as '
        f'{" and ".join(sorted(formats))}, which training cannot read: choose '
        'another folder with --data_dir.'
      )
    return f'{name} is already prepared in {builder.data_dir}.'
  # First, because TensorFlow is much to install for nothing, and because with
  # one of the files TFDS would go on and leave out a split.
  _check_manual(builder.name, pathlib.Path(builder.data_dir))
  if importlib.util.find_spec('tensorflow') is None:
    raise lacks('TensorFlow')
  try:
    builder.download_and_prepare(file_format='array_record')
  except Exception as error:
    # TFDS has no common type for its errors (offline, a full disk, a changed
    # checksum, a missing package, …), but each has a message.
    raise PreparationError(
      f'{name} could not be prepared ({type(error).__name__}): {error}'
    ) from error
  return f'{name} is prepared in {builder.data_dir}.'


def _check_manual(name: str, data_dir: pathlib.Path) -> None:
  """Refuses a set if files that a person must fetch are missing."""
  if name not in MANUAL:
    return
  files, address, space = MANUAL[name]
  # TFDS looks beside the sets: DIR/downloads/manual, for DIR/name/version.
  folder = data_dir.parent.parent / 'downloads' / 'manual'
  missing = [file for file in files if not (folder / file).exists()]
  if missing:
    raise PreparationError(
      f'{name} cannot be downloaded by a program, and {" and ".join(missing)} '
      f'{"is" if len(missing) == 1 else "are"} not in {folder}: register at '
      f'{address}, agree to the terms, download {" and ".join(files)} into '
      f'that folder, and run this again ({space}).'
    )


def main(arguments: Sequence[str] | None = None) -> str | int | None:
  """Runs the command line; returns what `sys.exit` takes."""
  parser = argparse.ArgumentParser(
    prog='python -m scripts.prepare_images',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('name', metavar='NAME', help="TFDS's name of the set")
  parser.add_argument(
    '--data_dir', metavar='DIR', type=local_path, help='folder of TFDS sets'
  )
  flags = parser.parse_args(arguments)
  data_dir = flags.data_dir and str(flags.data_dir)
  if flags.name == 'digits' and data_dir:
    parser.error('--data_dir changes nothing for digits; leave it out')
  try:
    print(prepare(flags.name, data_dir))
  except PreparationError as error:
    return str(error)
  except KeyboardInterrupt:
    print(
      'Interrupted: the same command begins anew, with the files that have '
      'been downloaded.',
      file=sys.stderr,
    )
    return 130
  default = os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  if data_dir and data_dir != os.path.expanduser(default):
    print('Training finds it with:')
    print(f'  export TFDS_DATA_DIR={shlex.quote(data_dir)}')
  return None


if __name__ == '__main__':
  # Without TensorFlow's banner and a line for each retry of each file; the
  # progress bar shows as much.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  logging.getLogger('urllib3.connectionpool').setLevel(logging.ERROR)
  sys.exit(main())

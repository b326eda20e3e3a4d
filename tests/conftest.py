"""Eight CPU devices for every test; programs compile fast and are kept."""

import gc
import os
import pathlib
import signal

import jax
import numpy as np
import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  # A script's background jobs ignore it, and so would processes of tests.
  signal.signal(signal.SIGINT, signal.default_int_handler)
if jax.__version__.startswith('0.10.'):  # Others may refuse it.
  # It halves compilation; set before the first array, and for tests' processes.
  flags = '--xla_cpu_use_fusion_emitters=false'
  flags += ' --xla_cpu_parallel_codegen_split_count=1'
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flags}'
jax.config.update('jax_num_cpu_devices', 8)
if jax.config.jax_compilation_cache_dir is None:
  cache = pathlib.Path(__file__).parent.parent / '.cache/jax'
  jax.config.update('jax_compilation_cache_dir', str(cache))
  # Processes that tests start share it.
  os.environ['JAX_COMPILATION_CACHE_DIR'] = str(cache)
# The built-in corpus is kept beside it.
os.environ.setdefault(
  'XDG_CACHE_HOME', str(pathlib.Path(__file__).parent.parent / '.cache')
)
for key, value in {
  # Optimizing a program takes longer than running it a few times.
  'jax_disable_most_optimizations': True,
  # Small programs are most of what tests compile.
  'jax_persistent_cache_min_compile_time_secs': 0.1,
}.items():
  jax.config.update(key, value)
  # Processes that tests start use it, too.
  os.environ[key.upper()] = str(value)


def pytest_collection_finish():
  """Freezes imports and traces, so that garbage collection skips them."""
  gc.freeze()
  gc.set_threshold(50_000)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
  """One more than cores, because some wait for processes that they started."""
  return os.cpu_count() + 1


@pytest.fixture(scope='session')
def pair(tmp_path_factory):
  from commands import STALE, make_reference

  return make_reference(tmp_path_factory.mktemp('pair'), *STALE)


@pytest.fixture(scope='session')
def small(tmp_path_factory):
  from commands import DNN, STALE, make_reference

  return make_reference(tmp_path_factory.mktemp('small'), *STALE, *DNN)


@pytest.fixture(scope='session')
def averaged(tmp_path_factory):
  from commands import DILOCO, DNN, make_reference

  return make_reference(tmp_path_factory.mktemp('averaged'), *DILOCO, *DNN)


@pytest.fixture(params=['small', 'averaged'])
def either(request):
  """Codistillation and DiLoCo, between the same members."""
  return request.getfixturevalue(request.param)


@pytest.fixture(scope='session')
def short_text(tmp_path_factory):
  """A few short documents of 64 pieces, instead of the built-in corpus."""
  from preparations import write_corpus

  from data.text.tokenizer import train_tokenizer

  model = train_tokenizer(
    [
      (pathlib.Path(__file__).parent.parent / 'LICENSE')
      .read_text('utf-8')
      .lower()
    ],
    vocab_size=64,
    oov='unk',
    character_coverage=0.99,
    structure='none',
    language='en',
  )

  folder = tmp_path_factory.mktemp('short') / 'text'
  rng = np.random.default_rng(0)
  train, test = (
    [(key, rng.integers(64, size=100)) for key in range(count)]
    for count in (24, 6)
  )
  sizes = {'shard_tokens': 10_000, 'vocab_size': 64}
  return write_corpus(folder, train, test, **sizes, model=model)

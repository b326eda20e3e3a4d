"""Eight CPU devices for every test; programs compile fast and are kept."""

import os
import pathlib

import jax
import pytest

jax.config.update('jax_num_cpu_devices', 8)
# Programs of tests are small and run a few times: to optimize them takes longer
# than all of their runs. The same in processes that tests start.
jax.config.update('jax_disable_most_optimizations', True)
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = 'True'
if jax.config.jax_compilation_cache_dir is None:
  cache = pathlib.Path(__file__).parent.parent / '.cache/jax'
  jax.config.update('jax_compilation_cache_dir', str(cache))
  # Processes that tests start share it.
  os.environ['JAX_COMPILATION_CACHE_DIR'] = str(cache)
# The built-in corpus is kept beside.
os.environ.setdefault(
  'XDG_CACHE_HOME', str(pathlib.Path(__file__).parent.parent / '.cache')
)
# Small programs are most of what tests compile.
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


@pytest.fixture(scope='session')
def pair(tmp_path_factory):
  from commands import make_reference

  return make_reference(tmp_path_factory.mktemp('pair'), members=2)


@pytest.fixture(scope='session')
def triple(tmp_path_factory):
  from commands import make_reference

  return make_reference(tmp_path_factory.mktemp('triple'), members=3)

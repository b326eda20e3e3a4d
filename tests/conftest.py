"""Eight CPU devices for every test, and compiled programs kept between runs."""

import os
import pathlib

import jax

jax.config.update('jax_num_cpu_devices', 8)
if jax.config.jax_compilation_cache_dir is None:
  cache = pathlib.Path(__file__).parent.parent / '.cache/jax'
  jax.config.update('jax_compilation_cache_dir', str(cache))
  # Processes that tests start share it.
  os.environ['JAX_COMPILATION_CACHE_DIR'] = str(cache)
# Small programs are most of what tests compile.
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)

"""First an ensemble, then a student of it (§3.4.1).

  python -m experiments.run --config=lm_two_phase --config.data.data_dir=DIR

One command trains both phases: first two networks that never meet, for
`two_phase.num_steps` in WORKDIR/ensemble; then a fresh one, on the labels and
on the frozen pair's average. The paper needs 18,000 steps and 9,000 more to
reach 4.0 nats, 27,000 in all, where codistillation takes 10,000. Teachers and
student learn from all documents.

  python -m experiments.run --config=lm_two_phase:laptop
"""

from ml_collections import ConfigDict

from experiments.configs import lm_sync

VARIANTS = lm_sync.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`lm_sync` for half as long, with two frozen teachers from the start."""
  config = lm_sync.get_config(variant)
  config.two_phase.num_steps = config.num_steps
  if variant in ('', 'smoke'):  # Elsewhere there is time to see its end.
    config.num_steps //= 2
  config.codistill.exchange = 'frozen'
  config.codistill.burn_in_steps = 0
  return config

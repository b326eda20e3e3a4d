"""Two click-through DNNs that codistil (Table 1, §3.5).

  python -m experiments.run --config=criteo_codistill --config.data.path=DIR

The paper reports a log loss of 0.4458 ± 0.002 and a difference of 0.019 ± 0.002
between retrains, a third less than for one DNN alone. Serving costs no more,
because only one copy of the pair is served. The paper does not state burn-in,
reload interval and partition; here they are a fifth of the steps, 50 steps, and
all rows for both members, each in its own order.
"""

from ml_collections import ConfigDict

from experiments.configs import criteo_dnn

VARIANTS = criteo_dnn.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`criteo_dnn` with two members that teach each other."""
  config = criteo_dnn.get_config(variant)
  config.codistill.members = 2
  config.codistill.burn_in_steps = {
    '': 2_000,
    'reduced': 2_000,
    'sample': 200,
    'laptop': 200,
    'smoke': 3,
  }[variant]
  config.codistill.exchange = 'memory'
  config.codistill.reload_interval_steps = {'smoke': 2}.get(variant, 50)
  return config

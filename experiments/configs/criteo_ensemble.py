"""Two click-through DNNs, averaged (Table 1, §3.5).

  python -m experiments.run --config=criteo_ensemble --config.data.path=DIR

The members never meet; their predictions are averaged at evaluation. The paper
reports a log loss of 0.4461 ± 0.0002 and a difference of 0.022 ± 0.002 between
retrains, at twice the cost of serving.
"""

from ml_collections import ConfigDict

from experiments.configs import criteo_dnn

VARIANTS = criteo_dnn.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`criteo_dnn`, twice."""
  config = criteo_dnn.get_config(variant)
  config.codistill.members = 2
  return config

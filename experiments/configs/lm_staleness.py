"""How stale may a peer be? On text (Figure 4, §3.3).

  python -m experiments.sweep --config=lm_staleness:reduced --seeds=3

The paper reloads every 50, 100 and 250 of some 15,000 steps and calls the
degradation slight; by its curves 100 keeps about a quarter of the gain and 250
none. Here peers are also reloaded every 500 and 1,000 steps, and never. To tell
rare reloads from old weights, they are also reloaded every 10 steps and seen
20, 45, 120 and 495 steps late. Shorter runs reload every 10, 25, 100 and 250
steps and never; `lm_codistill` reloads every 50, and `staleness_contrast` has
the delays.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import lm_codistill

VARIANTS = lm_codistill.VARIANTS


def get_config(variant: str = '') -> ConfigDict:
  """`lm_codistill`; its burn-in ends on a step of publication."""
  return lm_codistill.get_config(variant)


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """Reload intervals, no peers, and delays at a short interval."""
  intervals, short, delays = {
    '': ((50, 100, 250, 500, 1_000), 10, (20, 45, 120, 495)),
    'smoke': ((1, 2), 1, (1,)),
  }.get(variant, ((100, 250, 10, 25), 10, ()))
  return [
    *({'codistill.reload_interval_steps': steps} for steps in intervals),
    {'codistill.exchange': 'none'},
    *(
      {
        'codistill.reload_interval_steps': short,
        'codistill.delay_steps': steps,
      }
      for steps in delays
    ),
  ]

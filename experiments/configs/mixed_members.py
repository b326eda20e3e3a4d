"""A small network with a large one: what does each gain? (not in the paper).

  python -m experiments.sweep --config=mixed_members --seeds=3

The paper's members are copies of one network. Deep mutual learning (Zhang et
al., 2018) pairs networks of different sizes, and distillation teaches a small
one with a frozen large one. The sweep trains for equal numbers of steps, all on
the same data: a large network with a small one; both alone; two of the small;
two of the large; the small one with the large one as its frozen teacher; and
the pair without a burn-in, as deep mutual learning has it.

At the paper's scale they are a ResNet-50 and a ResNet-18 on ImageNet. No run at
this scale has been made with this code.

  python -m experiments.sweep --config=mixed_members:laptop --seeds=3
  python -m experiments.sweep --config=mixed_members:reduced --seeds=3

A ResNet-8 and a DNN on handwritten digits take up to a minute a run on a core;
a ResNet-18 and a ResNet-8 on Fashion-MNIST, 3 to 13: the ResNet-8 has a ninth
of the parameters, works at the images' resolution, and so computes the most.

  python -m experiments.sweep --config=mixed_members:text_laptop --seeds=3
  python -m experiments.sweep --config=mixed_members:text_reduced --seeds=3

On text they are an LSTM and a Transformer, each with its own memory: the LSTM
carries its own from batch to batch, the Transformer sees the 32 tokens of one.
They have 64 units, or 128 and half again as many steps, and take 3 or 8 minutes
a run on a core.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.configs import imagenet_codistill, lm_codistill

_SMALL = {
  '': {'resnet': {'depth': 18}},
  'reduced': {'resnet': {'depth': 8}},
  'laptop': {'name': 'dnn', 'dnn': {'hidden': (32,)}},
  'smoke': {'name': 'dnn', 'dnn': {'hidden': (8,)}},
}
VARIANTS = ('', 'reduced', 'laptop', 'smoke', 'text_reduced', 'text_laptop')


def get_config(variant: str = '') -> ConfigDict:
  """`imagenet_codistill` or `lm_codistill`, with two networks, on all data."""
  if variant.startswith('text_'):
    config = lm_codistill.get_config(variant.removeprefix('text_'))
    config.codistill.member_models = ('lstm', 'transformer')
    if variant == 'text_reduced':
      # Half of the width and of the steps of `lm_codistill:reduced`.
      config.num_steps = 1_500
      config.model.lstm.embedding_size = 64
      config.model.lstm.hidden_size = 128
      config.model.transformer.width = 128
    sizes = {'num_layers': 2, 'mlp_size': 4 * config.model.transformer.width}
    # Alone it ends best at these, of 0.001, 0.002 and 0.004; at 0.008, which is
    # best for the LSTM, 0.4 nats worse at `:text_reduced`.
    rate = 0.002 if variant == 'text_reduced' else 0.004
    config.networks.transformer = {
      'model': {'name': 'transformer', 'transformer': sizes},
      'schedule': {'constant': {'rate': rate}},
    }
  else:
    config = imagenet_codistill.get_config(variant)
    config.codistill.member_models = ('large', 'small')
    # It is the config's own.
    config.networks.large = {}
    config.networks.small = {'model': _SMALL[variant]}
  config.diversity.partition = 'same'
  return config


def sweep(variant: str = '') -> list[dict[str, Any]]:
  """The pair; each alone; two alike; a frozen teacher; no burn-in."""
  config = get_config(variant)
  first, second = config.codistill.member_models
  return [
    {},
    {'codistill.exchange': 'none', 'codistill.burn_in_steps': config.num_steps},
    {'codistill.member_models': (second, second)},
    {'codistill.member_models': (first, first)},
    {
      'codistill.exchange': 'frozen',
      'codistill.burn_in_steps': 0,
      'codistill.members': 1,
      'codistill.member_models': (second,),
      'two_phase.members': 1,
      'two_phase.model': first,
      'two_phase.num_steps': config.num_steps,
    },
    {'codistill.burn_in_steps': 0},
  ]

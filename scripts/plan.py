"""Computes what the paper's language-model run would take on today's devices.

Two members train for 15,000 steps of 16,384 lanes × 32 tokens, with peers from
the step on that `lm_codistill` says. FLOPs, bytes and memory were counted and
compiled by `python -m scripts.cost lm_codistill --devices 1 4 8 32 64
--json=FILE`, and are in experiments/results/cost_lm_codistill.json; rates are
assumed, or given. `python -m scripts.benchmark model` measured the updates of a
small network. `python -m scripts.scaling` prints the tables, and the memory of
the paper's ResNet-50 from `scripts.cost imagenet_codistill`. None needs jax.
"""

from __future__ import annotations

import functools
import json
import pathlib
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

from scripts import markdown

_RESULTS = pathlib.Path(__file__).parent.parent / 'experiments/results'
MEMBERS, STEPS, BURN_IN_STEPS = 2, 15_000, 2_000
TOKENS_PER_STEP = 16_384 * 32
# Steps between two publications.
INTERVAL_STEPS = 50
PUBLICATIONS_KEPT, CHECKPOINTS_KEPT = 3, 2
# Endings of the files that `scripts.cost imagenet_codistill` made.
_IMAGE_COSTS = ('', '_remat', '_64')
# `prepare_text` writes uint16.
_TOKEN_BYTES = 2
# Pieces, embedding, units, layers.
NETWORK = (24_006, 256, 1_024, 2)


class Device(NamedTuple):
  """A device, as its maker describes it.

  Attributes:
    peak: FLOP/s of bfloat16 products, without sparsity.
    memory: bytes.
    source: the maker's page.
  """

  peak: float
  memory: float
  source: str


DEVICES = {
  'H100': Device(
    989e12, 80e9, 'https://www.nvidia.com/en-us/data-center/h100/'
  ),
  # The page says 1,979 "with sparsity", which is twice as much.
  'H200': Device(
    989e12, 141e9, 'https://www.nvidia.com/en-us/data-center/h200/'
  ),
  'TPU v5e': Device(197e12, 16e9, 'https://cloud.google.com/tpu/docs/v5e'),
}


class Plan(NamedTuple):
  """Devices of both members: each has half of them, or all in turn.

  Attributes:
    kind: a key of `DEVICES`.
    devices: how many.
    hosts: how many they are in.
  """

  kind: str
  devices: int
  hosts: int


PLANS = {
  'h100-1': Plan('H100', 1, 1),
  'h200-1': Plan('H200', 1, 1),
  'h200-8': Plan('H200', 8, 1),
  'v5e-64': Plan('TPU v5e', 64, 8),
}

# Tokens a second of codistilling updates, both members' together: 158 ms for
# 2,048 lanes of random tokens, with all that the network has at the paper's
# size, chunks of 4,096 tokens and no input to wait for; once, at e5732f7.
MEASURED = {'h100-1': 415_000}


def forward_flops(
  pieces: int, embedding: int, hidden: int, layers: int
) -> float:
  """FLOPs of the LSTM, a token, by hand: two for each number in a matrix."""
  inputs = [embedding, *[hidden] * (layers - 1)]
  gates = sum(4 * hidden * (size + hidden) for size in inputs)
  return 2 * (gates + hidden * pieces)


def update_flops(teachers: int) -> float:
  """FLOPs of an update, a token, by hand.

  Each product takes a forward pass, a gradient of its outputs and one of its
  weights; each teacher takes a forward pass.

  Args:
    teachers: 0 for the burn-in update.
  """
  return (3 + teachers) * forward_flops(*NETWORK)


@functools.cache
def cost() -> dict[str, Any]:
  """The results of `scripts.cost`."""
  return _read('cost_lm_codistill.json')['cost']


@functools.cache
def benchmark() -> dict[str, list[float]]:
  """The measurements of `scripts.benchmark model`, by name and unit."""
  return _read('benchmark.json')['model']['values']


def _read(name: str) -> dict[str, Any]:
  return json.loads((_RESULTS / name).read_text(encoding='utf-8'))


def counted_flops(update: str, kind: str = 'products') -> float:
  """FLOPs of 'burn-in' or 'codistilling', a token, as counted."""
  return cost()['flops'][update][kind] / cost()['examples_per_step']


def peak(plan: str) -> float:
  """FLOP/s of all its devices."""
  return PLANS[plan].devices * DEVICES[PLANS[plan].kind].peak


def rate_at(plan: str, share: float) -> float:
  """Tokens a second of both members, codistilling at a share of the peak."""
  return share * peak(plan) / counted_flops('codistilling')


def share_at(plan: str, rate: float) -> float:
  """The inverse of `rate_at`."""
  return rate * counted_flops('codistilling') / peak(plan)


def seconds(rate: float) -> float:
  """Seconds of the run, without evaluation, compilation and preparing text.

  Args:
    rate: tokens a second of codistilling updates, both members' together;
      burn-in is assumed to be faster by its FLOPs.
  """
  less = counted_flops('burn-in') / counted_flops('codistilling')
  steps = BURN_IN_STEPS * less + (STEPS - BURN_IN_STEPS)
  return MEMBERS * TOKENS_PER_STEP * steps / rate


def flops_table() -> str:
  """FLOPs of an update, counted and by hand."""
  header = [
    'an update, products (MFLOP a token)',
    'counted',
    'by hand',
    'other arithmetic, counted',
    'by hand, that is',
  ]
  lines = [
    [
      update,
      f'{counted_flops(update) / 1e6:.2f}',
      f'{update_flops(teachers) / 1e6:.2f}',
      f'{counted_flops(update, "elementwise") / 1e6:.2f}',
      how,
    ]
    for update, teachers, how in (
      ('burn-in', 0, 'forward, and twice as much for the gradient'),
      ('codistilling', 1, 'the same, and the forward pass of one peer'),
    )
  ]
  ratio = counted_flops('codistilling') / counted_flops('burn-in')
  by_hand = update_flops(1) / update_flops(0)
  return markdown.table(
    header, [*lines, ['ratio', f'{ratio:.3f}', f'{by_hand:.3f}', '', '4/3']]
  )


def measured_table() -> str:
  """Rates of the benchmark's network, where it was measured."""
  found = benchmark()
  product = statistics.median(found['a product of 1,024², float32 (GFLOP/s)'])
  header = [
    'an update',
    'tokens a second',
    'a product (GFLOP/s)',
    'share of the product’s rate (%)',
    'least',
    'greatest',
    'rounds',
  ]
  lines = []
  for update in ('burn-in', 'codistilling'):
    rates = found[f'LSTM, {update}: rate (tokens/s)']
    shares = found[f'LSTM, {update}: share of the product’s rate (%)']
    lines.append(
      [
        update,
        markdown.number(statistics.median(rates)),
        markdown.number(product),
        *(
          f'{share:.0f}'
          for share in (statistics.median(shares), min(shares), max(shares))
        ),
        f'{len(rates)}',
      ]
    )
  return markdown.table(header, lines)


def hours_table(share: float, rates: Mapping[str, float]) -> str:
  """Devices and hours of each plan.

  Args:
    share: of the peak, assumed where no rate was measured.
    rates: measured for both members together, by plan, instead of `MEASURED`.
  """
  header = [
    'plan',
    'peak of a device, bfloat16 (TFLOP/s)',
    'share of the peak (%)',
    'tokens a second (M)',
    'an update, on all devices (s)',
    'hours',
    'device-hours',
    'hours at the peak',
    'that rate is',
  ]
  lines = []
  rates = MEASURED | dict(rates)
  for plan, (kind, number, _) in PLANS.items():
    rate = rates.get(plan, rate_at(plan, share))
    hours = seconds(rate) / 3_600
    lines.append(
      [
        f'{number} {kind} (`{plan}`)',
        f'[{DEVICES[kind].peak / 1e12:.0f}]({DEVICES[kind].source})',
        f'{100 * share_at(plan, rate):.0f}',
        markdown.number(rate / 1e6),
        markdown.number(TOKENS_PER_STEP / rate),
        markdown.number(hours),
        markdown.number(number * hours),
        markdown.number(seconds(rate_at(plan, 1)) / 3_600),
        'measured' if plan in rates else 'assumed',
      ]
    )
  return markdown.table(header, lines)


def memory_table() -> str:
  """Memory of each device by the compiler's analysis, with its backend."""
  backend = cost()['backend'].upper()
  header = [
    'devices of a member',
    'lanes each',
    *(
      f'{update}: {what} (GB)'
      for update in ('burn-in', 'codistilling')
      for what in ('arguments', 'in all')
    ),
    'compiled for',
  ]
  found = {(line['devices'], line['update']): line for line in cost()['memory']}
  lines = [
    [
      f'{number}',
      f'{16_384 // number:,}',
      *(
        markdown.number(found[number, update][what] / 1e9)
        for update in ('burn-in', 'codistilling')
        for what in ('arguments', 'in_all')
      ),
      f'{backend}: an estimate' if backend == 'CPU' else backend,
    ]
    for number in dict.fromkeys(number for number, _ in found)
  ]
  return markdown.table(header, lines)


def image_memory_table() -> str:
  """Memory of each device for the paper's ResNet-50."""
  header = [
    'devices of a member',
    'microbatches',
    'images at a time, a device',
    'blocks computed again',
    'burn-in: in all (GB)',
    'codistilling: in all (GB)',
    'of which kept for the gradient, by shapes, at most (GB)',
    'compiled for',
  ]
  lines = []
  for name in _IMAGE_COSTS:
    cost = _read(f'cost_imagenet_codistill{name}.json')['cost']
    backend = cost['backend'].upper()
    found = {(line['devices'], line['update']): line for line in cost['memory']}
    for devices in dict.fromkeys(number for number, _ in found):
      both = [found[devices, update] for update in ('burn-in', 'codistilling')]
      parts = both[0]['microbatches']
      images = cost['examples_per_step'] // devices // parts
      again = cost['changes'].get('model.resnet.remat', False)
      lines.append(
        [
          f'{devices}',
          f'{parts}',
          f'{images}',
          'yes' if again else 'no',
          *(markdown.number(line['in_all'] / 1e9) for line in both),
          markdown.number(both[0]['kept_for_gradient'] / 1e9),
          f'{backend}: an estimate' if backend == 'CPU' else backend,
        ]
      )
  return markdown.table(header, lines)


def storage() -> dict[str, tuple[float, str]]:
  """Bytes of each thing on disk, and an explanation."""
  sizes = cost()['bytes']
  published = sizes['publication']['float32']
  # A member, its teacher's memory of its lanes, and the copy of the teacher.
  checkpoint = MEMBERS * (sizes['state'] + sizes['memory'] + published)
  text = MEMBERS * STEPS * TOKENS_PER_STEP * _TOKEN_BYTES
  return {
    'text, as tokens': (text, 'two members, each token read once, 2 bytes'),
    'a publication, float32': (published, '`codistill.publish_precision`'),
    'the same, int8': (sizes['publication']['int8'], ''),
    'publications in the folder': (
      MEMBERS * PUBLICATIONS_KEPT * published,
      f'two members × {PUBLICATIONS_KEPT}, float32',
    ),
    'publications, ever written': (
      MEMBERS * STEPS // INTERVAL_STEPS * published,
      f'one every {INTERVAL_STEPS} steps',
    ),
    'checkpoints': (
      CHECKPOINTS_KEPT * checkpoint,
      f'{CHECKPOINTS_KEPT} of both members in one process',
    ),
  }


def storage_table() -> str:
  """Gigabytes on disk."""
  return markdown.table(
    ['what', 'GB', 'that is'],
    [
      [what, markdown.number(size / 1e9), how]
      for what, (size, how) in storage().items()
    ],
  )


def tables(share: float, rates: Mapping[str, float]) -> dict[str, str]:
  """All tables, by the names of their markers; arguments as `hours_table`."""
  return {
    'plan-flops': flops_table(),
    'plan-measured': measured_table(),
    'plan-hours': hours_table(share, rates),
    'plan-memory': memory_table(),
    'plan-storage': storage_table(),
    'plan-image-memory': image_memory_table(),
  }

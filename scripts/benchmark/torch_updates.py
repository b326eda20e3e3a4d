"""The updates of `peers` in PyTorch, in a process of its own.

  python -m scripts.benchmark.torch_updates '{"networks": …, "device": …}'

The networks are those of `codistill/models`, written as PyTorch's users write
them: plain modules without torch.compile, fused optimizers, attention and
recurrence of the library, channels last for images. They begin with PyTorch's
own initial weights, and weight decay applies to all of them.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from scripts.benchmark import turns

Config = dict[str, Any]
Inputs = Any
# Of a feed-forward network it is None.
Memory = Any
_EPSILON = 1e-6


class LSTM(nn.Module):
  """Embeddings, LSTM layers without layer normalisation, linear head."""

  def __init__(self, num_classes: int, sizes: Config):
    super().__init__()
    embedding, hidden = sizes['embedding_size'], sizes['hidden_size']
    self.embedding = nn.Embedding(num_classes, embedding)
    self.layers = nn.LSTM(embedding, hidden, sizes['num_layers'])
    self.head = nn.Linear(hidden, num_classes)

  def forward(self, inputs: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
    """Predicts each token's successor."""
    outputs, memory = self.layers(self.embedding(inputs.T), memory)
    return self.head(outputs.transpose(0, 1).flatten(0, 1)), memory


class LayerNormLSTM(nn.Module):
  """The same with layer normalisation, as in codistill/models/lstm.py."""

  def __init__(self, num_classes: int, sizes: Config):
    super().__init__()
    embedding, hidden = sizes['embedding_size'], sizes['hidden_size']
    self.embedding = nn.Embedding(num_classes, embedding)
    widths = [embedding, *[hidden] * sizes['num_layers']]
    self.layers = nn.ModuleList(
      itertools.starmap(_Layer, itertools.pairwise(widths))
    )
    self.head = nn.Linear(hidden, num_classes)

  def forward(self, inputs: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
    """Predicts each token's successor."""
    x, after = self.embedding(inputs.T), []
    for number, layer in enumerate(self.layers):
      x, carry = layer(x, memory and memory[number])
      after.append(carry)
    return self.head(x.transpose(0, 1).flatten(0, 1)), after


class _Layer(nn.Module):
  """A layer of it, over inputs [time, batch, size]."""

  def __init__(self, size: int, hidden: int):
    super().__init__()
    self.enter = nn.Linear(size, 4 * hidden, bias=False)
    self.past = nn.Linear(hidden, 4 * hidden, bias=False)
    self.scale = nn.Parameter(torch.ones(4, hidden))
    self.bias = nn.Parameter(torch.zeros(4, hidden))
    self.cell_norm = nn.LayerNorm(hidden, _EPSILON)

  def forward(self, inputs: Tensor, carry: Memory) -> tuple[Tensor, Memory]:
    shape = self.scale.shape[1:]
    cell, output = carry or [inputs.new_zeros(inputs.shape[1], *shape)] * 2
    outputs = []
    # One product for all tokens.
    for projected in self.enter(inputs):
      gates = (projected + self.past(output)).unflatten(-1, (4, -1))
      gates = functional.layer_norm(gates, shape, eps=_EPSILON)
      enter, new, keep, show = (gates * self.scale + self.bias).unbind(1)
      cell = cell * torch.sigmoid(keep + 1)
      cell = self.cell_norm(cell + torch.sigmoid(enter) * torch.tanh(new))
      output = torch.tanh(cell) * torch.sigmoid(show)
      outputs.append(output)
    return torch.stack(outputs), (cell, output)


class Transformer(nn.Module):
  """Embeddings, blocks of attention and MLP, norm, linear head."""

  def __init__(self, num_classes: int, sizes: Config):
    super().__init__()
    width, heads = sizes['width'], sizes['num_heads']
    self.embedding = nn.Embedding(num_classes, width)
    self.blocks = nn.ModuleList(
      _TransformerBlock(width, heads, sizes['mlp_size'])
      for _ in range(sizes['num_layers'])
    )
    self.norm = nn.RMSNorm(width, _EPSILON)
    self.head = nn.Linear(width, num_classes)
    half = width // heads // 2
    self.register_buffer('rates', 1e-4 ** (torch.arange(half) / half))

  def forward(self, inputs: Tensor, memory: None) -> tuple[Tensor, None]:
    """Predicts each token's successor."""
    time = torch.arange(inputs.shape[1], device=inputs.device)
    angles = time[:, None] * self.rates
    x = self.embedding(inputs)
    for block in self.blocks:
      x = block(x, angles.cos(), angles.sin())
    return self.head(self.norm(x).flatten(0, 1)), None


class _TransformerBlock(nn.Module):
  def __init__(self, width: int, heads: int, mlp_size: int):
    super().__init__()
    linear = functools.partial(nn.Linear, bias=False)
    self.heads = heads
    self.attention_norm = nn.RMSNorm(width, _EPSILON)
    self.qkv = linear(width, 3 * width)
    self.attention = linear(width, width)
    self.mlp_norm = nn.RMSNorm(width, _EPSILON)
    self.mlp = linear(width, mlp_size)
    self.mlp_end = linear(mlp_size, width)

  def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    def rotate(x: Tensor) -> Tensor:
      first, second = x.float().chunk(2, -1)
      turned = (first * cos - second * sin, second * cos + first * sin)
      return torch.cat(turned, -1).type_as(x)

    y = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
    # [3, batch, heads, time, size]
    query, key, value = y.permute(2, 0, 3, 1, 4)
    y = functional.scaled_dot_product_attention(
      rotate(query), rotate(key), value, is_causal=True
    )
    x = x + self.attention(y.transpose(1, 2).flatten(2))
    y = functional.gelu(self.mlp(self.mlp_norm(x)), approximate='tanh')
    return x + self.mlp_end(y)


class ResNet(nn.Module):
  """ResNet-50 for large images, ResNets of He et al. (§4.2) for small ones."""

  def __init__(self, num_classes: int, sizes: Config, data: Config):
    super().__init__()
    depth, width = sizes['depth'], sizes['width']
    large = depth == 50
    stages = (3, 4, 6, 3) if large else ((depth - 2) // 6,) * 3
    for name in ('mean', 'std'):
      self.register_buffer(name, torch.tensor(data[name])[:, None, None])
    self.stem = nn.Sequential(
      *_convolution(
        data['image_shape'][-1], width, *((7, 2) if large else (3, 1))
      ),
      nn.ReLU(),
      nn.MaxPool2d(3, 2, 1) if large else nn.Identity(),
    )
    blocks, channels = [], width
    for stage, number in enumerate(stages):
      inner = width * 2**stage
      widths = (inner, inner, 4 * inner) if large else (inner, inner)
      for block in range(number):
        stride = 2 if stage and not block else 1
        blocks.append(_Block([channels, *widths], stride))
        channels = widths[-1]
    self.blocks = nn.Sequential(*blocks)
    self.head = nn.Linear(channels, num_classes)

  def forward(self, inputs: Tensor, memory: None) -> tuple[Tensor, None]:
    """Predicts from bytes, [batch, channels, height, width]."""
    x = (inputs / 255 - self.mean) / self.std
    return self.head(self.blocks(self.stem(x)).mean((2, 3))), None


class _Block(nn.Module):
  """A residual block of two or three convolutions."""

  def __init__(self, widths: Sequence[int], stride: int):
    super().__init__()
    kernels = (3, 3) if len(widths) == 3 else (1, 3, 1)
    layers = []
    for number, (old, new) in enumerate(itertools.pairwise(widths)):
      # The first 3×3 convolution takes the stride.
      here = stride if number == kernels.index(3) else 1
      layers += [*_convolution(old, new, kernels[number], here), nn.ReLU()]
    self.residual = nn.Sequential(*layers[:-1])
    self.shortcut = nn.Sequential()
    if stride > 1 or widths[0] != widths[-1]:
      self.shortcut.extend(_convolution(widths[0], widths[-1], 1, stride))

  def forward(self, x: Tensor) -> Tensor:
    return functional.relu(self.shortcut(x) + self.residual(x))


def _convolution(old: int, new: int, kernel: int, stride: int):
  convolution = nn.Conv2d(old, new, kernel, stride, kernel // 2, bias=False)
  return convolution, nn.BatchNorm2d(new)


class ClickDNN(nn.Module):
  """Embeddings, integers and flags side by side, ReLU layers, one logit."""

  def __init__(self, sizes: Config, table_sizes: Sequence[int], numbers: int):
    super().__init__()
    embedding = sizes['embedding_size']
    self.embeddings = nn.Embedding(sum(table_sizes), embedding)
    starts = [0, *itertools.accumulate(table_sizes[:-1])]
    self.register_buffer('starts', torch.tensor(starts))
    widths = [numbers + len(table_sizes) * embedding, *sizes['hidden']]
    self.layers = nn.Sequential(
      *itertools.chain.from_iterable(
        (nn.Linear(*pair), nn.ReLU()) for pair in itertools.pairwise(widths)
      ),
      nn.Linear(widths[-1], 1),
    )

  def forward(self, inputs: Inputs, memory: None) -> tuple[Tensor, None]:
    """Predicts from `integers`, `missing` and `categories`."""
    embedded = self.embeddings(inputs['categories'] + self.starts).flatten(1)
    features = (inputs['integers'], inputs['missing'], embedded)
    return self.layers(torch.cat(features, -1)).squeeze(-1), None


def make_network(kind: str, config: Config, inputs: Inputs) -> nn.Module:
  """Makes a network with the sizes that a config of this project has."""
  data, sections = config['data'], config['model']
  match kind:
    case 'nn.LSTM':
      return LSTM(data['vocab_size'], sections['lstm'])
    case 'lstm':
      return LayerNormLSTM(data['vocab_size'], sections['lstm'])
    case 'transformer':
      return Transformer(data['vocab_size'], sections['transformer'])
    case 'resnet':
      network = ResNet(data['num_classes'], sections['resnet'], data)
      return network.to(memory_format=torch.channels_last)
    case 'click_dnn':
      numbers = inputs['integers'].shape[1] + inputs['missing'].shape[1]
      return ClickDNN(sections['click_dnn'], data['table_sizes'], numbers)
  raise ValueError(f'there is no {kind} in PyTorch here')


def make_optimizer(config: Config, network: nn.Module) -> torch.optim.Optimizer:
  """Makes the optimizer of a config."""
  name = config['optimizer']['name']
  values, weights = config['optimizer'][name], network.parameters()
  rate = config['schedule']['constant']['rate']
  match name:
    case 'adam':
      betas = (values['b1'], values['b2'])
      return torch.optim.Adam(weights, rate, betas, values['eps'], fused=True)
    case 'sgd':
      decay = values['weight_decay']
      return torch.optim.SGD(
        weights, rate, values['momentum'], weight_decay=decay, fused=True
      )
    case 'adagrad':
      return torch.optim.Adagrad(
        weights,
        rate,
        initial_accumulator_value=values['initial_accumulator'],
        eps=values['eps'],
        # There is no fused one for GPUs.
        fused=next(network.parameters()).is_cpu or None,
      )
  raise ValueError(f'there is no {name} in PyTorch here')


class Updates:
  """A network's updates on one batch.

  Attributes:
    student: the network.
  """

  def __init__(
    self, kind: str, config: Config, batch: dict[str, Tensor], device: str
  ):
    """Makes the network, and a teacher with the same weights."""
    labels = batch.pop('labels').flatten()
    if kind == 'resnet':
      # Only the names of the axes move: in memory, channels stay last.
      batch['inputs'] = batch['inputs'].permute(0, 3, 1, 2)
    self._inputs = batch.get('inputs', batch)
    if kind == 'click_dnn':
      self._labels = labels.float()
      self._probabilities = torch.sigmoid
      self._cross_entropy = functional.binary_cross_entropy_with_logits
    else:
      self._labels = labels
      self._probabilities = functools.partial(torch.softmax, dim=-1)
      self._cross_entropy = functional.cross_entropy
    self._autocast = torch.autocast(
      device, torch.bfloat16, config['model']['dtype'] == 'bfloat16'
    )
    self.student = make_network(kind, config, batch).to(device)
    self._teacher = copy.deepcopy(self.student).eval().requires_grad_(False)
    self._optimizer = make_optimizer(config, self.student)
    optimizer = config['optimizer']
    self._clip_norm = optimizer[optimizer['name']].get('clip_norm')
    self._memory = self._teachers_memory = None

  def loss(self, with_teacher: bool) -> Tensor:
    """φ, or φ + ψ; the memories go on."""
    with self._autocast:
      logits, memory = self.student(self._inputs, self._memory)
      loss = self._cross_entropy(logits, self._labels)
      if with_teacher:
        with torch.no_grad():
          taught, self._teachers_memory = self._teacher(
            self._inputs, self._teachers_memory
          )
          targets = self._probabilities(taught)
        loss = loss + self._cross_entropy(logits, targets)
    self._memory = _detached(memory)
    return loss

  def update(self, with_teacher: bool) -> None:
    """One step down the gradient of `loss`."""
    self._optimizer.zero_grad()
    self.loss(with_teacher).backward()
    if self._clip_norm:
      nn.utils.clip_grad_norm_(self.student.parameters(), self._clip_norm)
    self._optimizer.step()

  def seconds(self, with_teacher: bool, times: int) -> float:
    """Seconds that updates take, until the last one's weights are there."""
    began = time.perf_counter()
    for _ in range(times):
      self.update(with_teacher)
    if torch.cuda.is_available():
      torch.cuda.synchronize()
    return time.perf_counter() - began


def _detached(memory: Memory) -> Memory:
  if memory is None or isinstance(memory, Tensor):
    return memory if memory is None else memory.detach()
  return [_detached(one) for one in memory]


def _load(path: str, device: str) -> dict[str, Tensor]:
  """A batch as NumPy wrote it; PyTorch wants classes as int64."""
  with np.load(path) as arrays:
    tensors = {name: torch.from_numpy(one) for name, one in arrays.items()}
  return {
    name: (one.long() if one.dtype == torch.int32 else one).to(device)
    for name, one in tensors.items()
  }


def main(argument: str) -> None:
  """Makes all networks, and times what it is told to.

  Args:
    argument: JSON: `networks`, a list of a name, a kind, a config and the file
      of a batch each; `device`; and `threads`, how many to use.
  """
  told = json.loads(argument)
  torch.set_num_threads(told['threads'])
  device = told['device'] if torch.cuda.is_available() else 'cpu'
  works, parameters = {}, {}
  for name, kind, config, path in told['networks']:
    updates = Updates(kind, config, _load(path, device), device)
    parameters[name] = sum(one.numel() for one in updates.student.parameters())
    for teachers in (0, 1):
      works[f'{name}, {teachers}'] = functools.partial(
        updates.seconds, bool(teachers)
      )
  turns.serve({'device': device, 'parameters': parameters}, works)


if __name__ == '__main__':
  main(sys.argv[1])

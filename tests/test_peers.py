"""PyTorch's side of the benchmark is timed in turn, if it does the same.

PyTorch is no requirement of the tests, so a stand-in answers for it; the
benchmark itself compares the numbers of parameters.
"""

import contextlib
import importlib.util
import json
import sys
import types

import jax
import numpy as np
import pytest
from in_process import complaint

from experiments.errors import UserError
from scripts.benchmark import __main__ as benchmark
from scripts.benchmark import measure, peers, turns
from scripts.benchmark.networks import Network

DNN = {'DNN': Network('criteo_codistill:smoke')}
LSTM = {'LSTM': Network('lm_codistill:smoke')}
SERVE = """
import sys
from scripts.benchmark import turns
works = {'a': lambda times: times / 2, 'b': lambda times: sys.exit(3)}
turns.serve({'of': sys.argv[1]}, works)
"""


@pytest.fixture
def torch(monkeypatch):
  """Stands in for PyTorch's process: an update takes it half a second."""
  torch = types.SimpleNamespace(has={}, device='cpu', asked=[])

  @contextlib.contextmanager
  def start(line, folder):
    assert line[1:3] == ['-m', 'scripts.benchmark.torch_updates']
    torch.told = json.loads(line[3])
    torch.batches = {
      name: dict(np.load(path)) for name, _, _, path in torch.told['networks']
    }

    def seconds(work, times):
      torch.asked.append(work)
      return times / 2

    ready = {'device': torch.device, 'parameters': torch.has}
    yield types.SimpleNamespace(ready=ready, seconds=seconds)

  monkeypatch.setattr(turns, 'start', start)
  monkeypatch.setattr(measure, 'TIMED_SECONDS', 0.0)
  return torch


def last(shapes):
  *_, found = peers.measure(2, shapes)
  return {f'{one.name} ({one.unit})': one for one in found}


def test_updates_are_timed_beside_pytorchs_on_the_same_examples(torch):
  # 26 tables of 20 × 2; 2 × 13 numbers and 52 of embeddings; 8, 4 and 1 wide.
  number = 26 * 20 * 2 + 79 * 8 + 9 * 4 + 5
  torch.has = {'DNN, PyTorch': number}
  found = last(DNN)
  assert found['DNN: parameters, PyTorch (M)'].values == [number / 1e6]
  for update in ('burn-in', 'one teacher'):
    here, there, share = (
      found[f'DNN, {update}: {what}']
      for what in ('here (ms)', 'PyTorch (ms)', 'here beside PyTorch (%)')
    )
    assert there.values == [500, 500]
    assert share.values == pytest.approx([one / 5 for one in here.values])
    assert share.limit == ('≤', 100)
  # Two calls to warm up, and one a round.
  assert sorted(torch.asked) == [
    f'DNN, PyTorch, {teachers}' for teachers in (0, 1) for _ in range(4)
  ]
  [(_, kind, config, _)] = torch.told['networks']
  assert (kind, config['batch_size']) == ('click_dnn', 16)
  [batch] = torch.batches.values()
  assert batch['categories'].shape == (16, 26)


def test_networks_that_differ_are_not_compared(torch):
  pieces, size, hidden = 512, 8, 8
  gates = 4 * hidden * (size + hidden + hidden + hidden)
  ends = pieces * size + hidden * pieces + pieces
  # Scales and biases of gates and cells, and PyTorch's two biases a gate.
  ours, plain = (ends + gates + 2 * 8 * hidden + n for n in (32, 0))
  torch.has = {'LSTM, PyTorch': ours, 'LSTM, nn.LSTM': plain + 1}
  words = f'LSTM has {plain + 1:,} parameters in nn.LSTM instead of {plain:,}'
  with pytest.raises(UserError, match=words):
    next(peers.measure(1, LSTM))
  torch.has = {'LSTM, PyTorch': plain, 'LSTM, nn.LSTM': plain}
  with pytest.raises(UserError, match='in PyTorch instead'):
    next(peers.measure(1, LSTM))
  assert torch.asked == []


def test_devices_that_differ_are_not_compared(torch, monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  with pytest.raises(UserError, match='this PyTorch cannot'):
    next(peers.measure(1, DNN))
  assert torch.told['device'] == 'cuda'
  monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
  with pytest.raises(UserError, match='JAX_PLATFORMS=cpu'):
    next(peers.measure(1, DNN))


def test_without_pytorch_one_sentence_says_how_to_get_it(monkeypatch, capsys):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  words = 'pip install torch=='
  assert words in complaint(capsys, benchmark, 'step', 'peers')
  assert benchmark._possible(['step', 'step']) == ['step']
  assert 'peers' not in benchmark._possible([])
  assert words in capsys.readouterr().out
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
  assert benchmark._possible([]) == list(benchmark.PARTS)


def test_another_process_works_when_it_is_told_to():
  line = [sys.executable, '-c', SERVE, 'mine']
  with turns.start(line, measure.ROOT) as other:
    assert other.ready == {'of': 'mine'}
    assert other.seconds('a', 3) == 1.5
    assert other.seconds('a', 1) == 0.5
    with pytest.raises(ChildProcessError, match='ended with status 3'):
      other.seconds('b', 1)
    # It is told in vain.
    with pytest.raises(ChildProcessError, match='ended with status 3'):
      other.seconds('a', 1)

"""The arithmetic of docs/scaling.md against hand values, and the page."""

import pathlib

import pytest

from scripts import markdown, plan, scaling

DOC = pathlib.Path(__file__).parent.parent / 'docs/scaling.md'


def test_bytes_that_workers_and_members_send():
  # Two workers send each half of the gradient twice.
  for workers, sent in ((2, 4_000), (1, 0), (4, 2 * 3 / 4 * 4_000)):
    assert scaling.all_reduce_bytes(1_000, workers) == sent
  # A member writes once, and reads each teacher on each host.
  assert scaling.exchange_bytes(100, 50, teachers=1) == 4
  assert scaling.exchange_bytes(100, 50, teachers=3, hosts=2) == 14


@pytest.mark.parametrize(
  ('graph', 'expected'), [('all', 8 * 8), ('random-2', 8 * 3), ('ring', 8 * 2)]
)
def test_what_a_folder_carries_and_how_many_members(graph, expected):
  # All of them write and read.
  assert scaling.folder_rate(100, 8, graph, 50, 0.5) == 2 * expected * 2
  # One more than the most is too many; where not even two fit there are none.
  most = scaling.most_members(1e6, 1e5, graph, 10, 0.5)
  rate, too_much = (
    scaling.folder_rate(1e5, members, graph, 10, 0.5)
    for members in (most, most + 1)
  )
  assert rate <= 1e6 < too_much
  assert scaling.most_members(1.0, 1e9, 'ring', 1, 1.0) == 0


def test_int8_is_a_quarter_and_so_said_the_benchmark():
  full = scaling.measured(25, 'float32', 'bytes (MB)')
  assert full == pytest.approx(102, rel=0.01)
  ratio = scaling.measured(25, 'int8', 'bytes (MB)') / full
  assert 0.25 < ratio < 0.26


def test_the_page_shows_what_the_script_says():
  text = DOC.read_text(encoding='utf-8')
  found = scaling.tables(50, 1.0, 0.13, {})
  assert all(f'<!-- table {name} -->' in text for name in found)
  assert markdown.insert(text, found) == text, 'make figures'


def test_numbers_have_three_digits():
  numbers = [markdown.number(x) for x in (0.16, 1.02, 55_562.5, 0.0, 999)]
  assert numbers == ['0.160', '1.02', '55,562', '0', '999']


def test_tables_go_between_their_markers():
  text = 'a\n<!-- table x -->\nold\n<!-- end -->\nb\n'
  new = markdown.insert(text, {'x': '| new |\n', 'y': 'elsewhere'})
  assert new == 'a\n<!-- table x -->\n| new |\n<!-- end -->\nb\n'
  assert markdown.insert(text, {}) == text
  assert markdown.insert(text * 2, {'x': 'new\n'}).count('new') == 2
  with pytest.raises(ValueError, match='table x has no <!-- end -->'):
    markdown.insert('<!-- table x -->\n', {})


def test_what_makes_no_sense_is_refused(capsys, monkeypatch):
  for arguments, said in (
    (['--step-seconds=0'], "--step-seconds: '0' is not a number above 0"),
    (['--step-seconds=nan'], "--step-seconds: 'nan' is not a number above 0"),
    (['--share-of-peak=0'], '--share-of-peak must be above 0'),
    (['--share-of-peak=1.1'], 'and at most 1'),
    (['--tokens-per-second', 'h100-8=1e6'], 'has no plan of h100-1'),
    (['--tokens-per-second', 'h200-8'], "'' is not a number above 0"),
    (['--tokens-per-second', 'h200-8=-1'], "'-1' is not a number above 0"),
    (['--tokens-per-second', *2 * ['h200-8=1e6']], 'names a plan twice'),
  ):
    with pytest.raises(SystemExit, match='2'):
      scaling.main(arguments)
    assert said in capsys.readouterr().err
  assert scaling.main(['--into=nowhere/at/all.md']) == 2
  assert 'nowhere' in capsys.readouterr().err
  # As full shapes leave it: numbers have other names.
  monkeypatch.setattr(plan, 'benchmark', lambda: {'another (s)': [1.0]})
  assert scaling.main([]) == 2
  [line] = capsys.readouterr().err.splitlines()
  assert 'has no' in line
  assert line.endswith('without --full')


def test_a_measured_rate_is_shown(capsys):
  rates = [f'--tokens-per-second={one}=1e6' for one in ('v5e-64', 'h200-1')]
  assert scaling.main(rates) == 0
  assert capsys.readouterr().out.count('measured |') == 3

"""The tables of mutants fit the code: `python -m tests.mutants` tries them."""

from tests.mutants.table import ROOT, read_mutants


def test_every_mutant_changes_one_place_and_names_tests_that_exist():
  mutants = read_mutants()
  assert len(mutants) >= 215
  assert len(set(mutants)) == len(mutants)
  for mutant in mutants:
    text = (ROOT / mutant.file).read_text(encoding='utf-8')
    assert text.count(mutant.before) == 1, mutant
    assert mutant.after != mutant.before, mutant
    for test in mutant.tests:
      path, _, name = test.partition('::')
      tests = (ROOT / 'tests' / path).read_text(encoding='utf-8')
      assert f'def {name.partition("[")[0]}' in tests, mutant

"""Configs by name, and flags that make no sense said in one sentence."""

import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import config as config_lib
from experiments import run
from experiments.errors import UserError

NAMES = [
  'cifar100_offline',
  'failed_peer',
  'imagenet_codistill',
  'imagenet_diversity',
  'imagenet_ensemble',
  'imagenet_equal_compute',
  'imagenet_label_smoothing',
  'imagenet_staleness',
  'imagenet_sync',
  'imagenet_two_phase',
  'teacher_fit',
]
SMOKE = '--config=imagenet_codistill:smoke'


@pytest.fixture
def parse(monkeypatch):
  """parse_flags of a command; `.config` is what became of --config."""

  def parse(*arguments):
    monkeypatch.setattr(sys, 'argv', ['run', *arguments])
    return run.parse_flags(sys.argv)

  with flagsaver.flagsaver():
    yield parse


def config():
  return flags.FLAGS['config'].value


def the_sentence(caught):
  """Of an error: one, so that it fits a line."""
  text = str(caught.value)
  assert text.strip()
  assert '\n' not in text
  return text


def test_names_are_the_experiments():
  assert set(NAMES) <= set(config_lib.names())


@pytest.mark.parametrize('name', NAMES)
def test_every_experiment_has_the_paper_s_scale_and_smaller_ones(name):
  assert config_lib.variants_of(name) == ('', 'reduced', 'laptop', 'smoke')
  configs = [
    config_lib.load(f'{name}:{variant}'.rstrip(':'))
    for variant in config_lib.variants_of(name)
  ]
  sizes = [config.num_steps * config.batch_size for config in configs]
  assert sizes == sorted(sizes, reverse=True)
  assert len(set(sizes)) == len(sizes)


@pytest.mark.parametrize('name', NAMES)
def test_every_point_of_every_sweep_fits_its_config(name):
  for variant in config_lib.variants_of(name):
    label = f'{name}:{variant}'.rstrip(':')
    points = config_lib.points(label)
    assert points
    seen = []
    for point in points:
      base, config = config_lib.load(label), config_lib.load(label)
      config_lib.check_keys(base, point)
      config.update_from_flattened_dict(point)
      # That each point's own keys say all that it changes, and no two agree,
      # is what collected results are told apart by.
      overrides = config_lib.overrides(base, config)
      assert set(overrides) <= set(point)
      seen.append(config.to_json())
    assert len(set(seen)) == len(seen)


def test_a_config_without_a_sweep_has_one_point():
  assert config_lib.points('imagenet_ensemble:smoke') == [{}]


def test_overrides_are_what_differs_and_what_follows_from_it():
  base = config_lib.load('imagenet_sync:laptop')
  config = config_lib.load('imagenet_sync:laptop')
  assert config_lib.overrides(base, config) == {}
  config.num_steps = 10
  config.data.mean = (0.5,)
  assert config_lib.overrides(base, config) == {
    'num_steps': 10,
    'codistill.burn_in_steps': 10,
    'schedule.warmup_cosine.num_steps': 10,
    'data.mean': (0.5,),
  }


@pytest.mark.parametrize(
  ('wrong', 'near'),
  [
    ('imagenet_codistil', 'imagenet_codistill'),
    ('imagenet-sync', 'imagenet_sync'),
    ('ensemble', 'lm_ensemble or criteo_ensemble'),
  ],
)
def test_an_unknown_config_is_told_the_nearest_name(wrong, near):
  with pytest.raises(UserError) as caught:
    config_lib.split_name(f'{wrong}:smoke')
  sentence = the_sentence(caught)
  assert repr(wrong) in sentence
  assert f'did you mean {near}' in sentence
  assert '--list' in sentence


def test_a_config_like_no_other_is_told_of_the_list_alone():
  with pytest.raises(UserError) as caught:
    config_lib.split_name('zzzzzz')
  assert 'did you mean' not in the_sentence(caught)
  assert '--list' in str(caught.value)


def test_an_unknown_variant_is_told_those_there_are():
  with pytest.raises(UserError) as caught:
    config_lib.load('imagenet_sync:labtop')
  sentence = the_sentence(caught)
  assert 'labtop' in sentence
  assert 'laptop, smoke' in sentence


def test_names_are_no_paths(parse):
  for path in ('experiments/configs/imagenet_sync.py', '__init__', '../x', ''):
    with pytest.raises(UserError, match='no config'):
      parse(f'--config={path}')


@pytest.mark.parametrize(
  'spelling', [(SMOKE,), ('--config', 'imagenet_codistill:smoke')]
)
def test_a_name_becomes_its_config_and_overrides_apply(parse, spelling):
  rest = parse(*spelling, '--config.codistill.members=3', '--workdir=here')
  assert rest == ['run', 'imagenet_codistill:smoke']
  expected = config_lib.load('imagenet_codistill:smoke')
  assert config().codistill.members == 3
  with config().unlocked():
    config().codistill.members = expected.codistill.members
  assert config().to_dict() == expected.to_dict()


def test_overrides_reach_what_follows_from_them(parse):
  parse('--config=imagenet_sync:smoke', '--config.num_steps=5')
  assert config().codistill.burn_in_steps == 5
  assert config().schedule.warmup_cosine.num_steps == 5


def test_what_is_known_of_a_set_of_images_follows_from_its_name(parse):
  parse('--config=imagenet_codistill:reduced', '--config.data.name=cifar10')
  data = config().data
  assert (data.image_shape, data.num_classes) == ((32, 32, 3), 10)
  assert len(data.mean) == len(data.std) == 3
  assert (data.train_split, data.eval_split) == ('train[:15000]', 'test')
  # So results of it are told apart by the one key.
  base = config_lib.load('imagenet_codistill:reduced')
  assert config_lib.overrides(base, config()) == {'data.name': 'cifar10'}


def test_what_is_given_stays_whatever_is_known_of_the_set(parse):
  given = {'data.eval_split': 'train[9:]', 'data.std': (0.5, 0.5, 0.5)}
  parse(
    '--config=imagenet_sync:reduced',
    '--config.data.name=cifar100:3.0.2',
    *(f'--config.{key}={value}' for key, value in given.items()),
  )
  base = config_lib.load('imagenet_sync:reduced')
  assert config().data.num_classes == 100
  assert config_lib.overrides(base, config()) == {
    'data.name': 'cifar100:3.0.2',
    **given,
  }


def test_a_set_that_is_not_known_or_named_changes_nothing(parse):
  base = config_lib.load('imagenet_sync:reduced')
  parse('--config=imagenet_sync:reduced', '--config.data.name=kmnist')
  assert config_lib.overrides(base, config()) == {'data.name': 'kmnist'}
  assert config().data.mean == base.data.mean


def test_an_override_of_none_has_its_type(parse):
  parse(SMOKE, '--config.num_devices=1', '--config.data.data_dir=there')
  assert config().num_devices == 1
  assert config().data.data_dir == 'there'


@pytest.mark.parametrize(
  ('wrong', 'near'),
  [
    ('codistill.membrs', 'codistill.members'),
    ('num_step', 'num_steps'),
    ('members', 'codistill.members'),
    # Flags may have dashes, keys may not.
    ('codistill.delay-steps', 'codistill.delay_steps'),
  ],
)
def test_an_unknown_key_is_told_the_nearest_key(parse, wrong, near):
  with pytest.raises(UserError) as caught:
    parse(SMOKE, f'--config.{wrong}=1')
  sentence = the_sentence(caught)
  assert repr(wrong) in sentence
  assert near in sentence.partition('did you mean')[2]


@pytest.mark.parametrize(
  'override',
  [
    'codistill.members=two',
    'codistill.members=1.5',
    'codistill.immediate=perhaps',
    'codistill.task_weight=heavy',
    'num_devices=all',
    'codistill=memory',
    'data.mean=grey',
    'data.image_shape=1.5',
  ],
)
def test_a_value_of_a_wrong_type_is_refused_by_name(parse, override):
  with pytest.raises(UserError) as caught:
    parse(SMOKE, f'--config.{override}')
  assert override.partition('=')[2] in the_sentence(caught)


def test_the_wrong_type_names_its_key(parse):
  with pytest.raises(UserError, match=r'--config\.codistill\.members=two'):
    parse(SMOKE, '--config.codistill.members=two')


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    (['--config'], 'needs a name'),
    (['--config.num_steps=3'], '--config=NAME'),
    (['--config.num_steps=3', SMOKE], 'before'),
    ([SMOKE, 'laptop'], "'laptop'"),
    ([SMOKE, '--wrkdir=x'], 'workdir'),
    ([SMOKE, '--config.num_steps'], 'Missing value'),
    ([SMOKE, '--list=perhaps'], 'list'),
  ],
)
def test_a_command_that_makes_no_sense_is_one_sentence(parse, arguments, said):
  with pytest.raises(UserError) as caught:
    parse(*arguments)
  assert said in the_sentence(caught)


@pytest.mark.parametrize(
  'spelling', ['--allow-code-change', '--allow_code_change']
)
def test_flags_may_be_typed_with_dashes(parse, spelling):
  parse(SMOKE, spelling)
  assert flags.FLAGS.allow_code_change is True
  assert flags.FLAGS.overwrite is False


def test_dashes_in_values_stay(parse):
  parse(SMOKE, '--workdir=a-b--c', '--config.data.data_dir=d-e')
  assert flags.FLAGS.workdir == 'a-b--c'
  assert config().data.data_dir == 'd-e'


def test_a_parsed_config_takes_no_new_key(parse):
  parse(SMOKE)
  with pytest.raises(AttributeError):
    config().codistill.membrs = 3


def test_list_shows_every_name_with_its_variants_and_what_it_is(parse, capsys):
  rest = parse('--list')
  assert run.main(rest) == 0
  shown = capsys.readouterr().out
  lines = shown.splitlines()
  named = [line for line in lines if not line.startswith(' ')]
  assert named == config_lib.names()
  assert lines.count('  variants: :reduced, :laptop, :smoke') >= len(NAMES)
  assert '  Two-way codistillation: two ResNet-50 on ImageNet' in shown


def test_no_config_is_one_sentence(parse, capsys):
  assert run.main(parse()) == 2
  captured = capsys.readouterr()
  assert captured.err.count('\n') == 1
  assert '--config=NAME is missing' in captured.err

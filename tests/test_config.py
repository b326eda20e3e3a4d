"""Configs by name; flags that make no sense are refused in one sentence."""

import functools
import itertools
import pathlib
import re
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import config as config_lib
from experiments import config_file, given, run
from experiments.build import build
from experiments.errors import UserError
from experiments.flags import make_request

SMOKE = '--config=imagenet_codistill:smoke'


@pytest.fixture
def parse(monkeypatch):
  """`parse_flags` of a command; `.config` is the parsed --config."""

  def parse(*arguments):
    monkeypatch.setattr(sys, 'argv', ['run', *arguments])
    return run.parse_flags(sys.argv)

  with flagsaver.flagsaver():
    yield parse


def test_paths_are_expanded_alike(parse, monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  for config, key, *more in (
    ('imagenet_codistill', 'codistill.exchange_dir', '--member=0'),
    ('imagenet_two_phase', 'codistill.frozen_dir'),
    ('imagenet_codistill', 'data.data_dir'),
    ('criteo_dnn', 'data.path'),
  ):
    for written in ('~/a', 'a', str(tmp_path / 'b' / '..' / 'a')):
      with flagsaver.flagsaver():
        parse(f'--config={config}', f'--config.{key}={written}', *more)
        section, name = key.split('.')
        assert flags.FLAGS['config'].value[section][name] == f'{tmp_path}/a'
    if key in ('codistill.exchange_dir', 'data.data_dir'):  # For buckets, too.
      with flagsaver.flagsaver():
        parse(f'--config={config}', f'--config.{key}=gs://b/a', *more)
        assert flags.FLAGS['config'].value[section][name] == 'gs://b/a'
      url, why = 'gcs://b/a', 'is no bucket that can be used; name one'
    else:
      url, why = 'gs://b/a', 'is not on this machine'
    said = refusal(parse, f'--config={config}', f'--config.{key}={url}', *more)
    assert f'{url} {why}' in said
  with flagsaver.flagsaver(workdir='~/a'):
    assert make_request('imagenet_codistill').workdir == tmp_path / 'a'


def test_flags_may_be_in_a_file(parse, tmp_path):
  (tmp_path / 'flags').write_text(f'{SMOKE}\n--config.num_steps=4\n')
  parse(f'--flagfile={tmp_path}/flags', '--config.seed=3')
  assert (config().num_steps, config().seed) == (4, 3)


def config():
  return flags.FLAGS['config'].value


def refusal(parse, *arguments):
  """Why a command is refused: one sentence, so that it fits a line."""
  with flagsaver.flagsaver(), pytest.raises(UserError) as caught:
    parse(*arguments)
  text = str(caught.value)
  assert text.strip()
  assert '\n' not in text
  return text


@pytest.mark.parametrize('name', config_file.names())
def test_scales_of_an_experiment_grow_and_points_of_its_sweep_fit(name):
  variants = config_file.find(name).loaded.module.VARIANTS
  scales = ('', 'gpu', 'reduced', 'laptop', 'smoke')
  assert set(scales) - set(variants) <= {'gpu'}
  sizes = {}
  for variant in variants:
    label = f'{name}:{variant}'.rstrip(':')
    base = config_lib.load(label)
    sizes[variant] = base.num_steps * base.batch_size
    seen = []
    for point in config_lib.points(label):
      config = config_lib.load(label)
      config_lib.check_keys(base, point)
      config.update_from_flattened_dict(point)
      assert not given.unread(config, point)
      # Collected results are told apart by this: each point's own keys name all
      # its changes, and no two agree.
      assert set(config_lib.overrides(base, config)) <= set(point)
      seen.append(config.to_json())
    assert seen
    assert len(set(seen)) == len(seen)
  if name != 'topology':  # Two of its scales differ in something else.
    grown = [sizes[variant] for variant in scales if variant in sizes]
    assert grown == sorted(set(grown), reverse=True)
  # Without a sweep there is one point.
  assert config_lib.points('imagenet_ensemble:smoke') == [{}]


def test_an_unknown_config_is_told_the_nearest_name(parse):
  for wrong, said in {
    'imagenet_codistil:smoke': 'did you mean imagenet_codistill',
    'imagenet-sync:smoke': 'did you mean imagenet_sync',
    'ensemble:smoke': 'did you mean lm_ensemble or criteo_ensemble',
    'zzzzzz': 'python',  # Like no other.
    'experiments/configs/imagenet_syn.py': 'did you mean imagenet_sync',
    'experiments.configs.base': 'python',
    '__init__': 'python',
    '../x': 'python',
    '': 'python',
  }.items():
    sentence = refusal(parse, f'--config={wrong}')
    name = wrong.removesuffix(':smoke')
    if wrong.startswith('experiments'):  # As it is called here.
      name = re.search(r'\w+$', wrong.removesuffix('.py'))[0]
    assert f'no config {name!r}; {said}' in sentence
    assert '--list' in sentence


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


@pytest.mark.parametrize(
  ('label', 'given', 'follows'),
  [
    ('imagenet_sync:laptop', {}, {}),
    (
      'imagenet_sync:laptop',
      {'num_steps': 10, 'data.mean': (0.5,)},
      {'codistill.burn_in_steps': 10, 'schedule.warmup_cosine.num_steps': 10},
    ),
    # The name of a set determines the facts that are known about it, so it
    # tells results apart; given values stay in any case.
    ('imagenet_codistill:reduced', {'data.name': 'cifar10'}, {}),
    (
      'imagenet_sync:reduced',
      {
        'data.name': 'cifar100:3.0.2',
        'data.eval_split': 'train[9:]',
        'data.std': (0.5, 0.5, 0.5),
      },
      {},
    ),
    # No facts are known about this one.
    ('imagenet_sync:reduced', {'data.name': 'kmnist'}, {}),
  ],
)
def test_overrides_are_what_differs_and_follows(parse, label, given, follows):
  keys = [f'--config.{key}={value}' for key, value in given.items()]
  parse(f'--config={label}', *keys)
  base = config_lib.load(label)
  assert config_lib.overrides(base, config()) == given | follows


@pytest.mark.parametrize(
  ('name', 'known'),
  [
    (
      'cifar10',
      {'image_shape': (32, 32, 3), 'num_classes': 10, 'eval_split': 'test'}
      | {'train_split': 'train[:15000]'},
    ),
    ('cifar100:3.0.2', {'num_classes': 100}),
    ('kmnist', {}),
  ],
)
def test_what_is_known_of_a_set_of_images(parse, name, known):
  label = 'imagenet_codistill:reduced'
  parse(f'--config={label}', f'--config.data.name={name}')
  found, base = (c.data.to_dict() for c in (config(), config_lib.load(label)))
  assert known.items() <= found.items()
  assert len(found['mean']) == len(found['std']) == (3 if known else 1)
  assert (found['mean'] == base['mean']) == (not known)


def test_a_folder_that_is_given_is_what_is_read(parse, short_text, tmp_path):
  for label, key, follows in (
    ('lm_codistill', f'data_dir={short_text}', {'vocab_size': 64}),
    ('lm_sync:laptop', f'data_dir={short_text}', {'vocab_size': 64}),
  ):
    with flagsaver.flagsaver():
      parse(f'--config={label}', f'--config.data.{key}')
      assert (
        config().data.to_dict().items()
        >= {'name': 'prepared', **follows}.items()
      )
      # A row's point is its data; their 64 pieces follow from them.
      base = config_lib.load(label)
      key, _, value = key.partition('=')
      named = {'data.name': 'prepared'}
      if base.data.name == 'prepared':
        named = {}
      found = config_lib.overrides(base, config())
      assert found == {f'data.{key}': value, **named}
  wrong = (f'--config.data.data_dir={tmp_path}',)
  text = ('--config=lm_sync:laptop', f'--config.data.data_dir={short_text}')
  with flagsaver.flagsaver():
    parse(*text, '--config.data.vocab_size=65')
    wanted = config()
  with pytest.raises(UserError, match='has 64 pieces; set '):
    build(wanted, None)
  for more, said in (
    ((*text, '--config.data.name=builtin'), 'builtin, which has no folder'),
    ((SMOKE, *wrong), 'imagenet_sample lies in no folder'),
  ):
    with flagsaver.flagsaver():
      parse(*more)
      wanted = config()
    # Modules that it imports define flags, which must stay.
    with pytest.raises(UserError, match=said):
      build(wanted, None)
  said = refusal(parse, '--config=lm_sync:laptop', *wrong)
  assert f'There is no prepared text in {tmp_path}' in said


def test_a_key_that_nothing_reads_is_refused(parse):
  for label, keys, decides in (
    (
      'imagenet_codistill',
      'model.name=dnn model.resnet.depth=18',
      'model.name',
    ),
    ('imagenet_codistill', 'optimizer.lars.momentum=0.5', 'optimizer.name'),
    (
      'imagenet_codistill',
      'schedule.name=constant schedule.warmup_piecewise.peak_rate=1',
      'schedule.name to warmup_piecewise',
    ),
    ('lm_codistill', 'codistill.keep_s=1', "codistill.exchange is 'memory'"),
    ('lm_sync', 'codistill.reload_interval_steps=9', "exchange is 'none'"),
    ('lm_sync', 'codistill.distill_weight=0.5', 'memory or checkpoints'),
    (
      'imagenet_two_phase',
      'codistill.frozen_dir=/a model.resnet.teacher_batch_norm=batch',
      'set codistill.frozen_dir to None',
    ),
    ('lm_codistill', 'codistill.distill_top_k=3', "loss is 'cross_entropy'"),
    ('lm_codistill', 'codistill.temperature_scaling=False', 'temperature is 1'),
    ('lm_label_smoothing', 'codistill.peer_average=logits', 'peers'),
    (
      'lm_codistill',
      'codistill.num_random_neighbours=2',
      'set codistill.topol',
    ),
    ('imagenet_codistill', 'fault.step=3', 'rate, noise, death or slow'),
    ('imagenet_codistill', 'two_phase.num_steps=3', 'frozen'),
    ('imagenet_codistill', 'model.memory_reset_probability=0.1', 'to lstm'),
    (
      'lm_codistill',
      'model.name=transformer model.memory_reset_probability=0.1',
      'to lstm',
    ),
    ('imagenet_codistill', 'data.padding=3', 'shift or shift_flip'),
    ('criteo_dnn', 'data.synthetic_rows=3', 'synthetic'),
    ('criteo_dnn:smoke', 'data.path=/a data.name=synthetic', 'data.path is'),
    (
      'criteo_dnn:smoke',
      'data.path=/a data.synthetic_rows=3',
      'set data.path to None',
    ),
    ('imagenet_sync', 'optimizer.sgd.weight_decay_drop_factor=0.5', 'some st'),
    ('cifar100_offline', 'model.dnn.hidden=(8,)', "model.name is 'resnet'"),
  ):
    set_by_hand = [f'--config.{key}' for key in keys.split()]
    said = refusal(parse, f'--config={label}', *set_by_hand)
    key = set_by_hand[-1].partition('=')[0]
    assert f'{key} changes nothing where ' in said
    assert decides in said
  for label, *set_by_hand in (
    # Members that are started one by one meet in a folder.
    ('imagenet_codistill', '--config.codistill.keep_s=1', '--member=0'),
    ('lm_label_smoothing', '--config.codistill.distill_weight=0.5'),
    # The first phase reads this depth.
    (
      'imagenet_two_phase',
      *('--config.model.name=dnn', '--config.two_phase.model=resnet'),
      '--config.model.resnet.depth=18',
    ),
  ):
    with flagsaver.flagsaver():
      parse(f'--config={label}', *set_by_hand)
  # Code that reads a choice refuses an unknown one.
  with flagsaver.flagsaver():
    wrong = ('--config.model.name=restnet', '--config.model.resnet.depth=18')
    parse(SMOKE, *wrong, '--config.codistill.exchange=chekpoints')
  # A flag can be written in several ways.
  for one in ('-config.codistill.keep_s=1', '--noconfig.codistill.synchronous'):
    assert 'changes nothing' in refusal(parse, SMOKE, one)


def test_conditions_are_of_keys_that_exist():
  configs = [config_lib.load(name) for name in config_file.names()]

  def exists(key):
    *sections, name = key.split('.')
    return any(
      name
      in functools.reduce(lambda at, one: at.get(one, {}), sections, config)
      for config in configs
    )

  for key, conditions in given._READ_WHERE.items():
    assert exists(key)
    assert all(exists(condition.key) for condition in conditions)


def test_a_placeholder_takes_none(parse):
  keys = 'codistill.max_age_steps', 'data.path', 'data.max_test_rows'
  nones = [f'--config.{key}=None' for key in keys]
  # The variant sets it; the last flag counts.
  assert config_lib.load('criteo_codistill:laptop').data.max_test_rows
  parse('--config=criteo_codistill:laptop', f'--config.{keys[0]}=3', *nones)
  assert config().codistill.max_age_steps is None
  assert config().data.path is config().data.max_test_rows is None


def test_a_bad_override_is_refused_by_name(parse):
  for override, said in {
    'codistill.membrs=1': 'codistill.members',
    'num_step=1': 'num_steps',
    'members=1': 'codistill.members',
    # Flags may have dashes, keys may not.
    'codistill.delay-steps=1': 'codistill.delay_steps',
    # These values have a wrong type.
    'codistill.members=two': '--config.codistill.members=two',
    'codistill.members=1.5': '1.5',
    'codistill.immediate=perhaps': 'perhaps',
    'codistill.task_weight=heavy': 'heavy',
    'num_devices=all': 'all',
    'num_steps=None': 'None',
    'codistill.burn_in_steps=None': 'None',
    'codistill=memory': 'memory',
    'data.mean=grey': 'grey',
    'data.image_shape=1.5': '1.5',
  }.items():
    key, _, value = override.partition('=')
    sentence = refusal(parse, SMOKE, f'--config.{override}')
    if value == '1':  # There is no such key.
      assert repr(key) in sentence
      sentence = sentence.partition('did you mean')[2]
    assert said in sentence, override


def test_a_command_that_makes_no_sense_is_one_sentence(parse):
  for arguments, said in (
    (['--config'], 'needs a name'),
    (['--config=imagenet_sync:labtop'], "'labtop'; it can be none, :gpu, :red"),
    (['--config.num_steps=3'], '--config=NAME'),
    (['--config.num_steps=3', SMOKE], 'before'),
    ([SMOKE, 'laptop'], "'laptop'"),
    ([SMOKE, '--wrkdir=x'], 'workdir'),
    ([SMOKE, '--config.num_steps'], 'Missing value'),
    ([SMOKE, '--list=perhaps'], 'list'),
  ):
    assert said in refusal(parse, *arguments), arguments


@pytest.mark.parametrize(
  'spelling', ['--allow-code-change', '--allow_code_change']
)
def test_flags_and_values_may_have_dashes(parse, spelling):
  overrides = ('--config.data.data_dir=d-e', '--config.num_devices=1')
  parse(SMOKE, spelling, '--workdir=a-b--c', *overrides)
  assert flags.FLAGS.allow_code_change is True
  assert flags.FLAGS.overwrite is False
  assert flags.FLAGS.workdir == 'a-b--c'
  # Overrides of None have their type.
  assert config().data.data_dir == str(pathlib.Path('d-e').absolute())
  assert config().num_devices == 1
  with pytest.raises(AttributeError):
    config().codistill.membrs = 3


def test_list_shows_every_name_with_its_variants_and_what_it_is(parse, capsys):
  rest = parse('--list')
  assert run.main(rest) == 0
  shown = capsys.readouterr().out
  lines = shown.splitlines()
  assert max(map(len, lines)) <= 80
  named = re.findall(r'^(\w+)  ', shown, re.MULTILINE)
  assert named == ['config', *config_file.names()]
  # What folds, read column by column.
  start = next(n for n, line in enumerate(lines) if 'lm_codistill ' in line)
  columns = [lines[0].index(name) for name in ('variants', 'what', 'in the')]
  cells = [
    ' '.join(line[a:b].strip() for line in lines[start : start + 3]).strip()
    for a, b in itertools.pairwise((*columns, 80))
  ]
  assert cells == [
    'gpu reduced narrow laptop smoke',
    'Two language models that teach each other',
    'Figures 2a, 2b, 4',
  ]
  # Of each is said where it is in the paper, or that it is not.
  for name in config_file.names():
    summary = config_file.find(name).loaded.module.__doc__.partition('\n')[0]
    assert re.fullmatch(r'.* \((.*\d.*|not in the paper)\)\.', summary)


def test_no_config_is_one_sentence(parse, capsys):
  assert run.main(parse()) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1
  assert '--config=NAME is missing' in error


def test_members_of_code_without_a_key_have_as_much_in_common():
  config = config_lib.load('lm_codistill:smoke')
  known = config_lib.in_common(config)
  assert 'average_decay' not in known
  assert 'eval_metrics' not in known
  assert 'temperature' not in known['codistill']
  config.average_decay = 0.5
  config.codistill.temperature = 2.0
  found = config_lib.in_common(config)
  assert found['average_decay'] == 0.5
  assert found['codistill']['temperature'] == 2.0

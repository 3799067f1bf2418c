# SPDX-License-Identifier: Apache-2.0
"""Every gin file parses and makes a recipe."""

import json
import pathlib

import ablate
import gin
import pytest

from specstream_jax import config
from specstream_jax.checkpoints import huggingface_config, shipped, weights
from specstream_jax.cli import main
from specstream_jax.config import drafting
from specstream_jax.data import registry
from specstream_jax.workflows import train

CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'


@pytest.fixture(autouse=True)
def clean_gin():
  gin.clear_config()
  yield
  gin.clear_config()


def recipe(name, *bindings):
  main.parse_gin([str(CONFIGS / name)], bindings)
  return train.Recipe()


@pytest.mark.parametrize('name', sorted(p.name for p in CONFIGS.glob('*.gin')))
def test_gin_file_makes_a_recipe_of_its_own(name):
  default = train.Recipe()
  assert recipe(name) != default


@pytest.mark.parametrize('task', sorted((CONFIGS / 'tasks').glob('*.gin')))
@pytest.mark.parametrize('model', sorted(CONFIGS.glob('llama?_*.gin')))
def test_every_task_goes_with_every_model(model, task):
  alone = recipe(model.name)
  size = config.ModelConfig()
  gin.clear_config()
  main.parse_gin([str(model), str(task)], ())
  both = train.Recipe()
  assert config.ModelConfig() == size
  assert both.train != alone.train
  # A task says how long to train, a model how: neither undoes the other.
  assert both.train.num_steps % 5 == 0
  for name in ('stream', 'lora', 'objective', 'data', 'tree'):
    assert getattr(both, name) == getattr(alone, name)


@pytest.mark.parametrize('path', sorted((CONFIGS / 'eval').glob('*.gin')))
def test_evaluation_of_every_task_has_a_file(path):
  """Its name is that of the recipes of the task."""
  main.parse_gin([str(path)], ())
  task, how = config.TaskConfig(), config.EvalConfig()
  assert registry.get(task.name).splits.count(task.test_split) == 1
  assert drafting.parse(how.drafter).name == 'streams'
  assert how.adapter in ('', *shipped.shipped_adapters())
  assert (CONFIGS / 'tasks' / path.name).is_file()


def test_seqio_settings_have_the_names_of_t5x():
  made = recipe(
    'seqio.gin',
    "MIXTURE_OR_TASK_NAME = 'seqio:mine'",
    'TRAIN_STEPS = 7',
    'BATCH_SIZE = 3',
    "EVAL_SPLIT = 'test'",
  )
  assert (made.train.num_steps, made.train.batch_size) == (7, 3)
  task = config.TaskConfig()
  assert (task.name, task.dev_split) == ('seqio:mine', 'test')


@pytest.mark.parametrize(
  ('name', 'billions'),
  [
    ('llama2_7b', 6.74),
    ('llama3_8b', 8.03),
    ('qwen3_8b', 8.19),
    ('gemma3_12b', 11.77),
    ('opt_1_3b', 1.316),
  ],
)
def test_models_of_recipes_are_those_of_checkpoints(name, billions):
  recipe(f'{name}.gin')
  cfg = config.ModelConfig()
  assert weights.count(cfg) / 1e9 == pytest.approx(billions, rel=2e-3)
  raw = huggingface_config.dump(cfg, dtype='bfloat16', eos_ids=(1,))
  assert huggingface_config.parse(raw, 'config.json') == cfg
  config.StreamConfig().check_fits(cfg)


@pytest.mark.parametrize(
  ('name', 'stages'),
  [
    ('e2e_nlg', {'e2e_deep_lora': ['fold'], 'e2e_deep_streams': []}),
    (
      'sql_create_context',
      {
        'sql_deep_lora': ['fold'],
        'sql_deep_streams': [],
      },
    ),
    ('instruct_lossless', {'any_deep_streams': []}),
  ],
)
def test_shipped_adapter_has_the_recipes_of_its_gin_files(name, stages):
  folder = pathlib.Path(shipped.adapter_folder(name))
  saved = json.loads((folder / 'adapter_config.json').read_text())
  now = json.loads(json.dumps(train.Recipe().to_json()))
  for gin_file, origins in stages.items():
    gin.clear_config()
    values = recipe(f'{gin_file}.gin').to_json()
    stage = saved['provenance']
    for origin in origins:
      stage = stage[f'{origin}_adapter']['provenance']
    expected = json.loads(json.dumps(values))
    tree = expected.pop('tree')
    # A field that came later is at its default.
    then = {k: now[k] | stage['recipe'][k] for k in now if k != 'tree'}
    assert then == expected
  assert saved['tree'] == tree  # chosen after training


@pytest.mark.parametrize(
  ('binding', 'message'),
  [
    ('LoraConfig.alpha = -1', 'LoraConfig.alpha is -1.0; it must be a number'),
    (
      'StreamConfig.embedding_init_scale = -1',
      'StreamConfig.embedding_init_scale is -1.0; it must be a number >= 0',
    ),
  ],
)
def test_values_that_are_no_sizes_are_refused(binding, message):
  with pytest.raises(ValueError, match=message):
    recipe('tiny.gin', binding)


def test_a_binding_on_the_command_line_wins_over_the_file():
  assert recipe('tiny.gin', 'LoraConfig.rank = 5').lora.rank == 5


def test_gin_does_not_reach_what_an_older_file_lacks():
  values = config.to_json(config.StreamConfig(num_streams=3))
  del values['coupling_rank']
  with gin.unlock_config():
    gin.parse_config('StreamConfig.coupling_rank = 64')
  try:
    assert config.StreamConfig().coupling_rank == 64
    read = config.from_json(config.StreamConfig, values)
    assert (read.coupling_rank, read.num_streams) == (0, 3)
  finally:
    gin.clear_config()


@pytest.mark.parametrize('name', ablate.VARIANTS)
def test_variant_of_the_ablations_is_a_recipe_of_its_own(name):
  variant, gin_file = ablate.VARIANTS[name], 'sql_smollm2_ablation.gin'
  bindings = [f'--gin.{binding}' for binding in variant.bindings]
  changed = recipe(gin_file, *main.split_gin(bindings)[1])
  gin.clear_config()
  assert (changed != recipe(gin_file)) == bool(bindings)
  # What goes on from another comes after it.
  names = list(ablate.VARIANTS)
  assert not variant.after or variant.after in names[: names.index(name)]


def test_the_ablations_name_streams_by_number(tmp_path, monkeypatch):
  values = {'loss/main': 0.5, 'top1/main': 1.0, 'tokens_per_call': 2.0}
  values |= {f'top1/stream_{j}': j / 100 for j in range(12, 0, -1)}
  (tmp_path / 'recipe' / 'adapter').mkdir(parents=True)
  line = json.dumps({'split': 'eval', **values})
  (tmp_path / 'recipe' / 'metrics.jsonl').write_text(line)
  monkeypatch.setattr(ablate, 'folder', lambda name: str(tmp_path / name))
  row = ablate.table().splitlines()[-1]
  numbers = ' '.join(f'{j}.0' for j in range(1, 13))
  assert row == f'| recipe | 2.00 | 0.500 | 100.0 {numbers} | 0.0 |'


def test_include_looks_beside_the_file(tmp_path, monkeypatch):
  (tmp_path / 'shared.gin').write_text('LoraConfig.rank = 7\n')
  (tmp_path / 'own.gin').write_text("include 'shared.gin'\n")
  monkeypatch.chdir(tmp_path.parent)
  main.parse_gin([str(tmp_path / 'own.gin')], [])
  assert config.LoraConfig().rank == 7

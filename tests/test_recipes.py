# SPDX-License-Identifier: Apache-2.0
"""Recipes that come with the package are those of configs/."""

import pathlib
import tomllib

import gin
import pytest

from specstream_jax import config
from specstream_jax.cli import help_texts, main, recipes

ROOT = pathlib.Path(__file__).parents[1]


def test_recipes_are_the_files_of_configs():
  files = (ROOT / 'configs').rglob('*.gin')
  expected = {path.relative_to(ROOT / 'configs') for path in files}
  assert {pathlib.Path(f'{name}.gin') for name in recipes.names()} == expected
  for name in recipes.names():
    (path,) = recipes.paths([name])
    text = (ROOT / 'configs' / f'{name}.gin').read_text()
    assert pathlib.Path(path).read_text() == text
    assert pathlib.Path(path).is_relative_to(ROOT / 'specstream_jax')


def test_the_package_takes_them_along():
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())
  data = project['tool']['setuptools']['package-data']
  assert '**/*.gin' in data['specstream_jax']


def test_a_recipe_by_name_reads_what_it_includes():
  gin.clear_config()
  try:
    main.parse_gin(
      recipes.paths(['llama2_7b', 'tasks/e2e']), ['LoraConfig.rank = 3']
    )
    assert config.ModelConfig().hidden_size == 4096
    assert config.DataConfig().sequence_length == 2048  # of what is included
    assert config.TrainConfig().num_steps == 385
    assert config.LoraConfig().rank == 3
  finally:
    gin.clear_config()


def test_unknown_recipes_name_the_nearest():
  with pytest.raises(
    ValueError,
    match=r"recipe 'e2e_smolm2' does not .*; did you mean 'e2e_smollm2'\? "
    r'Accepted: any_deep_streams, .*tiny\. A file of your own',
  ):
    recipes.paths(['e2e_smolm2'])
  for name in ('../configs/tiny', '/etc/passwd', 'tiny.gin', ''):
    with pytest.raises(ValueError, match='does not come with this package'):
      recipes.paths([name])


def test_help_lists_them():
  assert all(name in help_texts.usage() for name in recipes.names())

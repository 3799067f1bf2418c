# SPDX-License-Identifier: Apache-2.0
"""A gin file sets fields of the config classes; more only if it is trusted."""

import sys

import gin
import pytest

from specstream_jax import config, partitioning
from specstream_jax.cli import gin_files, main
from specstream_jax.config import drafting as config_drafting


@pytest.fixture(autouse=True)
def clean_gin():
  gin.clear_config()
  yield
  gin.clear_config()


@pytest.fixture
def probe(tmp_path, monkeypatch):
  """A module that leaves a file behind when it is imported or called."""
  package = tmp_path / 'gin_probe'
  package.mkdir()
  mark = tmp_path / 'ran'
  (package / '__init__.py').write_text(
    f'import pathlib\nMARK = pathlib.Path({str(mark)!r})\nMARK.touch()\n'
    'def call(text):\n  MARK.write_text(text)\n  return True\n'
  )
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.chdir(tmp_path)
  yield mark
  sys.modules.pop('gin_probe', None)


def parse(tmp_path, text, *bindings, **settings):
  (tmp_path / 'a.gin').write_text(text)
  main.parse_gin([str(tmp_path / 'a.gin')], bindings, **settings)


REGISTERED = (
  'from __gin__ import dynamic_registration\n'
  'from specstream_jax.config import training\n'
  'import gin_probe\n'
  'training.DataConfig.packed = @gin_probe.call()\n'
  "gin_probe.call.text = 'called'\n"
)


def test_what_a_recipe_needs(tmp_path):
  parse(
    tmp_path,
    '# A macro, a block, a reference to one of ours, module names, lists.\n'
    'n = 3\nwide/macro.value = 5\n'
    'StreamConfig:\n  num_streams = %n\n  num_msa_layers = 2\n'
    'TrainConfig.batch_size = %wide\n'
    'DrafterConfig.tree = @small/TreeConfig()\nsmall/TreeConfig.depth = 2\n'
    "config.LoraConfig.modules = ['query',\n  'key']\n"
    'OptimizerConfig.learning_rate = -1e-3\n',
    'OptimizerConfig.learning_rate = 0.5',
  )
  assert config.StreamConfig(pruning_rank=0) == config.StreamConfig(
    3, 2, pruning_rank=0
  )
  assert config.TrainConfig().batch_size == 5
  assert config_drafting.DrafterConfig().tree == config.TreeConfig(depth=2)
  assert config.LoraConfig().modules == ('query', 'key')
  assert config.OptimizerConfig().learning_rate == 0.5


def test_the_settings_that_a_run_saved_are_read_again(tmp_path):
  parse(
    tmp_path,
    'n = 3\nStreamConfig.num_streams = %n\n'
    'DrafterConfig.tree = @small/TreeConfig()\nsmall/TreeConfig.depth = 2\n',
  )
  made = lambda: (
    config.StreamConfig(),
    config_drafting.DrafterConfig(),
    partitioning.AxisRules(),
  )
  before = made()
  saved = gin.operative_config_str()
  gin.clear_config()
  parse(tmp_path, saved)
  assert made() == before


@pytest.mark.parametrize(
  ('text', 'written'),
  [
    (REGISTERED, 'a.gin:1: .from __gin__ import dynamic_registration'),
    ('n = 3\nimport gin_probe\n', "a.gin:2: 'import gin_probe'"),
    ('from gin_probe import call as c\n', 'a.gin:1: .from gin_probe import c'),
    ('n = @gin_probe.call\n', "a.gin:1: '@gin_probe.call' is not allowed"),
    ('n = {"a": [(@gin_probe.call(),)]}\n', r"'@gin_probe.call\(\)' is not a"),
    ('n = {@gin_probe.call(): 1}\n', r"'@gin_probe.call\(\)' is not allowed"),
    ('n = @a/b/gin_probe.call()\n', r"'@a/b/gin_probe.call\(\)' is not all"),
    ('n = @a/gin.singleton()\n', r"'@a/gin.singleton\(\)' is not allowed"),
    ('a/gin.singleton.constructor = 1\n', 'gin.singleton.constructor. is not'),
    ('gin_probe.call.text = "x"\n', "'gin_probe.call.text' is not allowed"),
    ('gin_probe.call:\n  text = 1\n', "a.gin:1: 'gin_probe.call' is not all"),
    ('n = @print()\n', r"'@print\(\)' is not allowed"),
    ('n = @gin.macro\n', "'@gin.macro' is not allowed"),
  ],
)
def test_what_could_run_a_program_is_refused(tmp_path, probe, text, written):
  with pytest.raises(ValueError, match=written) as error:
    parse(tmp_path, text)
  assert 'accepted: fields of the config classes, macros' in str(error.value)
  assert '--trust_gin' in str(error.value)
  assert not probe.exists() and 'gin_probe' not in sys.modules


def test_a_bad_line_after_good_ones_binds_nothing(tmp_path):
  with pytest.raises(ValueError, match='import os'):
    parse(tmp_path, 'StreamConfig.num_streams = 9\nimport os\n')
  assert config.StreamConfig().num_streams != 9


def test_functions_that_other_packages_register_are_none_of_ours(tmp_path):
  @gin.configurable('stranger', module='elsewhere')
  def stranger(value=1):
    raise AssertionError(f'called with {value}')

  for text in ('n = @stranger()\n', 'stranger.value = 2\n'):
    with pytest.raises(ValueError, match=r'stranger.* is not allowed'):
      parse(tmp_path, text)


@pytest.mark.parametrize(
  'argument',
  [
    '--gin.DataConfig.packed=@gin_probe.call()',
    '--gin.DataConfig.packed=@DataConfig\nimport gin_probe',
    '--gin.import gin_probe\na=1',
  ],
)
def test_bindings_of_the_command_line_likewise(probe, argument):
  _, bindings = main.split_gin([argument])
  with pytest.raises(ValueError, match=r'--gin\..* is not allowed'):
    main.parse_gin([], bindings)
  assert not probe.exists()


def test_an_include_is_held_to_the_same(tmp_path, probe):
  (tmp_path / 'b.gin').write_text('\nimport gin_probe\n')
  with pytest.raises(ValueError, match=r"b\.gin:2: 'import gin_probe' is not"):
    parse(tmp_path, "include 'b.gin'\n")


def test_an_include_imports_no_package_on_the_way(tmp_path, probe):
  # gin's own search would look into the package of that name.
  with pytest.raises(
    ValueError, match=r"a.gin:1: include 'gin_probe/sub/b.gin"
  ):
    parse(tmp_path, "include 'gin_probe/sub/b.gin'\n")
  assert 'gin_probe' not in sys.modules


def test_trusted_files_do_what_gin_can(tmp_path, probe):
  parse(tmp_path, REGISTERED, trusted=True)
  assert config.DataConfig().packed is True
  assert probe.read_text() == 'called'
  gin.clear_config()
  with pytest.raises(ValueError, match=r'gin: No module named .no_such_module'):
    parse(tmp_path, 'import no_such_module\n', trusted=True)


@pytest.mark.parametrize('trusted', [False, True])
def test_files_that_include_each_other(tmp_path, trusted):
  (tmp_path / 'sub').mkdir()
  (tmp_path / 'sub' / 'b.gin').write_text("include '../a.gin'\n")
  with pytest.raises(
    ValueError,
    match=r'gin: .*b\.gin:1: include .*: files include each other, '
    r'.*a\.gin -> .*b\.gin -> .*a\.gin; remove one include$',
  ):
    parse(tmp_path, "\ninclude 'sub/b.gin'\n", trusted=trusted)


def test_a_file_may_be_included_twice_but_not_without_end(tmp_path):
  (tmp_path / 'b0.gin').write_text('StreamConfig.num_streams = 6\n')
  parse(tmp_path, "include 'b0.gin'\ninclude 'b0.gin'\n")
  assert config.StreamConfig().num_streams == 6
  gin.clear_config()
  for i in range(1, 9):  # 2^9 files in all
    (tmp_path / f'b{i}.gin').write_text(f"include 'b{i - 1}.gin'\n" * 2)
  with pytest.raises(ValueError, match='come to more than 100 files; put'):
    parse(tmp_path, "include 'b8.gin'\n")


def test_includes_and_bindings_apply_in_order(tmp_path, monkeypatch):
  (tmp_path / 'deep').mkdir()
  (tmp_path / 'deep' / 'b.gin').write_text("include 'c.gin'\n")
  (tmp_path / 'deep' / 'c.gin').write_text('LoraConfig.rank = 3\n')
  monkeypatch.chdir(tmp_path.parent)
  text = "LoraConfig.rank = 2\ninclude 'deep/b.gin'\n"
  parse(tmp_path, text)
  assert config.LoraConfig().rank == 3
  gin.clear_config()
  parse(tmp_path, text + 'LoraConfig.rank = 4\n', 'LoraConfig.alpha = 1')
  assert config.LoraConfig() == config.LoraConfig(4, 1.0)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (
      'n = 1\nStreamConfig.odd = 1\n',
      "a.gin:2: StreamConfig has no field 'odd'",
    ),
    ('StreamCfg.num = 1\n', "a.gin:1: there is no class 'StreamCfg'. Config"),
    ('StreamCfg:\n  num = 1\n', "a.gin:1: there is no class 'StreamCfg'"),
    ('StreamConfig.num_streams = %m\n', '%m has no value; write m = VALUE'),
    ('n = %n\nDataConfig.packed = %n\n', 'of DataConfig leads back to itself'),
    (
      'DrafterConfig.tree = @DrafterConfig()\n',
      'of DrafterConfig leads back to itself through macros or ref',
    ),
    (
      '\nDataConfig.packed = false\n',
      "a.gin:2: 'DataConfig.packed = false' is not gin: a value is neither a l",
    ),
    ('n = (1,\n', 'a.gin.*: not gin: .*; accepted: Class.field = value'),
    ('n = ' + '(' * 5000, 'a.gin.*: not gin'),
    ('n = {[1]: 2}\n', 'a.gin.*: not gin: unhashable'),
    (
      'a0 = (1, 1)\n'
      + ''.join(f'a{i + 1} = (%a{i}, %a{i})\n' for i in range(40))
      + 'TreeConfig.choices = %a40\n',
      'a.gin:.*: macros that name macros make more than 10,000 values of it',
    ),
    ('n = 1; m = 2\n', "a.gin:1: 'n = 1; m = 2' is not gin: Expected newline"),
    # Python 3.11 takes the byte for the end of a line.
    (
      'n = 1\0\n',
      'a.gin.*not gin: (source code .*null bytes|Expected newline)',
    ),
    ('include 3\n', "a.gin:1: 'include 3' is not gin: Expected file path"),
    ("include 'b.gin'\n", "a.gin:1: include 'b.gin': no such file; looked for"),
    ("include '.'\n", "a.gin:1: include '.': no such file; looked for"),
  ],
)
def test_mistakes_are_one_line_with_a_place(tmp_path, text, message):
  with pytest.raises(ValueError, match=message) as error:
    parse(tmp_path, text)
  assert '\n' not in str(error.value)


def test_files_that_are_no_text(tmp_path):
  (tmp_path / 'a.gin').write_bytes(b'\xff\xfe')
  for name, problem in (('a.gin', 'not UTF-8'), ('b.gin', 'no such file')):
    with pytest.raises(ValueError, match=rf'--gin_file=.*{name}: {problem}'):
      main.parse_gin([str(tmp_path / name)], [])


def test_the_classes_are_those_of_gin():
  assert 'StreamConfig' in gin_files.classes()
  assert 'Partitioner' not in gin_files.classes()

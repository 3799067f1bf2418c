# SPDX-License-Identifier: Apache-2.0
"""The manual keeps its word: its commands, names, links and pictures exist."""

import ast
import dataclasses
import importlib.util
import re
import sys

from absl import flags
import commands
import doc_blocks
import pytest

from specstream_jax import drafters
from specstream_jax.checkpoints import fetch
from specstream_jax.cli import (
  command_flags,
  drafter_help,
  gin_files,
  help_texts,
  main,
  recipes,
)
from specstream_jax.config import drafting as config_drafting
from specstream_jax.workflows import bench

ROOT = doc_blocks.ROOT
SCRIPTS = ROOT / 'docs' / 'scripts'
MODEL = 'smollm2-135m-instruct'
# Pages that are written while the manual is built.
WRITTEN = {'docs/reference/commands.md', 'docs/reference/config.md'}
WRITTEN |= {'docs/launching.md'}


@pytest.fixture(name='scripts')
def _scripts(monkeypatch):
  monkeypatch.syspath_prepend(str(SCRIPTS))
  yield
  for name in ('program_pages', 'pictures'):
    sys.modules.pop(name, None)


def test_every_block_says_whether_it_is_run():
  blocks = doc_blocks.all_blocks()
  assert len(blocks) > 30
  assert [block.place for block in blocks if not block.mark] == []
  why = [block.mark for block in blocks if block.mark.startswith('not run')]
  assert [mark for mark in why if not mark.startswith('not run: ')] == []
  named = re.findall(r'tests/[\w/]+\.py', ' '.join(why))
  assert named and [path for path in named if not (ROOT / path).exists()] == []


def test_every_command_of_the_manual_can_be_typed():
  wrong = []
  for block in doc_blocks.all_blocks('bash'):
    for args in doc_blocks.of_specstream(block.code):
      try:
        check_command(args)
      except (ValueError, flags.Error) as error:
        wrong.append(f'{block.place}: {" ".join(args)}: {error}')
  assert wrong == []


def check_command(args):
  """Raises ValueError or flags.Error for what `specstream` would not take."""
  if not args or args[0] == '--help':
    return
  name, *rest = args
  if name not in help_texts.COMMANDS:
    raise ValueError(f'no command {name}')
  rest, bindings = main.split_gin(rest)
  for binding in bindings:
    check_field(binding.partition(' = ')[0])
  known = flags.FlagValues()
  common = command_flags.defined_by(main.define_common_flags)
  for flag in (command_flags.of(name) | common).values():
    if '…' in rest:  # what is left out may be required
      flag.validators.clear()
    known[flag.name] = flag
  known([name, *rest])
  recipes.paths(known.recipe)
  for path in known.gin_file:
    if path.startswith('configs/') and not (ROOT / path).exists():
      raise ValueError(f'no file {path}')
  for flag in {'drafter', 'drafters'} & set(known):
    check_drafters(known[flag].value)


def check_field(name):
  owner, _, field = name.partition('.')
  cls = gin_files.classes().get(owner)
  if cls is None or field not in {f.name for f in dataclasses.fields(cls)}:
    raise ValueError(f'no field {name}')


def check_drafters(given):
  texts = given if isinstance(given, list) else [given or 'none']
  for text in ';'.join(texts).split(';'):
    config_drafting.parse(bench._label(text)[1])


@pytest.mark.parametrize(
  ('line', 'match'),
  [
    ('specstream trian --data_dir=x', 'no command trian'),
    ('specstream train --steps=few … ', 'invalid literal'),
    ('specstream train --setps=3 …', "Unknown command line flag 'setps'"),
    ('specstream train --data_dir=x', 'output_dir must have a value'),
    ('specstream train … --gin.StreamConfig.number=3', 'no field Stream'),
    ('specstream train … --recipe=e2e_smollm', "mean 'e2e_smollm2'"),
    ('A=b specstream bench --drafters=streams:nodes=3', 'is no setting'),
  ],
)
def test_a_command_that_cannot_be_typed_is_found(line, match):
  [args] = doc_blocks.of_specstream(line)
  with pytest.raises((ValueError, flags.Error), match=match):
    check_command(args)


def test_commands_within_sentences_exist():
  wrong = []
  for page in doc_blocks.pages():
    if page.name == 'LOG.md':  # holds what was typed then
      continue
    for words in re.findall(r'`specstream ([^`]+)`', page.read_text()):
      name, *rest = words.split()
      known = command_flags.of(name) if name in help_texts.COMMANDS else {}
      common = command_flags.defined_by(main.define_common_flags)
      asked = re.findall(r'--(?!gin\.|help)(\w+)', ' '.join(rest))
      unknown = set(asked) - {*known, *common, *(f'no{n}' for n in known)}
      if (name not in help_texts.COMMANDS and name != 'COMMAND') or unknown:
        wrong.append(f'{page}: {words}')
  assert wrong == []


def test_scripts_that_are_called_are_there():
  wrong = []
  for block in doc_blocks.all_blocks('bash'):
    for words in doc_blocks.commands(block.code):
      paths = [w for w in words if re.match(r'(launch|tests|docs)/.*\.\w+$', w)]
      wrong += [p for p in paths if not (ROOT / p).exists()]
  assert wrong == []


CLIENTS = ('openai',)  # which talk to a server, and need not be here


def test_python_of_the_manual_names_what_exists():
  wrong = []
  for block in doc_blocks.all_blocks('python'):
    tree = ast.parse(block.code, block.place)
    wrong += [f'{block.place}: {name}' for name in unknown_names(tree)]
  assert wrong == []


def unknown_names(tree):
  """Imports, and attributes of imported modules, that are not there."""
  modules = {}
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for one in node.names:
        if one.name in CLIENTS and not importlib.util.find_spec(one.name):
          continue
        modules[one.asname or one.name] = importlib.import_module(one.name)
    elif isinstance(node, ast.ImportFrom):
      module = importlib.import_module(node.module or '')
      for one in node.names:
        inner = f'{node.module}.{one.name}'
        found = getattr(module, one.name, None) or importlib.import_module(
          inner
        )
        modules[one.asname or one.name] = found
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      owner = modules.get(node.value.id)
      if owner is not None and not hasattr(owner, node.attr):
        yield f'{node.value.id}.{node.attr}'


def run_blocks(page, tmp_path, monkeypatch, *, slow):
  """Runs the blocks of a page that ask for it, one after the other."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(drafters, '_LOAD', dict(drafters._LOAD))
  monkeypatch.setattr(config_drafting, '_REGISTERED', {})
  # Dataclasses look for the module that they are of.
  names = {'__name__': __name__}
  for block in doc_blocks.blocks(page):
    if block.mark not in ('run', *['run: slow'] * slow):
      continue
    if block.kind == 'python':
      exec(compile(block.code, block.place, 'exec'), names)
    else:
      for args in doc_blocks.of_specstream(block.code):
        done = commands.run(*args)
        assert done.status == 0, (block.place, done.out, done.err)


def pages_with(mark):
  return [
    pytest.param(page, id=page.stem)
    for page in doc_blocks.pages()
    if any(block.mark == mark for block in doc_blocks.blocks(page))
  ]


@pytest.mark.parametrize('page', pages_with('run'))
def test_what_is_quick_runs(page, tmp_path, monkeypatch):
  run_blocks(page, tmp_path, monkeypatch, slow=False)


@pytest.mark.slow
@pytest.mark.smollm
@pytest.mark.skipif(
  fetch.cached(MODEL) is None, reason=f'run specstream fetch {MODEL}'
)
@pytest.mark.parametrize('page', pages_with('run: slow'))
def test_what_takes_longer_runs(page, tmp_path, monkeypatch):
  run_blocks(page, tmp_path, monkeypatch, slow=True)


def test_links_lead_somewhere():
  wrong = []
  for page in doc_blocks.pages():
    for target in re.findall(r'\]\((?!http)([^)#]+)', page.read_text()):
      path = (page.parent / target).resolve()
      name = str(path.relative_to(ROOT))
      if name not in WRITTEN and not path.exists():
        wrong.append(f'{page.relative_to(ROOT)}: {target}')
  assert wrong == []


def test_pages_of_the_navigation_are_there():
  named = re.findall(r': (\S+\.md)$', (ROOT / 'mkdocs.yml').read_text(), re.M)
  text = (ROOT / 'mkdocs.yml').read_text()
  optional = set(re.findall(r'^    - (\S+\.md)$', text, re.M))
  assert len(named) > 25
  paths = {f'docs/{name}' for name in named if name not in optional} - WRITTEN
  assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
  guides = {f'how_to/{path.name}' for path in (ROOT / 'docs/how_to').glob('*')}
  assert guides - set(named) == set()


@pytest.mark.usefixtures('scripts')
def test_the_reference_has_every_command_flag_and_field():
  pages = importlib.import_module('program_pages')
  text = pages.commands()
  for name, about in help_texts.COMMANDS.items():
    assert f'](#{name}): {about}' in text and f'\n## {name}\n' in text
    for flag in command_flags.of(name):
      assert re.search(rf'\| `--{flag}=?` \| \S', text), (name, flag)
  fields = pages.fields()
  for name in recipes.names():
    assert f'| `{name}` | ' in fields
  for name, cls in gin_files.classes().items():
    assert f'\n## {name}\n' in fields
    for field in dataclasses.fields(cls):
      assert f'\n| `{field.name}` | ' in fields, (name, field.name)


def test_every_config_field_says_what_it_is():
  silent = [
    f'{name}.{field.name}'
    for name, cls in gin_files.classes().items()
    for field in dataclasses.fields(cls)
    if not drafter_help.attributes(cls).get(field.name)
  ]
  assert silent == []


@pytest.mark.usefixtures('scripts')
def test_pictures_are_what_the_code_draws():
  pictures = importlib.import_module('pictures')
  for name, text in pictures.pictures().items():
    kept = (pictures.FOLDER / name).read_text()
    assert kept == text, f'run python {SCRIPTS}/pictures.py'
  assert pictures.accepted() == [0, 1, 3]
  seen = pictures.seen_by_streams(2, 1).astype(int).tolist()
  assert seen == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]


def anchor(title):
  """The anchor of a heading, as GitHub and the manual make it."""
  return re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-')


def log_index(text):
  """The index of the experiment log, from its headings."""
  lines = []
  for level, title in re.findall(r'^(##|###) (.+)$', text, re.M):
    day, _, question = title.partition(' ')
    target = f'(#{anchor(title)})'
    lines.append(
      f'- [{title}]{target}'
      if level == '##'
      else f'    - {day} [{question}]{target}'
    )
  return '\n'.join(lines)


def test_the_log_has_an_index_by_topic_newest_first():
  text = (ROOT / 'docs/LOG.md').read_text()
  kept = text.partition('<!-- index: begin -->\n')[2]
  kept = kept.partition('\n<!-- index: end -->')[0]
  wanted = log_index(text)
  assert kept == wanted, f'put this into docs/LOG.md:\n{wanted}'
  for topic in re.split(r'^## ', text, flags=re.M)[1:]:
    days = re.findall(r'^### (\d{4}-\d\d-\d\d) ', topic, re.M)
    assert days and days == sorted(days, reverse=True), topic[:40]


def test_anchors_exist():
  wrong = []
  for page in doc_blocks.pages():
    for target in re.findall(r'\]\((?!http)([^)]*#[^)]+)\)', page.read_text()):
      path, _, name = target.partition('#')
      other = (page.parent / path).resolve() if path else page
      if str(other.relative_to(ROOT)) in WRITTEN or other.suffix != '.md':
        continue
      titles = re.findall(r'^#+ (.+)$', other.read_text(), re.M)
      if ':::' not in other.read_text() and name not in map(anchor, titles):
        wrong.append(f'{page.relative_to(ROOT)}: {target}')
  assert wrong == []

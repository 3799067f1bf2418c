# SPDX-License-Identifier: Apache-2.0
"""The house stands: imports run downward, functions and files stay short."""

import ast
import functools
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = 'specstream_jax'
# The longest prefix of a module's name decides.
LEVELS = {
  'config': 0,
  'arrays': 0,
  'mesh': 0,
  'partitioning': 0,
  'processes': 0,
  'outputs': 0,
  'memory': 0,
  'sampling': 1,
  'modeling': 1,
  'decoding': 2,
  'text': 2,
  'training': 3,
  'checkpoints': 3,
  'streaming': 3,
  'data': 4,
  'drafters': 4,
  'runtime': 4,
  'metrics': 5,
  'report': 5,
  'bench': 5,
  'workflows': 6,
  'serving': 6,
  'tpu': 6,
  'api': 6,
  'api_checks': 6,
  'api_runs': 6,
  'cli': 7,
}
# Packages that reach no module of each other, by no detour.
FORBIDDEN = (
  ('decoding', 'training'),
  ('training', 'data'),
  ('training', 'checkpoints'),
  ('training', 'bench'),
  ('checkpoints', 'training'),
  ('data', 'runtime'),
  ('runtime', 'data'),
  ('drafters', 'data'),
)
TRAINING_MAY_USE_OF_DECODING = {'decoding.tree'}
TENSORFLOW = {'tensorflow', 'tensorflow_datasets', 'seqio', 'tensorflow_text'}
MAY_USE_TENSORFLOW = {
  'data.beam_prepare',
  'data.tasks',
  'data.prepare',
  'data.seqio_records',
  'data.seqio_scores',
  'data.seqio_tasks',
  'data.seqio_vocabulary',
  'data.tfds_source',
}
# What `runtime` loads of libraries for checkpoints, and what it does not.
EAGER = {'gguf', 'safetensors', 'tokenizers'}
LAZY = TENSORFLOW | {
  *('transformers', 'torch', 'peft', 'orbax', 'grain', 'array_record'),
  *('jinja2', 'tqdm', 'matplotlib', 'apache_beam'),
}
MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 60


@functools.cache
def modules():
  """Module name within the package ('' is the package) -> path."""
  found = {}
  for path in sorted((ROOT / PACKAGE).rglob('*.py')):
    parts = path.relative_to(ROOT / PACKAGE).with_suffix('').parts
    name = '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)
    found[name] = path
  return found


@functools.cache
def tree_of(name):
  return ast.parse(modules()[name].read_text())


@functools.cache
def imports(name):
  """Absolute names that module `name` imports, members included."""
  found = set()
  for node in ast.walk(tree_of(name)):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{name} has a relative import'
      found |= {f'{node.module}.{alias.name}' for alias in node.names}
  return found


def own_imports(name):
  """Modules of the package that module `name` imports."""
  found = set()
  for full in imports(name):
    root, _, rest = full.partition('.')
    while root == PACKAGE and rest and rest not in modules():
      rest = rest.rpartition('.')[0]  # A member: take its module.
    if root == PACKAGE and rest:
      found.add(rest)
  return found


def level(name):
  while name and name not in LEVELS:
    name = name.rpartition('.')[0]
  return LEVELS[name] if name else None


def is_in(name, package):
  return name == package or name.startswith(package + '.')


@functools.cache
def reached(name):
  """Modules that module `name` imports, and those that they import."""
  below = own_imports(name)
  return below.union(*map(reached, below))


def edges():
  return [(name, to) for name in modules() for to in own_imports(name)]


def test_the_walk_sees_imports():
  assert 'decoding.loop' in own_imports('decoding.decoder')
  assert 'config' in own_imports('api')
  assert len(edges()) > 100


def test_every_module_has_a_level():
  assert [n for n in modules() if n and level(n) is None] == []


def test_imports_run_downward():
  wrong = [f'{a} -> {b}' for a, b in edges() if a and level(a) < level(b)]
  assert wrong == []


def test_no_module_imports_itself_by_a_detour():
  below = {name: own_imports(name) for name in modules()}
  done = set()
  while ready := [n for n in below if n not in done and below[n] <= done]:
    done.update(ready)
  assert sorted(set(below) - done) == []


def test_packages_that_must_not_know_each_other_do_not():
  wrong = [
    f'{a} -> {b}'
    for a in modules()
    for user, used in FORBIDDEN
    if is_in(a, user)
    for b in reached(a)
    if is_in(b, used)
  ]
  assert wrong == []


def test_training_takes_of_decoding_only_the_tree():
  used = {b for a, b in edges() if is_in(a, 'training')}
  assert {b for b in used if is_in(b, 'decoding')} <= (
    TRAINING_MAY_USE_OF_DECODING
  )


def test_only_task_definitions_import_tensorflow():
  users = {
    name
    for name in modules()
    if TENSORFLOW & {full.partition('.')[0] for full in imports(name)}
  }
  assert users <= MAY_USE_TENSORFLOW


@pytest.mark.parametrize('name', [PACKAGE, f'{PACKAGE}.api'])
def test_importing_loads_no_tensorflow(name):
  code = f'import sys, {name}; print(sorted({TENSORFLOW!r} & set(sys.modules)))'
  command = [sys.executable, '-c', code]
  result = subprocess.run(
    command, capture_output=True, text=True, check=True, cwd=ROOT
  )
  assert result.stdout.strip() == '[]'


def loaded_by(name):
  """Packages that importing a module loads."""
  code = f'import sys, {name}; print(*sys.modules)'
  done = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    check=True,
    cwd=ROOT,
  )
  return {module.partition('.')[0] for module in done.stdout.split()}


def test_importing_the_package_loads_no_library():
  found = loaded_by(PACKAGE) - set(sys.stdlib_module_names)
  others = {m for m in found if not m.startswith('_') and m != PACKAGE}
  # Some environments load hooks of their own with every interpreter.
  assert not others & {'jax', 'numpy', 'flax', 'absl', 'gin', *LAZY, *EAGER}


def test_decoding_loads_what_only_training_and_data_need_when_they_need_it():
  found = loaded_by(f'{PACKAGE}.runtime')
  assert found >= EAGER
  assert not found & LAZY


def test_files_are_short():
  long = {
    name: count
    for name, path in modules().items()
    if (count := len(path.read_text().splitlines())) > MAX_FILE_LINES
  }
  assert long == {}


def test_functions_are_short():
  long = {
    f'{name}.{node.name}': count
    for name in modules()
    for node in ast.walk(tree_of(name))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    and (count := node.end_lineno - node.lineno + 1) > MAX_FUNCTION_LINES
  }
  assert long == {}


def bare(name):
  """Public functions of a module that say not all of what they take and give."""
  owners = [tree_of(name)]
  owners += [
    node
    for node in tree_of(name).body
    if isinstance(node, ast.ClassDef) and not node.name.startswith('_')
  ]
  for owner in owners:
    for node in owner.body:
      is_made = getattr(node, 'name', '') == '__init__'
      if not isinstance(node, ast.FunctionDef) or (
        node.name.startswith('_') and not is_made
      ):
        continue
      args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
      args += filter(None, (node.args.vararg, node.args.kwarg))
      is_method = isinstance(owner, ast.ClassDef)
      if any(arg.annotation is None for arg in args[is_method:]) or not (
        node.returns or is_made
      ):
        yield f'{name}.{node.name}'


def test_public_functions_are_annotated():
  assert [one for name in modules() for one in bare(name)] == []


def test_every_file_names_its_licence_and_what_it_is():
  wrong = [
    name
    for name, path in modules().items()
    if not path.read_text().startswith('# SPDX-License-Identifier: Apache-2.0')
    or (tree_of(name).body and not ast.get_docstring(tree_of(name)))
  ]
  assert wrong == []

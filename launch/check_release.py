# SPDX-License-Identifier: Apache-2.0
"""Builds the wheel from what is committed and checks that it can be released.

usage: python launch/check_release.py [--wheel=FILE] [--install] [--output_dir=D]

--install also puts it into an empty venv, away from the repository, and runs the
quickstart there without a network; the model has to be in the cache.
"""

import argparse
from collections.abc import Sequence
import email
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = 'specstream_jax'
MAX_BYTES = 40 * 2**20
SUFFIXES = {'.py', '.json', '.safetensors', '.csv', '.md', '.gin'}
LICENCE = 'Apache-2.0 AND CC-BY-SA-4.0'
# A file of each kind that the package cannot do without.
NEEDED = (
  'bench/results_schema.json',
  'data/e2e_sample/test.csv',
  'data/e2e_sample/ATTRIBUTION.md',
  'recipes/e2e_smollm2.gin',
  'recipes/tasks/e2e.gin',
  'adapters/e2e_nlg/adapter.safetensors',
  'adapters/e2e_nlg/draft_vocabulary.json',
)


def versions(root: pathlib.Path) -> list[str]:
  """What is wrong with the version and its date; empty if nothing is."""
  read = lambda name: (root / name).read_text()
  project = tomllib.loads(read('pyproject.toml'))['project']['version']
  found = {
    f'{PACKAGE}/__init__.py': re.search(
      r"__version__ = '([^']*)'", read(f'{PACKAGE}/__init__.py')
    ),
    'CITATION.cff': re.search(r'^version: (.*)$', read('CITATION.cff'), re.M),
  }
  wrong = [
    f'{name} has version {match and match[1]}, pyproject.toml {project}'
    for name, match in found.items()
    if not match or match[1] != project
  ]
  changes = read('CHANGELOG.md')
  dated = re.search(rf'^## \[{re.escape(project)}\] - (\S+)$', changes, re.M)
  if not dated:
    wrong.append(f'CHANGELOG.md has no dated section of {project}')
  elif f'date-released: "{dated[1]}"' not in read('CITATION.cff'):
    wrong.append(f'CITATION.cff is not of {dated[1]}, as the change log is')
  open_section = re.search(r'^## \[Unreleased\]\s*(.*)', changes, re.M)
  if open_section and not open_section[1].startswith('## ['):
    wrong.append('CHANGELOG.md has unreleased changes')
  return wrong


def contents(wheel: pathlib.Path) -> list[str]:
  """What is wrong with the files of a wheel; empty if nothing is."""
  size = wheel.stat().st_size
  wrong = []
  if size > MAX_BYTES:
    wrong.append(f'{wheel.name} has {size:,} bytes; at most {MAX_BYTES:,}')
  with zipfile.ZipFile(wheel) as file:
    names = file.namelist()
    metadata = next(n for n in names if n.endswith('.dist-info/METADATA'))
    fields = email.message_from_bytes(file.read(metadata))
    info = metadata.removesuffix('METADATA')
    texts = {
      name: file.read(name).decode() for name in names if name.endswith('.md')
    }
  wrong += [
    f'{name} does not belong into the wheel'
    for name in names
    if not name.startswith(info) and not _belongs(name)
  ]
  wrong += [
    f'{name} is missing' for name in NEEDED if f'{PACKAGE}/{name}' not in names
  ]
  return wrong + _licences(names, texts, fields, info)


def _belongs(name: str) -> bool:
  path = pathlib.PurePosixPath(name)
  is_hidden = any(part.startswith('.') for part in path.parts)
  is_own = path.parts[0] == PACKAGE and path.suffix in SUFFIXES
  return is_own and not is_hidden and '__pycache__' not in path.parts


def _licences(names, texts, fields, info) -> list[str]:
  """What is not said of licences and sources."""
  wrong = []
  if fields['License-Expression'] != LICENCE:
    wrong.append(f'License-Expression is {fields["License-Expression"]}')
  for name in ('LICENSE', f'{PACKAGE}/data/e2e_sample/ATTRIBUTION.md'):
    if f'{info}licenses/{name}' not in names:
      wrong.append(f'{info}licenses/{name} is missing')
  folders = {name.rpartition('/')[0] for name in names if '/adapters/' in name}
  for folder in sorted(folders):
    text = texts.get(f'{folder}/README.md', '')
    wrong += [
      f'{folder}/README.md does not say its {word}'
      for word in ('Licence', 'Data')
      if f'**{word}**' not in text
    ]
  rows = {name.rpartition('/')[0] for name in names if name.endswith('.csv')}
  wrong += [
    f'{folder} has rows and no ATTRIBUTION.md'
    for folder in sorted(rows)
    if 'Licence' not in texts.get(f'{folder}/ATTRIBUTION.md', '')
  ]
  return wrong


def build(folder: pathlib.Path) -> pathlib.Path:
  """The wheel of what is committed, and of nothing that lies about."""
  source = folder / 'source'
  source.mkdir()
  archive = subprocess.run(
    ['git', '-C', str(ROOT), 'archive', 'HEAD'], capture_output=True, check=True
  )
  subprocess.run(['tar', '-x', '-C', source], input=archive.stdout, check=True)
  command = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w']
  subprocess.run([*command, folder, source], check=True)
  [wheel] = folder.glob('*.whl')
  return wheel


def quickstart(wheel: pathlib.Path, folder: pathlib.Path) -> None:
  """Installs a wheel into an empty venv and runs the quickstart offline."""
  venv.create(folder / 'venv', with_pip=True)
  programs = folder / 'venv' / 'bin'
  own = {k: v for k, v in os.environ.items() if not k.startswith('PYTHON')}
  run = lambda *command, **changes: subprocess.run(
    command, check=True, cwd=folder, env=own | changes
  )
  run(programs / 'python', '-m', 'pip', 'install', '-q', wheel)
  nowhere = 'http://127.0.0.1:9'
  run(
    *_without_network(),
    programs / 'specstream',
    'quickstart',
    '--num_prompts=4',
    '--repeats=1',
    HF_HUB_OFFLINE='1',
    HTTP_PROXY=nowhere,
    HTTPS_PROXY=nowhere,
  )
  if not (folder / 'results' / 'report.html').is_file():
    raise SystemExit('the quickstart wrote no report')


def _without_network() -> Sequence[str]:
  """A prefix that takes the network away, where the system has one."""
  prefix = ['unshare', '--net', '--map-root-user']
  if not shutil.which(prefix[0]):
    return []
  works = subprocess.run([*prefix, 'true'], capture_output=True)
  return prefix if not works.returncode else []


def main(arguments: Sequence[str] | None = None) -> int:
  """Checks; the exit status."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--wheel', type=pathlib.Path, help='take this one')
  parser.add_argument('--install', action='store_true')
  parser.add_argument('--output_dir', type=pathlib.Path, help='keep the wheel')
  args = parser.parse_args(arguments)
  with tempfile.TemporaryDirectory() as place:
    folder = pathlib.Path(place)
    wheel = args.wheel.resolve() if args.wheel else build(folder)
    wrong = versions(ROOT) + contents(wheel)
    for line in wrong:
      print(f'wrong: {line}', file=sys.stderr)
    if wrong:
      return 1
    print(
      f'{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MB, as it should be'
    )
    if args.install:
      quickstart(wheel, folder)
      print('the quickstart passes in an empty environment, offline')
    if args.output_dir:
      args.output_dir.mkdir(parents=True, exist_ok=True)
      shutil.copy(wheel, args.output_dir)
  return 0


if __name__ == '__main__':
  sys.exit(main())

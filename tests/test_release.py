# SPDX-License-Identifier: Apache-2.0
"""What the release check finds, and the wheel that it lets pass."""

import importlib.util
import pathlib
import shutil
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def _load():
  path = ROOT / 'launch' / 'check_release.py'
  spec = importlib.util.spec_from_file_location('check_release', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


check_release = _load()
INFO = 'specstream_jax-1.dist-info/'
README = '- **Licence**: Apache-2.0\n- **Data**: rows\n'


def wheel(folder, **changes):
  """A wheel with a file of every kind; `changes` by path, None to leave out."""
  files = {f'specstream_jax/{name}': '' for name in check_release.NEEDED} | {
    'specstream_jax/__init__.py': '',
    'specstream_jax/adapters/e2e_nlg/README.md': README,
    'specstream_jax/data/e2e_sample/ATTRIBUTION.md': 'Licence: CC BY-SA 4.0',
    f'{INFO}METADATA': f'License-Expression: {check_release.LICENCE}\n',
    f'{INFO}RECORD': '',
    f'{INFO}licenses/LICENSE': '',
    f'{INFO}licenses/specstream_jax/data/e2e_sample/ATTRIBUTION.md': '',
  }
  path = folder / 'own-1.whl'
  with zipfile.ZipFile(path, 'w') as file:
    for name, text in (files | changes).items():
      if text is not None:
        file.writestr(name, text)
  return path


def test_a_whole_wheel_passes(tmp_path):
  assert check_release.contents(wheel(tmp_path)) == []


@pytest.mark.parametrize(
  ('changes', 'wrong'),
  [
    ({'tests/test_a.py': ''}, 'tests/test_a.py does not belong into the wheel'),
    ({'specstream_jax/a.pyc': ''}, 'a.pyc does not belong'),
    ({'specstream_jax/.cache/a.json': ''}, 'a.json does not belong'),
    ({'specstream_jax/recipes/tasks/e2e.gin': None}, 'e2e.gin is missing'),
    (
      {'specstream_jax/adapters/e2e_nlg/README.md': '**Data**'},
      'e2e_nlg/README.md does not say its Licence',
    ),
    ({'specstream_jax/data/b/a.csv': ''}, 'data/b has rows and no ATTRIBUTION'),
    ({f'{INFO}METADATA': 'License-Expression: MIT\n'}, 'Expression is MIT'),
    ({f'{INFO}licenses/LICENSE': None}, 'licenses/LICENSE is missing'),
  ],
)
def test_what_is_wrong_is_named(tmp_path, changes, wrong):
  found = check_release.contents(wheel(tmp_path, **changes))
  assert len(found) == 1 and wrong in found[0], found


def test_a_wheel_that_is_too_large(tmp_path, monkeypatch):
  monkeypatch.setattr(check_release, 'MAX_BYTES', 100)
  (line,) = check_release.contents(wheel(tmp_path))
  assert 'bytes; at most 100' in line


@pytest.mark.parametrize(
  ('name', 'old', 'new', 'wrong'),
  [
    ('CITATION.cff', 'version: 0', 'version: 9', 'CITATION.cff has version 9'),
    ('CITATION.cff', 'released: "2', 'released: "3', 'CITATION.cff is not of'),
    ('CHANGELOG.md', '] - 20', '] 20', 'has no dated section'),
    (
      'CHANGELOG.md',
      '## [0',
      '## [Unreleased]\n\n- New.\n\n## [0',
      'has unreleased changes',
    ),
  ],
)
def test_one_version_everywhere(tmp_path, name, old, new, wrong):
  names = ('pyproject.toml', 'CITATION.cff', 'CHANGELOG.md')
  (tmp_path / 'specstream_jax').mkdir()
  for file in (*names, 'specstream_jax/__init__.py'):
    shutil.copy(ROOT / file, tmp_path / file)
  assert check_release.versions(tmp_path) == []
  path = tmp_path / name
  path.write_text(path.read_text().replace(old, new, 1))
  found = check_release.versions(tmp_path)
  assert found and wrong in found[0], found


@pytest.mark.slow
def test_the_wheel_of_this_repository(capsys):
  assert check_release.main([]) == 0, capsys.readouterr().err
  assert 'as it should be' in capsys.readouterr().out

# SPDX-License-Identifier: Apache-2.0
"""One version, in the package, pyproject.toml and the change log."""

import pathlib
import tomllib

import specstream_jax

ROOT = pathlib.Path(__file__).parents[1]


def test_pyproject_and_package_have_the_same_version():
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  assert project['version'] == specstream_jax.__version__


def test_change_log_has_a_section_for_the_version():
  changes = (ROOT / 'CHANGELOG.md').read_text()
  assert f'## [{specstream_jax.__version__}]' in changes

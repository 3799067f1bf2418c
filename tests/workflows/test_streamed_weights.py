# SPDX-License-Identifier: Apache-2.0
"""`--weights=stream`: the same text; what is wrong is said in one line."""

import glob
import os

import byte_model
import commands
import pytest

from specstream_jax.cli import sizes


@pytest.fixture
def asked(tmp_path, monkeypatch):
  """Arguments of a command on a tiny model; files of layers lie in tmp_path."""
  monkeypatch.setenv('SPECSTREAM_CACHE', str(tmp_path / 'cache'))
  folder = str(tmp_path / 'model')
  byte_model.write_model(folder, byte_model.model_config())
  return [f'--model={folder}', '--adapter=']


@pytest.mark.parametrize(
  ('dtype', 'size'),
  [
    pytest.param('', '20,480', marks=pytest.mark.slow),
    ('int8', '8,192'),
  ],
)
def test_the_text_is_that_of_weights_that_stay(asked, tmp_path, dtype, size):
  args = ['generate', *asked, '--prompt=abc', '--max_new_tokens=9']
  args.append(f'--weights_dtype={dtype}')
  wanted = commands.run(*args)
  streamed = [*args, '--weights=stream', '--resident_layers=1']
  done = commands.run(*streamed)
  assert done.status == 0
  assert done.out == wanted.out
  (path,) = glob.glob(str(tmp_path / 'cache/layers/*/layer_0002.bin'))
  os.truncate(path, 5)
  commands.refusal(
    *streamed, match=rf'layer_0002\.bin.* has 5 bytes, not {size}'
  )


@pytest.mark.slow
def test_the_text_is_that_of_layers_in_the_memory_of_the_host(asked):
  args = ['generate', *asked, '--prompt=abc', '--max_new_tokens=9']
  hosted = commands.run(*args, '--weights=host', '--memory_budget=60KB')
  assert hosted.status == 0, hosted.err
  assert hosted.out == commands.run(*args).out


@pytest.mark.parametrize(
  ('args', 'match'),
  [
    (['--memory_budget=1GB'], '--memory_budget is for --weights=stream'),
    (
      ['--weights=stream', '--memory_budget=lots'],
      '--memory_budget=lots is no size; accepted',
    ),
    (['--weights=stream', '--memory_budget=1KB'], 'accepted: 45,248 or more'),
    (
      ['--weights=stream', '--memory_budget=1GB', '--resident_layers=1'],
      'leave out --resident_layers',
    ),
  ],
)
def test_flags_that_cannot_be_met_are_refused(asked, args, match):
  commands.refusal('generate', *asked, '--prompt=abc', *args, match=match)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('drafter', 'match'),
  [
    ('medusa:path=x', "'medusa', which does not go with streamed weights"),
    ('dart:path=x', "'dart', which does not go with streamed weights"),
    ('prompt_lookup:pays_above=1.5', 'pays_above=1.5, which does not go with'),
  ],
)
def test_drafters_that_need_more_are_refused(asked, drafter, match):
  args = ['--weights=stream', f'--drafter={drafter}', '--prompt=abc']
  commands.refusal('generate', *asked, *args, match=match)


def test_sizes_are_read():
  read = [sizes.num_bytes(text, 'x') for text in ('2GB', '1.5 MiB', '4096')]
  assert read == [2 * 10**9, 1572864, 4096]

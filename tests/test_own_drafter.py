# SPDX-License-Identifier: Apache-2.0
"""A drafter of one's own: one file and a name."""

import dataclasses
import sys
import textwrap

import jax.numpy as jnp
import pytest
import tiny_runtime

import specstream_jax as ss
from specstream_jax import config, drafters
from specstream_jax.config import drafting as config_drafting
from specstream_jax.decoding import chains

PROMPTS = [[5, 6, 7], [9]]


@dataclasses.dataclass(frozen=True)
class RepeatConfig(config_drafting.DrafterConfig):
  """Its own settings beside those that all have."""

  times: int = 2


class Repeat:
  """The root, again and again."""

  with_streams = False

  def __init__(self, times):
    self.max_depth, self.size = times, 1 + times

  def init(self, params, prompts, prompt_lengths):
    return ()

  def propose(self, params, context, state):
    chain = jnp.repeat(context.root[:, None, None], self.max_depth, axis=2)
    return chains.from_chains(context.root, chain), state


def load_repeat(model, cfg, decode):
  return drafters.beside(model, Repeat(cfg.times))


@pytest.fixture
def registry(monkeypatch):
  monkeypatch.setattr(drafters, '_LOAD', dict(drafters._LOAD))
  monkeypatch.setattr(config_drafting, '_REGISTERED', {})


@pytest.mark.usefixtures('registry')
def test_it_decodes_by_its_name_with_its_settings():
  drafters.register('repeat', load_repeat, RepeatConfig)
  model = tiny_runtime.model()
  asked = RepeatConfig('repeat', times=3)
  assert config_drafting.parse('repeat:times=3') == asked
  decode = config.DecodeConfig(max_new_tokens=7)
  assert model.decoder('repeat:times=3', decode).setup.drafter.size == 4
  kept = {'max_new_tokens': 7}
  fast = ss.generate(model, PROMPTS, drafter='repeat:times=3', **kept)
  plain = ss.generate(model, PROMPTS, drafter='none', **kept)
  assert [r.tokens for r in fast] == [r.tokens for r in plain]
  with pytest.raises(ValueError, match=r"'repeat' does not read window; it r"):
    config_drafting.parse('repeat:times=3,window=2')
  with pytest.raises(ValueError, match=r'times is the text .many.; accepted'):
    config_drafting.parse('repeat:times=many')


@pytest.mark.usefixtures('registry')
def test_an_installed_package_brings_one(tmp_path, monkeypatch):
  (tmp_path / 'of_theirs.py').write_text(
    textwrap.dedent("""
      import test_own_drafter
      from specstream_jax import drafters
      drafters.register('theirs', test_own_drafter.load_repeat)
    """)
  )
  info = tmp_path / 'theirs-1.0.dist-info'
  info.mkdir()
  (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: theirs\n')
  group = config_drafting.ENTRY_POINTS
  (info / 'entry_points.txt').write_text(f'[{group}]\ntheirs = of_theirs\n')
  monkeypatch.syspath_prepend(str(tmp_path))
  try:
    assert config_drafting.parse('theirs:path=x').path == 'x'
  finally:
    sys.modules.pop('of_theirs', None)


@pytest.mark.parametrize('name', ['streams', 'a-b', ''])
def test_names_that_cannot_be_taken(name):
  with pytest.raises(ValueError, match='a drafter cannot be registered as'):
    drafters.register(name, load_repeat)

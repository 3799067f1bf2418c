# SPDX-License-Identifier: Apache-2.0
"""Rows that all have one adapter decode with it folded; the tokens stay."""

import dataclasses

import numpy as np
import pytest
import serving_models

from specstream_jax import config
from specstream_jax.checkpoints import draft_vocabulary, token_ids
from specstream_jax.config import drafting
from specstream_jax.decoding import batch_sizes
from specstream_jax.modeling import params
from specstream_jax.serving import (
  engine as engine_lib,
  requests,
  solo,
  weights,
)


def _asked(name, seed, count=2, **sampling):
  rng = np.random.default_rng(seed)
  return [
    requests.Request(
      tuple(rng.integers(1, 257, 6).tolist()),
      adapter=name,
      max_new_tokens=14,
      sampling=config.SamplingConfig(ignore_eos=True, **sampling),
      seed=seed,
    )
    for _ in range(count)
  ]


def _run(engine, asked):
  handles = [engine.submit(request) for request in asked]
  while engine.step():
    pass
  return [handle.result(0).tokens for handle in handles]


def _spied(engine, monkeypatch):
  """The kinds of weights of each quantum, as they come."""
  seen, advance = [], engine._decoder.advance

  def spy(*args, **named):
    seen.append((named['kind'], named['has_drafts']))
    return advance(*args, **named)

  monkeypatch.setattr(engine._decoder, 'advance', spy)
  return seen


@pytest.fixture
def engine():
  return serving_models.engine(max_waiting=8)


def _side_by_side(engine, asked, monkeypatch):
  """Tokens of rows that have weights of their own though they are the same."""
  with monkeypatch.context() as patch:
    patch.setattr(weights, 'kind', lambda running: batch_sizes.SIDE_BY_SIDE)
    return _run(engine, asked)


def test_rows_of_one_adapter_share_its_weights(engine, monkeypatch):
  compiled = []
  for name in ('', 'tuned', 'free', 'both', 'plain'):
    asked = _asked(name, 3) + _asked(name, 4, 1, temperature=0.9)
    want = _side_by_side(engine, asked, monkeypatch)
    with monkeypatch.context() as patch:
      seen = _spied(engine, patch)
      assert _run(engine, asked) == want, name
    assert {kind for kind, _ in seen} == {0}
    compiled.append(engine.stats().num_compilations)
  # All adapters run the programs of the first; nobody compiles one.
  assert len(set(compiled)) == 1


def test_rows_of_two_adapters_stand_side_by_side(engine, monkeypatch):
  asked = _asked('tuned', 5, 1) + _asked('both', 6, 1)
  asked[1] = dataclasses.replace(asked[1], max_new_tokens=28)
  want = _side_by_side(engine, asked, monkeypatch)
  seen = _spied(engine, monkeypatch)
  assert _run(engine, asked) == want
  kinds = [kind for kind, _ in seen]
  # Each is alone at times: while the other is read, and after its end.
  assert kinds[0] == kinds[-1] == 0
  assert batch_sizes.SIDE_BY_SIDE in kinds


def test_folded_weights_are_those_of_a_model_loaded_with_the_adapter(engine):
  made = engine._weights
  for name, found in serving_models.kinds().items():
    served = made.served[name]
    got = made._solos.weights(
      served, served.weights.adapter, is_base=served.owner == 0
    )
    want = params.flatten(serving_models.alone(found).base)
    flat = params.flatten(got.base)
    assert flat.keys() == want.keys()
    for path, leaf in want.items():
      np.testing.assert_allclose(flat[path], leaf, atol=1e-5, err_msg=path)
    # LoRA that acts on all tokens acts nowhere else.
    own = params.flatten(got.adapter)
    scale = found.lora.scale if found.lora else 0
    for path, leaf in own.items():
      if path.endswith('lora_a'):
        stem = path.removesuffix('_a')
        product = np.asarray(leaf) @ np.asarray(own[f'{stem}_b'])
        low, high = (found.rest.get(f'{stem}_{x}', 0) for x in 'ab')
        mine = scale * (low @ high) if scale and np.ndim(low) else 0
        np.testing.assert_allclose(product, mine + 0 * product, atol=1e-5)


def test_the_last_folded_copies_are_kept(engine):
  made = engine._weights
  weigh = lambda name: made._solos.weights(
    made.served[name],
    made.served[name].weights.adapter,
    is_base=made.served[name].owner == 0,
  )
  tuned = weigh('tuned')
  assert weigh('tuned') is tuned
  assert weigh('both') is not tuned
  again = weigh('tuned')
  assert again is not tuned
  # What leaves the base as it is takes no copy's place.
  base = serving_models.base().base
  free = weigh('free')
  assert free.base is base and weigh('').base is base
  assert weigh('tuned') is again and weigh('free') is free
  kept = [weights.base for _, weights in made._solos._kept.values()]
  assert sum(one is not base for one in kept) == 1
  lora = ('query', 'value', 'up', 'down')
  want = sum(
    leaf.nbytes
    for path, leaf in params.flatten(base).items()
    if path.endswith('/kernel') and path.split('/')[-2] in lora
  )
  assert made.copied_bytes == want > 0


def test_an_adapter_that_is_loaded_again_is_folded_again(engine, monkeypatch):
  asked = _asked('tuned', 8, 1)
  old = _run(engine, asked)
  engine.load_adapter('tuned', serving_models.fine_tuned(seed=21))
  new = _run(engine, asked)
  assert new == _side_by_side(engine, asked, monkeypatch) != old
  engine.load_adapter('tuned', serving_models.fine_tuned())
  assert _run(engine, asked) == old


IDS = {'tuned': [90, 10, 11], 'both': [7, *range(40, 60), 5], 'free': [8]}


@pytest.fixture(name='own')
def _own(tmp_path, monkeypatch):
  """Adapters with draft vocabularies of 3, 22 and one token."""
  monkeypatch.setattr(solo, '_LEAST', 4)
  monkeypatch.setattr(solo, '_TIMES', 2)
  tokenizer = serving_models.base().tokenizer
  source = {'tokenizer_sha256': token_ids.tokenizer_hash(tokenizer)}
  kinds = serving_models.kinds()
  for name, ids in IDS.items():
    folder = tmp_path / name
    folder.mkdir()
    path = str(folder / draft_vocabulary.FILE)
    draft_vocabulary.save(path, np.asarray(ids), source)
    kinds[name] = dataclasses.replace(kinds[name], folder=str(folder))
  return kinds


def _drafted(served):
  ids = np.asarray(served.head.ids)
  return sorted(ids[ids < serving_models.base().config.vocab_size].tolist())


def test_each_drafts_from_its_own_tokens(own):
  drafter = drafting.DrafterConfig(name='streams', vocabulary='adapter')
  names = 'tuned', 'both', 'plain'
  made = weights.make(
    serving_models.base(),
    serving_models.CFG,
    drafter,
    {name: own[name] for name in names},
  )
  assert isinstance(made, weights.SideBySide)
  solos, served = made._solos, made.served
  assert solos is not None
  assert solos.kinds == (4, 32) and served['tuned'].kind == 4
  assert _drafted(served['tuned']) == sorted(IDS['tuned'])
  assert served['tuned'].head.rows.shape[0] == 4
  assert served['both'].kind == 32
  assert _drafted(served['both']) == sorted(IDS['both'])
  # What brings none has all of them, as far as there is a program.
  assert served['plain'].kind == served[''].kind == batch_sizes.SIDE_BY_SIDE
  made.load('free', own['free'])
  assert made.served['free'].kind == 4
  assert _drafted(made.served['free']) == IDS['free']


@pytest.mark.slow
def test_drafts_of_its_own_tokens_change_no_token(own, monkeypatch):
  engine = engine_lib.Engine(
    serving_models.base(),
    serving_models.CFG,
    drafter='streams:vocabulary=adapter',
    adapters={name: own[name] for name in ('tuned', 'both')},
  )
  before = engine.stats().num_compilations
  for name in ('tuned', 'both', ''):
    asked = _asked(name, 3)
    want = _side_by_side(engine, asked, monkeypatch)
    assert _run(engine, asked) == want, name
  assert engine.stats().num_compilations == before

# SPDX-License-Identifier: Apache-2.0
"""Adapters side by side draft from the tokens of their tasks."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import serving_models

from specstream_jax import config
from specstream_jax.checkpoints import draft_vocabulary, token_ids
from specstream_jax.config import drafting
from specstream_jax.decoding import decoder as decoder_lib, transformer_fns
from specstream_jax.drafters import none
from specstream_jax.modeling import build
from specstream_jax.serving import (
  engine as engine_lib,
  requests,
  starting,
  vocabularies,
)

# Most frequent first; neither is ascending, and they overlap.
IDS = {'tuned': [90, 10, 11, 12, 13, 14, 15], 'free': [40, 13, 12, 41, 42, 43]}
OWN = drafting.DrafterConfig(vocabulary='adapter')


def _with_ids(found, folder, ids):
  """The adapter in a folder, with its draft vocabulary."""
  folder.mkdir(exist_ok=True)
  tokenizer = serving_models.base().tokenizer
  source = {'tokenizer_sha256': token_ids.tokenizer_hash(tokenizer)}
  path = str(folder / draft_vocabulary.FILE)
  draft_vocabulary.save(path, np.asarray(ids), source)
  return dataclasses.replace(found, folder=str(folder))


@pytest.fixture(name='kinds', scope='module')
def _kinds(tmp_path_factory):
  folder = tmp_path_factory.mktemp('adapters')
  kinds = serving_models.kinds()
  kinds = {key: kinds[key] for key in ('tuned', 'free', 'plain')}
  for name, ids in IDS.items():
    kinds[name] = _with_ids(kinds[name], folder / name, ids)
  later = serving_models.fine_tuned(seed=11, rank=2)
  kinds['later'] = _with_ids(later, folder / 'later', [7, 90, 8, 9])
  return kinds


@functools.cache
def _plain():
  model = serving_models.base()
  decode = config.DecodeConfig(
    max_new_tokens=32, prompt_bucket=32, eos_ids=model.eos_ids
  )
  built = build.build(model.config, None, None, 'out_in')
  fns = transformer_fns.model_fns(built)
  return decoder_lib.Decoder(fns, none.NoDraft(), decode)


def _drafted(engine):
  """Token ids that rows may draft."""
  params = engine._weights.of_row(engine._weights.served[''])
  ids = np.array(params.drafter.head.ids)
  return set(ids[ids < serving_models.base().config.vocab_size].tolist())


ENDLESS = config.SamplingConfig(ignore_eos=True)
SAMPLED = config.SamplingConfig(1.2, top_k=40, ignore_eos=True)


@pytest.mark.slow
def test_mixed_rows_draft_from_the_union_and_say_the_same(
  kinds, caplog, monkeypatch
):
  monkeypatch.setattr(vocabularies, '_STEP', 16)
  first = {key: found for key, found in kinds.items() if key != 'later'}
  cfg = dataclasses.replace(serving_models.CFG, max_waiting=99)
  engine = engine_lib.Engine(serving_models.base(), cfg, adapters=first)
  union = set(IDS['tuned'] + IDS['free'])
  assert _drafted(engine) == union
  before = engine.stats().num_compilations
  done = _run(engine, first, ENDLESS)  # what eager code compiles once for all
  caplog.clear()
  with jax.log_compiles():
    done += _run(engine, first, SAMPLED)
    engine.load_adapter('later', kinds['later'])
    assert _drafted(engine) == union | {7, 8, 9}
    done += _run(engine, kinds, SAMPLED)
    engine.unload_adapter('later')
    engine.load_adapter('free', first['free'])
    assert _drafted(engine) == union  # of one that is gone nothing stays
  assert not [r for r in caplog.records if 'ompil' in r.message]
  assert engine.stats().num_compilations == before
  for request, handle in done:
    made = handle.result(0)
    want = _alone(kinds.get(request.adapter), request)
    assert made.tokens == want, request.adapter
  assert sum(handle.result(0).metrics.num_accepted for _, handle in done) > 0


def _run(engine, kinds, sampling):
  """All of them and the base in one batch."""
  asked = [
    requests.Request((5, 9, 2), name, 12, sampling, seed=3)
    for name in ('', *kinds)
  ]
  done = [(request, engine.submit(request)) for request in asked]
  while engine.step():
    pass
  return done


def _alone(found, request):
  """What plain decoding of an adapter that is folded says."""
  params = transformer_fns.Params(serving_models.alone(found).base)
  made = _plain().generate(
    params, [list(request.prompt)], 12, seed=3, sampling=request.sampling
  )
  return made.tokens[0]


def _union(kinds, size=0, *, is_growing=False):
  cfg = dataclasses.replace(OWN, vocabulary_size=size)
  model = serving_models.base()
  return vocabularies.union(model, cfg, kinds, is_growing=is_growing)


def _made(kinds, size=0, *, is_growing=False) -> vocabularies.Union:
  """A union that is no whole vocabulary."""
  made = _union(kinds, size, is_growing=is_growing)
  assert made is not None
  return made


def _ids(made):
  ids = np.array(made.head.ids)
  assert len(ids) == made.size and (np.diff(ids) > 0).all()
  return ids[: made.count].tolist()


def test_where_room_is_short_the_rare_tokens_of_each_go(
  kinds, caplog, monkeypatch
):
  monkeypatch.setattr(vocabularies, '_STEP', 1)
  two = {name: kinds[name] for name in ('tuned', 'free')}
  made = _made(two, size=2)
  assert made.size == made.count == 4
  assert _ids(made) == [10, 13, 40, 90]
  made.load('later', kinds['later'], {'tuned', 'free'})
  assert _ids(made) == [7, 10, 40, 90]
  text = "'free', 'later', 'tuned' have 5 tokens, and there is room for the"
  assert text in caplog.text
  made.load('more', serving_models.fine_tuned(), {'tuned'})
  assert "'more' brings no draft_vocabulary.json" in caplog.text
  assert _ids(made) == [10, 90]
  # Rows of the head are those of the LM head, and padding has ids of nobody.
  model = serving_models.base()
  rows = np.array(model.base['embed']['embedding'])[[10, 90]]
  np.testing.assert_array_equal(np.array(made.head.rows)[:2], rows)
  assert (np.array(made.head.ids)[2:] >= model.config.vocab_size).all()


def test_when_the_whole_vocabulary_is_taken(kinds, caplog, monkeypatch):
  own = {'tuned': kinds['tuned']}
  monkeypatch.setattr(vocabularies, '_STEP', 4)
  assert _made(own).size == 8
  spare = serving_models.base().config.vocab_size // 4
  assert _made(own, is_growing=True).size >= 7 + spare
  assert _union(own | {'x': serving_models.lossless()}) is None
  assert "no draft_vocabulary.json comes with 'x': all adapters" in caplog.text
  # LoRA without streams drafts nothing, and asks for nothing.
  assert _made(own | {'x': serving_models.peft()}).size == 8
  whole = drafting.DrafterConfig()
  base = serving_models.base()
  assert vocabularies.union(base, whole, own, is_growing=False) is None


def test_streams_draft_their_tasks_tokens_unless_told_otherwise(kinds):
  base, tuned = serving_models.base(), kinds['tuned']
  drafter = lambda *args: starting.drafter(*args).vocabulary
  own = {'tuned': tuned, 'plain': kinds['plain']}
  assert drafter(None, base, own) == 'adapter'
  assert not drafter('streams', base, own)
  assert not drafter(None, base, own | {'x': serving_models.lossless()})
  alone = serving_models.alone(tuned)
  assert not drafter(None, alone, {})
  alone = dataclasses.replace(alone, adapter_dir=tuned.folder)
  assert drafter(None, alone, {}) == 'adapter'
  assert starting.drafter(None, base, {}).name == 'none'


def test_what_cannot_be_a_draft_vocabulary(kinds, tmp_path):
  own = {'tuned': kinds['tuned']}
  cfg = drafting.DrafterConfig(vocabulary='words.json')
  with pytest.raises(ValueError, match=r"is 'words\.json'; adapters"):
    vocabularies.union(serving_models.base(), cfg, own, is_growing=False)
  broken = _with_ids(serving_models.fine_tuned(), tmp_path, [1, 99999])
  with pytest.raises(
    ValueError, match='has ids 1 to 99999; the model has 0 to'
  ):
    _union({'x': broken})

# SPDX-License-Identifier: Apache-2.0
"""Rows of different adapters in one batch say what each says alone."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import serving_models

from specstream_jax import config
from specstream_jax.checkpoints import fitted
from specstream_jax.decoding import decoder as decoder_lib, transformer_fns
from specstream_jax.drafters import none
from specstream_jax.modeling import build
from specstream_jax.serving import engine as engine_lib, requests

CFG = serving_models.CFG
SAMPLING = (
  config.SamplingConfig(),
  config.SamplingConfig(1.3, top_k=40),
  config.SamplingConfig(presence_penalty=0.7, frequency_penalty=0.3),
  config.SamplingConfig(0.8, repetition_penalty=1.3, logit_bias={7: 1.0}),
)


@functools.cache
def _engine():
  return serving_models.engine(max_waiting=1000)


@functools.cache
def _plain():
  """Plain decoding of any weights of the base's shapes."""
  model = serving_models.base()
  decode = config.DecodeConfig(
    max_new_tokens=CFG.max_new_tokens, prompt_bucket=32, eos_ids=model.eos_ids
  )
  fns = transformer_fns.model_fns(
    build.build(model.config, None, None, 'out_in')
  )
  return decoder_lib.Decoder(fns, none.NoDraft(), decode)


@functools.cache
def _weights(name):
  found = None if not name else (serving_models.kinds() | _LATER)[name]
  return transformer_fns.Params(serving_models.alone(found).base)


_LATER = {
  'later': serving_models.fine_tuned(seed=11, rank=2),
  'latest': serving_models.lossless(seed=12, rank=1),
}


def _asked(seed, count, names):
  rng = np.random.default_rng(seed)
  return [
    requests.Request(
      tuple(rng.integers(1, 257, int(rng.integers(1, 28))).tolist()),
      adapter=names[int(rng.integers(0, len(names)))],
      max_new_tokens=int(rng.integers(1, 17)),
      sampling=SAMPLING[int(rng.integers(0, len(SAMPLING)))],
      seed=int(rng.integers(0, 999)),
    )
    for _ in range(count)
  ]


def _run(engine, asked):
  handles = [engine.submit(request) for request in asked]
  while engine.step():
    pass
  return [handle.result(0) for handle in handles]


def _alone(request):
  made = _plain().generate(
    _weights(request.adapter),
    [list(request.prompt)],
    request.max_new_tokens,
    seed=request.seed,
    sampling=request.sampling,
  )
  return made.tokens[0], made.finish_reasons[0]


NAMES = ['', *serving_models.kinds()]


def test_mixed_rows_say_what_each_adapter_says_alone():
  asked = _asked(0, 40, NAMES)
  done = _run(_engine(), asked)
  for request, made in zip(asked, done, strict=True):
    assert (made.tokens, made.finish_reason) == _alone(request), request.adapter
  accepted = dict.fromkeys(NAMES, 0)
  for request, made in zip(asked, done, strict=True):
    accepted[request.adapter] += made.metrics.num_accepted
  # Rows without streams draft nothing, the others something right.
  assert not accepted[''] and not accepted['plain']
  assert sum(accepted.values()) > 0


def test_every_adapter_says_something_of_its_own():
  """The test above would be none if they all said the same."""
  said = {}
  for name in NAMES:
    request = requests.Request((5, 9, 2), name, 12)
    said[name] = tuple(_alone(request)[0])
  said.pop('free')  # lossless streams say what the base says
  assert len(set(said.values())) == len(said)


@pytest.mark.parametrize(
  'count', [60, pytest.param(500, marks=pytest.mark.slow)]
)
def test_no_request_and_no_adapter_compiles_anything(count, caplog):
  engine = _engine()
  serving_models.compile_again(engine)
  _run(engine, _asked(1, 4, NAMES))  # what eager code compiles once for all
  before = engine.stats().num_compilations
  asked = _asked(2, count, [*NAMES, *_LATER])
  with jax.log_compiles():
    for name, found in _LATER.items():
      engine.load_adapter(name, found)
    done = _run(engine, asked)
  compiled = [r.message for r in caplog.records if 'compil' in r.message]
  assert not compiled
  assert engine.stats().num_compilations == before
  for request, made in list(zip(asked, done, strict=True))[:20]:
    assert (made.tokens, made.finish_reason) == _alone(request)
  for name in _LATER:
    engine.unload_adapter(name)
  with pytest.raises(ValueError, match="no adapter 'later'; loaded: 'both',"):
    engine.submit(requests.Request((1,), 'later'))


def test_rows_go_on_when_their_adapter_is_unloaded():
  engine = _engine()
  engine.load_adapter('later', _LATER['later'])
  asked = [
    requests.Request(
      (3, 4), 'later', 16, config.SamplingConfig(ignore_eos=True)
    )
  ] * 6
  handles = [engine.submit(request) for request in asked]
  engine.step()
  engine.unload_adapter('later')
  engine.load_adapter('later', _LATER['latest'])
  while engine.step():
    pass
  engine.unload_adapter('later')
  want = _alone(asked[0])
  for handle in handles:
    assert (handle.result(0).tokens, 'length') == want


_BEGINNING = tuple(range(20, 37))  # two chunks and a token


def _after(beginning, *rest, **values):
  endless = config.SamplingConfig(ignore_eos=True)
  return requests.Request(
    (*beginning, *rest),
    **{'max_new_tokens': 10, 'sampling': endless} | values,
  )


def test_prompts_that_begin_alike_are_read_once_and_say_the_same():
  engine = _engine()
  sampled = dataclasses.replace(SAMPLING[1], ignore_eos=True)
  for name in NAMES:
    asked = [
      _after(_BEGINNING, 3, adapter=name),
      _after(_BEGINNING, 3, adapter=name),
      _after(_BEGINNING, 7, 8, 9, adapter=name, sampling=sampled),
    ]
    before = engine.stats().prefixes
    done = _run(engine, asked)
    after = engine.stats().prefixes
    # Lossless streams spare main tokens: what the base has read will do.
    first = 16 if name == 'free' else 0
    found = [made.metrics.num_cached_tokens for made in done]
    assert found == [first, 16, 16]
    assert after.tokens_saved - before.tokens_saved == sum(found)
    assert after.hits - before.hits == 2 + (name == 'free')
    assert after.prompts - before.prompts == 3
    for request, made in zip(asked, done, strict=True):
      assert made.tokens == _alone(request)[0]
  assert 0 < after.num_bytes <= 10**6 * CFG.prefix_cache_mb


def test_what_is_found_is_what_would_be_read_bit_by_bit():
  engine = _engine()
  served = engine._weights.served['both']
  prompt = [*range(40, 59), 1]
  row = engine._row(_after(prompt, adapter='both'))

  def read(owner):
    params = engine._weights.of_row(served)
    reading = engine._decoder.read(params, prompt, row.arrays, owner=owner)
    while (made := reading.advance()) is None:
      pass
    size = len(prompt)
    seen = jax.tree.map(lambda x: np.array(x[:, :, :size]), made.cache.keys)
    drafts, token = np.array(made.tree.tokens), np.array(made.tokens)
    engine._decoder.give_back(made.cache)
    return reading.num_found, [*seen, drafts, token]

  nothing, want = read(None)
  first, kept = read(served.owner)
  found, got = read(served.owner)
  assert (nothing, first, found) == (0, 0, 16)
  for one, two, three in zip(want, kept, got, strict=True):
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, three)


def test_another_adapter_of_the_same_name_reads_for_itself():
  engine, asked = _engine(), _after(_BEGINNING, 5, adapter='later')
  for found in (_LATER['later'], serving_models.fine_tuned(seed=21)):
    engine.load_adapter('later', found)
    made = [_run(engine, [asked])[0].metrics.num_cached_tokens for _ in 'ab']
    assert made == [0, 16]
  engine.unload_adapter('later')


def test_an_adapter_of_no_numbers_spoils_no_other():
  engine = _engine()
  text = [5, 9, 2]
  scored = engine.scorer()(text)
  broken = serving_models.peft(seed=31)
  nan = {k: np.full_like(v, np.nan) for k, v in broken.folded.items()}
  engine.load_adapter('later', dataclasses.replace(broken, folded=nan))
  [made] = _run(engine, [_after(_BEGINNING, 5, adapter='later')])
  assert (made.tokens, made.finish_reason) == ([], 'not_finite')
  assert np.isnan(engine.scorer('later')(range(1, 20)).logprobs).all()
  np.testing.assert_array_equal(engine.scorer()(text).logprobs, scored.logprobs)
  given_up = engine.submit(_after(range(60, 77), adapter='later'))
  engine._reading = engine._begin_next()
  engine._reading[1].advance()
  given_up.cancel()
  engine.step()
  engine.unload_adapter('later')
  request = _after((), 1, 2, 3)
  [made] = _run(engine, [request])
  assert made.tokens == _alone(request)[0]


@pytest.mark.slow
def test_a_load_that_comes_and_goes_changes_no_token():
  """The batch grows, shrinks, drafts and does not, and compiles nothing."""
  cfg = dataclasses.replace(
    CFG, num_slots=4, batch_sizes=(), max_drafting_rows=1, max_waiting=1000
  )
  engine = engine_lib.Engine(
    serving_models.base(), cfg, adapters=serving_models.kinds()
  )
  before = engine.stats().num_compilations
  asked, done, seen = _asked(7, 60, NAMES), [], set()
  for start in range(0, 60, 6):
    handles = [engine.submit(request) for request in asked[start : start + 6]]
    while engine.step():
      now = engine.stats()
      seen.add((now.batch_size, now.is_drafting))
    done += [handle.result(0) for handle in handles]
  assert seen >= {(1, True), (4, False)}
  assert engine.stats().num_compilations == before
  for request, made in zip(asked, done, strict=True):
    assert (made.tokens, made.finish_reason) == _alone(request), request.adapter
    cost = made.metrics
    assert cost.num_calls + cost.num_accepted == len(made.tokens) - 1
    assert sum(cost.histogram(engine.path_length)) == cost.num_drafting_calls
  assert any(made.metrics.num_plain_calls for made in done)
  assert any(made.metrics.num_accepted for made in done)


def _wide():
  found = serving_models.fine_tuned(seed=21)
  tree = config.TreeConfig('full', depth=2, branching=2)
  return dataclasses.replace(found, tree=tree)


def test_an_adapter_drafts_its_own_tree():
  engine = _engine()
  for name, found, count in (
    ('small', dataclasses.replace(_wide(), tree=config.TreeConfig(
      'chain', depth=1
    )), 1),
    ('none', dataclasses.replace(_wide(), tree=None), 5),
    ('wide', _wide(), 5),
  ):  # fmt: skip
    engine.load_adapter(name, found)
    request = _after((3, 1), adapter=name)
    [made] = _run(engine, [request])
    cost = made.metrics
    assert cost.num_drafted == count * cost.num_calls
    assert sum(cost.histogram(engine.path_length)[count + 1 :]) == 0
    engine.unload_adapter(name)


def test_of_a_larger_tree_there_is_what_there_is_room_for(caplog):
  tree = config.TreeConfig('best_first', depth=2, branching=3, num_nodes=30)
  engine = _engine()
  engine.load_adapter('x', dataclasses.replace(_wide(), tree=tree))
  engine.unload_adapter('x')
  assert "'x' has a draft tree of 30 nodes and depth 2, of which there" in (
    caplog.text
  )


@pytest.mark.slow
def test_one_folded_adapter_is_served_as_it_was_loaded():
  found = serving_models.kinds()['both']
  cfg = dataclasses.replace(CFG, max_waiting=1000)
  engine = engine_lib.Engine(serving_models.alone(found), cfg)
  assert engine.adapters == []
  asked = [dataclasses.replace(r, adapter='') for r in _asked(5, 8, NAMES)]
  done = _run(engine, asked)
  for request, made in zip(asked, done, strict=True):
    want = _alone(dataclasses.replace(request, adapter='both'))
    assert (made.tokens, made.finish_reason) == want
  with pytest.raises(ValueError, match="'more' cannot be loaded: the engine"):
    engine.load_adapter('more', found)
  with pytest.raises(ValueError, match="no adapter 'more'; loaded: none"):
    engine.unload_adapter('more')


@pytest.mark.parametrize(
  ('found', 'message'),
  [
    (
      serving_models.fine_tuned(rank=6),
      "'x' has LoRA of rank 6, and there is room for 4; serve it from the start",
    ),
    (
      dataclasses.replace(
        serving_models.peft(),
        folded_lora=config.LoraConfig(rank=4, modules=('gate', 'up')),
      ),
      "'x' has LoRA on gate, and there is room on query, value, up, down; serve",
    ),
    (
      dataclasses.replace(
        serving_models.fine_tuned(),
        stream=dataclasses.replace(serving_models.STREAM, num_streams=3),
      ),
      "'x' has streams of another structure .*: num_streams 3, not 2; serve it",
    ),
  ],
)
def test_adapters_that_do_not_fit(found, message):
  engine = _engine()
  with pytest.raises(ValueError, match=message):
    engine.load_adapter('x', found)
  assert 'x' not in engine.adapters


@pytest.mark.parametrize(
  ('model', 'drafter', 'adapters', 'message'),
  [
    (
      lambda: serving_models.alone(serving_models.fine_tuned()),
      None,
      {'a': serving_models.peft()},
      "was loaded with the adapter ''; load it without",
    ),
    (
      serving_models.base,
      'draft_model:path=x',
      {},
      "the drafter of an engine is 'draft_model'; accepted: 'streams'",
    ),
    (
      serving_models.base,
      'streams',
      {'a': serving_models.peft()},
      "drafter is 'streams' but no adapter brings streams; use 'prompt_lookup'",
    ),
    (
      serving_models.base,
      'streams:verifier=typical',
      {'a': serving_models.fine_tuned()},
      'the drafter has lossy output; an engine gives the tokens of plain',
    ),
    (
      serving_models.base,
      'streams:ngram_table=x',
      {'a': serving_models.fine_tuned()},
      'ngram_table is set; adapters side by side share none, leave it out',
    ),
    (
      serving_models.base,
      'none',
      {'': fitted.Fitted()},
      "an adapter cannot be named ''; give it a name",
    ),
  ],
)
def test_engines_that_cannot_be(model, drafter, adapters, message):
  with pytest.raises(ValueError, match=message):
    engine_lib.Engine(model(), CFG, drafter=drafter, adapters=adapters)

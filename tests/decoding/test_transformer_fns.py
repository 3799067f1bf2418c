# SPDX-License-Identifier: Apache-2.0
"""Speculative decoding with the real transformer equals plain decoding."""

import dataclasses
import functools
import types
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from specstream_jax import config
from specstream_jax.decoding import decoder, transformer_fns
from specstream_jax.drafters import none, streams
from specstream_jax.tpu import hlo

PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11]]
TREES = {
  'best_first': config.TreeConfig('best_first', 3, 3, 7),
  'full': config.TreeConfig('full', depth=2, branching=2),
  'chain': config.TreeConfig('chain', depth=3),
  'fixed': config.TreeConfig('fixed', choices=((0,), (1,), (0, 0), (0, 0, 1))),
  'pruned': config.TreeConfig('best_first', 3, 3, 11, keep_nodes=5),
}
DECODE = config.DecodeConfig(
  max_new_tokens=23, prompt_bucket=8, eos_ids=(5,), stop_sequences=((7, 7),)
)
SAMPLED = config.SamplingConfig(temperature=1.0, top_k=29, top_p=0.95)


# All of them leave the main stream as it is.
LOSSLESS = dataclasses.replace(tiny.STREAMS, mode='lossless')
DEEP = dataclasses.replace(LOSSLESS, num_streams=16)
MASK = dataclasses.replace(LOSSLESS, insertion='mask', num_msa_layers=3)
DEEP_TREE = config.TreeConfig('best_first', 16, 2, 20)


def make(
  tree=None,
  schedule='deferred',
  sampling=None,
  mode='fine_tuned',
  stream_cfg=None,
  **cfg,
):
  """A decoder on the tiny model, and its weights."""
  stream_cfg = stream_cfg or dataclasses.replace(tiny.STREAMS, mode=mode)
  model_cfg = dataclasses.replace(tiny.CONFIG, **cfg)
  built, base, adapter = tiny.model(model_cfg, stream_cfg)
  fns = functools.partial(transformer_fns.model_fns, built)
  drafter = (
    streams.Streams(tree, stream_cfg.num_streams) if tree else none.NoDraft()
  )
  keep = tree.keep_nodes if tree else 0
  made = decoder.Decoder(
    fns(schedule, keep, likely_nodes=2),
    drafter,
    dataclasses.replace(DECODE, schedule=schedule),
    sampling or config.SamplingConfig(),
    prompt_model=fns(),
  )
  return made, transformer_fns.Params(base, adapter)


@functools.cache
def plain(sampling=None, mode='fine_tuned'):
  made, weights = make(sampling=sampling, mode=mode)
  return made.generate(weights, PROMPTS, seed=3)


@pytest.mark.parametrize(
  ('schedule', 'asked', 'has_scores', 'along'),
  [
    ('parallel', True, False, True),
    ('parallel', False, True, False),
    ('deferred', True, True, False),
    ('likely', True, True, True),
    ('likely', True, False, False),  # a pass over no tree
    ('likely', False, True, False),
  ],
)
def test_streams_run_along_where_the_schedule_says_so(
  monkeypatch, schedule, asked, has_scores, along
):
  seen: dict[str, Any] = {}
  made = types.SimpleNamespace(
    survivors=None, streams='streams', carried=None, main='main', cache='after'
  )

  def forward_tree(*args, **named):
    seen.update(named, args=args)
    return made

  monkeypatch.setattr(transformer_fns.forward_lib, 'forward_tree', forward_tree)
  model = types.SimpleNamespace(first_msa=5)
  built: Any = types.SimpleNamespace(
    cfg=tiny.CONFIG, adapter={}, merge=lambda base, adapter: model
  )
  fns = transformer_fns.model_fns(built, schedule)
  assert fns.coupling_logits is None
  inputs = 'tokens', 'positions', 'mask', 'cache'
  scores = 'scores' if has_scores else None
  ask = lambda fns: fns.forward(
    transformer_fns.Params('base'), *inputs, with_streams=asked, scores=scores
  )
  assert ask(fns) == ('main', 'after', 'streams', None)
  assert seen['args'] == (model, *inputs)
  assert seen['with_streams'] is along
  is_likely = schedule == 'likely' and has_scores
  assert (seen['carriers_of'] is not None) == is_likely
  assert seen['survivors_of'] is None and seen['is_prompt'] is False
  made.survivors = 'survivors'
  built.adapter = {'coupling': 0}
  fns = transformer_fns.model_fns(built, schedule, 3, is_prompt=True)
  assert fns.coupling_logits is not None
  assert ask(fns)[3] == ('survivors', 5)
  assert seen['survivors_of'] is not None and seen['is_prompt'] is True


@pytest.mark.parametrize('has_bias', [False, True])
def test_logits_of_a_head_of_some_tokens(has_bias):
  cfg = dataclasses.replace(
    tiny.CONFIG,
    vocab_size=7,
    tie_word_embeddings=False,
    has_head_bias=has_bias,
    logit_divisor=2.0,
  )
  # Behind three tokens two that only fill the room.
  ids, rows = jnp.array([1, 2, 5, 7, 8]), jnp.array([[1.0, 2.0]] * 5)
  rows *= jnp.array([[1.0], [2.0], [3.0], [90.0], [90.0]])
  bias = jnp.array([0.5, 0.0, -0.5, 9.0, 9.0])
  model: Any = types.SimpleNamespace(
    cfg=cfg,
    stored_head_rows=lambda ids: (rows, None),
    head_bias=lambda ids: bias if has_bias else None,
  )
  head = transformer_fns.draft_head(model, ids)
  assert (head.ids is ids, head.rows is rows) == (True, True)
  assert head.bias is bias if has_bias else head.bias == ()
  hidden = jnp.array([[[1.0, 1.0], [0.0, -1.0]]])
  found = np.asarray(transformer_fns.draft_logits(model, hidden, head))
  want = np.array([[3.0, 6.0, 9.0], [-2.0, -4.0, -6.0]])
  want = (want + has_bias * np.array([0.5, 0.0, -0.5])) / 2
  np.testing.assert_allclose(found[0][:, [1, 2, 5]], want)
  assert found.shape == (1, 2, 7)
  assert (found[..., [0, 3, 4, 6]] < -1e8).all() and np.isfinite(found).all()


@pytest.mark.parametrize('schedule', ['deferred', 'parallel'])
@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[pytest.mark.slow] if name == 'pruned' else [])
    for name in TREES
  ],
)
def test_greedy_tokens_equal_plain_decoding(name, schedule):
  made, weights = make(TREES[name], schedule)
  result = made.generate(weights, PROMPTS, seed=3)
  assert result.tokens == plain().tokens
  assert result.finish_reasons == plain().finish_reasons


@pytest.mark.parametrize(
  'name', ['best_first', pytest.param('pruned', marks=pytest.mark.slow)]
)
def test_sampled_tokens_equal_plain_decoding(name):
  made, weights = make(TREES[name], sampling=SAMPLED)
  result = made.generate(weights, PROMPTS, seed=3)
  assert result.tokens == plain(SAMPLED).tokens
  assert result.tokens != plain().tokens
  # Drafts that use the target's noise get some tokens right.
  assert max(max(row, default=0) for row in result.accept_lengths) > 0


def test_lossless_tokens_equal_the_untouched_base():
  base_cfg = tiny.CONFIG
  built, base, _ = tiny.model(base_cfg, None, None)
  untouched = decoder.Decoder(
    transformer_fns.model_fns(built), none.NoDraft(), DECODE
  ).generate(transformer_fns.Params(base), PROMPTS, seed=3)
  made, weights = make(TREES['best_first'], mode='lossless')
  assert made.generate(weights, PROMPTS, seed=3).tokens == untouched.tokens


@pytest.mark.parametrize(
  ('stream_cfg', 'tree', 'schedule'),
  [
    pytest.param(DEEP, DEEP_TREE, 'deferred', marks=pytest.mark.slow),
    pytest.param(DEEP, DEEP_TREE, 'parallel', marks=pytest.mark.slow),
    pytest.param(DEEP, TREES['chain'], 'deferred', marks=pytest.mark.slow),
    pytest.param(MASK, TREES['best_first'], 'deferred', marks=pytest.mark.slow),
    (MASK, TREES['best_first'], 'parallel'),
    pytest.param(MASK, TREES['pruned'], 'parallel', marks=pytest.mark.slow),
  ],
)
def test_deep_and_mask_streams_give_the_same_tokens(stream_cfg, tree, schedule):
  made, weights = make(tree, schedule, stream_cfg=stream_cfg)
  want = plain(mode='lossless')
  result = made.generate(weights, PROMPTS, seed=3)
  assert result.tokens == want.tokens
  assert result.finish_reasons == want.finish_reasons


@pytest.mark.slow
def test_rows_do_not_depend_on_their_batch():
  made, weights = make(TREES['best_first'], sampling=SAMPLED)
  together = made.generate(weights, PROMPTS, seed=3).tokens
  alone = [
    made.generate(weights, [prompt], seed=3, row_ids=[row]).tokens[0]
    for row, prompt in enumerate(PROMPTS)
  ]
  assert together == alone


def test_committed_cache_equals_a_fresh_pass():
  made, weights = make(TREES['pruned'])
  state = made.advance(weights, made.start(weights, PROMPTS), 3)
  for row, prompt in enumerate(PROMPTS):
    num = int(state.num_tokens[row])
    text = prompt + np.asarray(state.tokens[row, : num - 1]).tolist()
    if not int(state.finish_reason[row]):
      assert int(state.cache.length[row]) == len(text)
    length = int(state.cache.length[row])
    fresh = made.start(weights, [text[:length]]).cache
    pairs = zip(
      state.cache.keys + state.cache.values, fresh.keys + fresh.values
    )
    for got, want in pairs:
      np.testing.assert_allclose(
        got[row, :, :length], want[0, :, :length], atol=3e-5
      )


def test_one_compilation_for_new_prompts_lengths_limits_and_adapters():
  made, weights = make(TREES['best_first'])
  made.generate(weights, PROMPTS)
  before = made.num_compilations
  embedding = weights.adapter['streams']['embedding']
  other = {**weights.adapter, 'streams': {'embedding': -embedding}}
  weights = weights._replace(adapter=other)
  made.generate(weights, [[3, 1], [2] * 8, [9, 9]], max_new=[1, 5, 23])
  assert made.num_compilations == before == 2


@pytest.mark.parametrize(
  ('batch', 'schedule', 'sampling'),
  [
    (1, 'deferred', None),
    (1, 'likely', None),
    pytest.param(3, 'likely', None, marks=pytest.mark.slow),
    pytest.param(3, 'deferred', None, marks=pytest.mark.slow),
    pytest.param(1, 'parallel', None, marks=pytest.mark.slow),
    pytest.param(3, 'parallel', None, marks=pytest.mark.slow),
    # With branches that not every batch takes.
    pytest.param(
      3,
      'deferred',
      dataclasses.replace(SAMPLED, repetition_penalty=1.2),
      marks=pytest.mark.slow,
    ),
  ],
)
def test_compiled_step_copies_neither_cache_nor_weights(
  batch, schedule, sampling
):
  # Sizes under which no activation is as large as a cache or a kernel.
  sizes = dict(
    vocab_size=31,
    hidden_size=120,
    intermediate_size=310,
    num_heads=2,
    num_kv_heads=1,
    head_dim=60,
    num_layers=3,
  )
  made, weights = make(TREES['best_first'], schedule, **sizes)
  cfg = dataclasses.replace(made.setup.cfg, cache_length=2048)
  made = decoder.Decoder(
    made.setup.model,
    made.setup.drafter,
    cfg,
    prompt_model=made.setup.prompt_model,
  )
  state = made.start(weights, PROMPTS[:batch], sampling=sampling)
  text = made._run.lower(weights, state, jnp.int32(9)).compile().as_text()
  cache_bytes = state.cache.keys[0].nbytes
  kernel_bytes = 4 * 120 * 120
  lines = hlo.copies_of_size(text, min(cache_bytes, kernel_bytes))
  # Attention weights [..., rows, slots (+ streams)] are results, not copies;
  # whatever is a cache or a kernel has the head or the model width in it.
  slots = {2048, 2051, 2055, 2058}  # with the tree's 7 nodes, and 3 streams
  is_weight = lambda dims: bool(slots & dims) and not {60, 120} & dims
  lines = [line for line in lines if not is_weight(set(hlo.dims(line)))]
  assert not lines, '\n'.join(lines)

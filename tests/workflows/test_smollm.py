# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M itself: known perplexity, equal tokens, nothing copied."""

import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import specstream_jax as ss
from specstream_jax import config
from specstream_jax.checkpoints import fetch, shipped
from specstream_jax.data import prompts as prompt_templates, registry
from specstream_jax.modeling import build, forward
from specstream_jax.tpu import hlo

NAME = 'smollm2-135m-instruct'
ROOT = pathlib.Path(__file__).parents[2]
pytestmark = [
  pytest.mark.smollm,
  pytest.mark.skipif(
    fetch.cached(NAME) is None, reason=f'run specstream fetch {NAME}'
  ),
]


@pytest.fixture(scope='module')
def model():
  return ss.load(NAME, 'e2e_nlg')


def prompts(num):
  examples = registry.get('e2e_sample').load_split('test')[:num]
  return [example.inputs for example in examples]


DIALOGUE = """#Person1#: Hi, Tom. Are you free on Saturday evening?
#Person2#: I think so. Why?
#Person1#: It's my birthday, and some friends are coming over for dinner.
#Person2#: I'd love to come. What time should I be there?"""
TABLE = (
  'CREATE TABLE table_name_12 (driver VARCHAR, team VARCHAR, points INTEGER)'
)
# Of every adapter in this repository: its folder or name, prompts as it was
# trained on, and how many plain calls one of its calls must at least save.
# Loose: a CR of 2.4 to 6 was measured (docs/bench).
FLOORS = {
  'e2e_nlg': (None, 1.8),
  'sql_create_context': (
    [
      prompt_templates.sql_inputs(f'{TABLE}\n{question}')
      for question in (
        'What is the average points of the driver from team Ferrari?',
        'Which team has a driver named Alan Jones?',
      )
    ],
    1.8,
  ),
  'instruct_lossless': (
    ['What is the capital of France?', 'Give three tips for staying healthy.'],
    1.2,
  ),
  str(ROOT / 'adapters' / 'dialogsum'): (
    [prompt_templates.dialogsum_inputs(DIALOGUE)],
    1.2,
  ),
}


def spec_bench_questions():
  shared = os.environ.get('SPECSTREAM_SHARED', '../shared')
  path = os.path.join(shared, 'data', 'spec_bench', 'question.jsonl')
  if not os.path.isfile(path):
    pytest.skip(f'{path} is not here')
  rows = map(json.loads, pathlib.Path(path).read_text().splitlines())
  return [r['turns'][0] for r in rows if r['category'] == 'math_reasoning']


def question_log_probs(plain):
  """Of every token but the first, per question [tokens - 1]."""
  built = build.build(plain.config, layout='out_in')

  @jax.jit
  def log_probs(base, tokens, segments):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    module = built.merge(base, {})
    hidden = forward.forward_train(module, tokens, positions, segments).main
    logits = jax.nn.log_softmax(module.logits(hidden[:, :-1]))
    return jnp.take_along_axis(logits, tokens[:, 1:, None], axis=2)[0, :, 0]

  for text in spec_bench_questions():
    ids = plain.encode(text)
    tokens = np.zeros((1, 256), np.int32)
    tokens[0, : len(ids)] = ids
    segments = (np.arange(256) < len(ids))[None].astype(np.int32)
    taken = log_probs(plain.base, tokens, segments)
    yield ids, np.asarray(taken)[: len(ids) - 1]


def perplexity(log_probs):
  return np.exp(-np.concatenate(log_probs).mean())


@pytest.mark.slow
def test_perplexity_of_the_gsm8k_questions():
  """Transformers 5.23 with its own GGUF loader: 16.578 on the same 4,720
  tokens (the 80 questions in Spec-Bench, no BOS, first token not counted)."""
  ours = [x for _, x in question_log_probs(ss.load(NAME))]
  assert sum(map(len, ours)) == 4720
  assert abs(perplexity(ours) - 16.578) < 0.005


@pytest.mark.slow
def test_log_probs_equal_those_of_transformers_own_gguf_loader():
  torch = pytest.importorskip('torch')
  pytest.importorskip('accelerate')
  transformers = pytest.importorskip('transformers')
  file = fetch.cached(NAME)
  theirs_model = transformers.AutoModelForCausalLM.from_pretrained(
    file.parent, gguf_file=file.name, dtype=torch.float32
  ).eval()
  all_theirs = []
  for ids, ours in question_log_probs(ss.load(NAME)):
    with torch.no_grad():
      logits = theirs_model(torch.tensor([ids])).logits[0, :-1]
    theirs = torch.log_softmax(logits, dim=-1).numpy()
    theirs = theirs[np.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    all_theirs.append(theirs)
  assert abs(perplexity(all_theirs) - 16.578) < 0.005


def test_every_adapter_has_a_floor():
  others = [folder.name for folder in (ROOT / 'adapters').iterdir()]
  names = sorted(pathlib.Path(name).name for name in FLOORS)
  assert names == sorted(shipped.shipped_adapters() + others)


@pytest.mark.slow
@pytest.mark.parametrize('adapter', FLOORS, ids=lambda a: pathlib.Path(a).name)
def test_an_adapter_still_accepts_and_changes_no_token(adapter):
  """Fails where a change makes the drafts of a shipped adapter useless."""
  texts, floor = FLOORS[adapter]
  model = ss.load(NAME, adapter)
  run = functools.partial(
    ss.generate,
    model,
    texts or prompts(4),
    max_new_tokens=40,
    chat=adapter == 'instruct_lossless',
  )
  fast, plain = run(), run(drafter='none')
  assert [r.tokens for r in fast] == [r.tokens for r in plain]
  assert sum(r.calls for r in plain) > floor * sum(r.calls for r in fast)


@pytest.mark.slow
@pytest.mark.parametrize('batch', [1, 8])
@pytest.mark.parametrize('temperature', [0.0, 0.8])
def test_64_prompts_decode_to_the_same_tokens(model, batch, temperature):
  run = ss.evaluate(
    model,
    num_prompts=64,
    batch=batch,
    repeats=1,
    sampling=config.SamplingConfig(temperature=temperature),
    progress=False,
  )
  assert run.num_prompts == 64
  assert run.equal_fraction == 1.0
  assert run.call_reduction_ratio > 1.3


@pytest.mark.slow
@pytest.mark.parametrize('schedule', ['deferred', 'parallel'])
def test_compiled_step_copies_neither_cache_nor_weights(model, schedule):
  decode = config.DecodeConfig(
    max_new_tokens=64, schedule=schedule, cache_length=4096
  )
  decoder = model.decoder('streams', decode)
  weights = model.params('streams')
  state = decoder.start(weights, [model.encode(prompts(1)[0])])
  text = decoder._run.lower(weights, state, jnp.int32(9)).compile().as_text()
  smallest_kernel = 4 * 576 * 192
  lines = hlo.copies_of_size(text, smallest_kernel)
  # Large results that are no copies: logits [.., V], attention weights
  # [.., slots (+ nodes) (+ streams)], activations of a node's streams together.
  slots, streams = state.cache.num_slots, model.stream.num_streams
  nodes = decoder.setup.drafter.size
  widths = {slots + n + j for n in (0, nodes) for j in (0, streams)}
  is_result = lambda dims: (
    dims[-1] in {49152, *widths} or nodes * (1 + streams) in dims
  )
  lines = [x for x in lines if not is_result(hlo.dims(x))]
  assert not lines, '\n'.join(lines)

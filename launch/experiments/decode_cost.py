# SPDX-License-Identifier: Apache-2.0
"""What a decoding step costs on this device, for models of several sizes.

Weights are random and drafts are accepted by chance, so no checkpoint is
needed: `forward` times a pass over 1, 2, 4, … tokens, `decode` whole decoding
loops without drafts and with streams (both schedules, trees of several sizes),
in milliseconds a step. Drafts accepted with the chance --acceptance give the
tokens a call, and the speed-up, that such streams would have.

Writes decode_cost.json after every number, so that a run that is cut short
leaves what it has.
"""

from collections.abc import Iterator
import dataclasses
import json
import math
import os
import statistics
import time

from absl import flags
import forward_cost
import jax
import jax.numpy as jnp
import measuring
import numpy as np
import script

from specstream_jax import config, runtime
from specstream_jax.config import drafting as config_drafting
from specstream_jax.modeling import build, params as params_lib
from specstream_jax.outputs import writing

FLAGS = flags.FLAGS


def _sizes(layers, width, mlp, heads, kv_heads, head_dim, vocab, tied):
  return config.ModelConfig(
    num_layers=layers,
    hidden_size=width,
    intermediate_size=mlp,
    num_heads=heads,
    num_kv_heads=kv_heads,
    head_dim=head_dim,
    vocab_size=vocab,
    tie_word_embeddings=tied,
    max_position_embeddings=4096,
  )


# Those of SmolLM2-135M, Llama-3.2-1B and Llama-2-7B.
SIZES = {
  'tiny': _sizes(2, 16, 32, 4, 2, 8, 67, True),
  '135m': _sizes(30, 576, 1536, 9, 3, 64, 49152, True),
  '1b': _sizes(16, 2048, 8192, 32, 8, 64, 128256, True),
  '7b': _sizes(32, 4096, 11008, 32, 32, 128, 32000, False),
}


def define_flags() -> None:
  """Declares the flags."""
  flags.DEFINE_list('sizes', ['135m'], f'Of {", ".join(SIZES)}.')
  flags.DEFINE_list('parts', ['forward', 'decode'], 'What to time.')
  flags.DEFINE_list('tokens', '1,2,4,8,16,32,64,128', 'Tokens of a pass.')
  flags.DEFINE_list('nodes', ['8', '16'], 'Nodes of the draft trees.')
  flags.DEFINE_list('schedules', ['deferred', 'parallel'], 'Of streams.')
  flags.DEFINE_list('batches', ['1'], 'Rows of the decoding loops.')
  flags.DEFINE_list('dtypes', ['bfloat16'], 'Of weights and activations.')
  flags.DEFINE_integer('num_streams', 8, 'J.', lower_bound=1)
  flags.DEFINE_float(
    'msa_layers', 0.5, 'Share of the layers that carry streams.',
    lower_bound=0.0, upper_bound=1.0,
  )  # fmt: skip
  flags.DEFINE_float(
    'acceptance', 0.8, 'Chance that a draft is accepted.',
    lower_bound=0.0, upper_bound=1.0,
  )  # fmt: skip
  flags.DEFINE_integer('context', 128, 'Tokens before.', lower_bound=1)
  flags.DEFINE_integer('new_tokens', 128, 'Tokens to decode.', lower_bound=2)
  flags.DEFINE_integer('repeats', 5, 'Timed runs.', lower_bound=1)
  flags.DEFINE_string('label', '', 'Kept with the numbers.')
  flags.DEFINE_string('output_dir', 'results/decode_cost', 'Folder to write.')


def random_model(name: str, dtype: str) -> runtime.Model:
  """A model of a size in SIZES with random weights and random streams."""
  cfg = dataclasses.replace(SIZES[name], dtype=dtype)
  shapes = params_lib.flatten(build.build(cfg, layout='out_in').base)
  key, flat = jax.random.key(0), {}
  draw = jax.jit(
    lambda key, shape, scale: scale * jax.random.normal(key, shape, dtype),
    static_argnums=1,
  )
  for path, leaf in shapes.items():
    key, own = jax.random.split(key)
    if path.endswith('scale'):
      flat[path] = jnp.ones(leaf.shape, leaf.dtype)
    else:
      flat[path] = draw(own, leaf.shape, 1 / math.sqrt(leaf.shape[-1]))
  model = runtime.Model(
    config=cfg,
    base=params_lib.unflatten(flat),
    adapter={},
    stream=None,
    lora=None,
    tree=config.TreeConfig(),
    source={'base': f'random weights, {name}', 'dtype': dtype},
    tokenizer=None,
    chat_template=None,
    eos_ids=(),
  )
  streams = config.StreamConfig(
    num_streams=FLAGS.num_streams,
    num_msa_layers=max(1, round(FLAGS.msa_layers * cfg.num_layers)),
    mode='lossless',
  )
  return runtime.with_random_streams(model, streams)


def forward(model: runtime.Model) -> Iterator[dict[str, object]]:
  """Milliseconds of a pass by its tokens."""
  for length in map(int, FLAGS.tokens):
    ms = forward_cost.median_ms(
      model, length, context=FLAGS.context, repeats=FLAGS.repeats
    )
    yield {'tokens': length, 'ms': ms}


def decode(model: runtime.Model) -> Iterator[dict[str, object]]:
  """Milliseconds of a step of every drafter, those of a batch interleaved."""
  for batch in map(int, FLAGS.batches):
    runs = {name: _Run(model, batch, *rival) for name, rival in _rivals()}
    for _ in range(1 + FLAGS.repeats):
      for run in runs.values():
        run.once()
    plain = runs['none']
    for name, run in runs.items():
      yield {'drafter': name, 'batch': batch} | run.summary(plain)


def _rivals():
  """(name, (drafter, schedule)), the baseline first."""
  yield 'none', (config_drafting.DrafterConfig('none'), 'deferred')
  for nodes in map(int, FLAGS.nodes):
    tree = config.TreeConfig(
      depth=min(FLAGS.num_streams, nodes - 1), num_nodes=nodes, branching=8
    )
    drafter = config_drafting.DrafterConfig(
      'streams', tree, synthetic_acceptance=FLAGS.acceptance
    )
    for schedule in FLAGS.schedules:
      yield f'streams, {nodes} nodes, {schedule}', (drafter, schedule)


class _Run:
  """One drafter's decoding loop and its times."""

  def __init__(self, model, batch, drafter, schedule):
    rng = np.random.default_rng(0)
    shape = batch, FLAGS.context
    self._prompts = rng.integers(0, model.config.vocab_size, shape).tolist()
    cfg = config.DecodeConfig(
      max_new_tokens=FLAGS.new_tokens, schedule=schedule
    )
    self._decoder = model.decoder(drafter, cfg)
    self._seconds, self._results = [], []

  def once(self):
    result = self._decoder.generate(self._decoder.params, self._prompts)
    self._results.append(result)

  def ms(self):
    """Per step of the batch; the first run compiles."""
    return [
      1e3 * result.decode_seconds / int(result.calls.max())
      for result in self._results[1:]
    ]

  def rates(self):
    """Decoded tokens a second; the prompt pass gives the first of a row."""
    return [
      sum(len(row) - 1 for row in result.tokens) / result.decode_seconds
      for result in self._results[1:]
    ]

  def summary(self, plain):
    ratios = [own / other for own, other in zip(self.rates(), plain.rates())]
    return {
      'ms_per_step': statistics.median(self.ms()),
      'step_cost': statistics.median(self.ms()) / statistics.median(plain.ms()),
      'tokens_per_call': self._results[-1].tokens_per_call(),
      'tokens_per_second': statistics.median(self.rates()),
      'speedup': [min(ratios), statistics.median(ratios), max(ratios)],
      'prefill_ms': 1e3
      * statistics.median(r.prefill_seconds for r in self._results[1:]),
    }


PARTS = {'forward': forward, 'decode': decode}


def main() -> None:
  """Times everything asked for."""
  for name, known in (('sizes', SIZES), ('parts', PARTS)):
    wrong = [value for value in getattr(FLAGS, name) if value not in known]
    if wrong:
      raise ValueError(f'--{name}={wrong[0]}; accepted: {", ".join(known)}')
  path = os.path.join(FLAGS.output_dir, 'decode_cost.json')
  document = {
    **measuring.machine(),
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
    'label': FLAGS.label,
    'context': FLAGS.context,
    'num_streams': FLAGS.num_streams,
    'msa_layers': FLAGS.msa_layers,
    'acceptance': FLAGS.acceptance,
    'rows': [],
  }
  for size in FLAGS.sizes:
    for dtype in FLAGS.dtypes:
      model = random_model(size, dtype)
      weights = sum(x.nbytes for x in jax.tree.leaves(model.base))
      for part in FLAGS.parts:
        started = time.perf_counter()
        for row in PARTS[part](model):
          row = {'part': part, 'size': size, 'dtype': dtype} | row
          row['weight_bytes'] = weights
          document['rows'].append(row)
          print(json.dumps(row), flush=True)
          writing.write_text(path, json.dumps(document, indent=1) + '\n')
        print(f'{size} {part}: {time.perf_counter() - started:.0f} s in all')
      del model
  print(f'written: {path}')


if __name__ == '__main__':
  define_flags()
  script.run(main)

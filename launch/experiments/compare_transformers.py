# SPDX-License-Identifier: Apache-2.0
"""Our plain decoding against transformers `generate`: same weights, same run.

Both decode greedily in float32 on the CPU, batch 1, with the same number of
threads, in turn, the first call of each left out. The time of a call includes
its prompt pass on both sides, and neither stops at EOS, so both emit the same
number of tokens. Needs torch and transformers (the extra `test`).
"""

from collections.abc import Callable
import json
import os
import statistics
import tempfile
import time

from absl import flags
import measuring
import numpy as np
import script

from specstream_jax import config, runtime
from specstream_jax.bench import results
from specstream_jax.checkpoints import huggingface, loading
from specstream_jax.data import registry
from specstream_jax.outputs import writing

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Declares the flags."""
  measuring.define_model()
  flags.DEFINE_integer('num_prompts', 8, 'E2E prompts.', lower_bound=1)
  flags.DEFINE_integer('new_tokens', 64, 'Tokens per prompt.', lower_bound=1)
  flags.DEFINE_integer('repeats', 3, 'Passes over the prompts.', lower_bound=1)
  flags.DEFINE_integer(
    'threads', 0, 'CPU threads of both sides; 0 takes all there are.'
  )
  flags.DEFINE_string('output', None, 'JSON file to write, if any.')


def limit_threads() -> int:
  """Pins this process to as many CPUs as it may use; both sides follow."""
  import torch

  cpus = sorted(os.sched_getaffinity(0))
  count = min(FLAGS.threads or len(cpus), len(cpus))
  os.sched_setaffinity(0, cpus[:count])
  torch.set_num_threads(count)
  return count


def our_side(model: runtime.Model) -> Callable[[list[int]], list[int]]:
  """Prompt -> new tokens, by the jitted loop without drafts."""
  cfg = config.DecodeConfig(max_new_tokens=FLAGS.new_tokens)
  decoder = model.decoder('none', cfg)
  return lambda prompt: decoder.generate(decoder.params, [prompt]).tokens[0]


def their_side() -> Callable[[list[int]], list[int]]:
  """Prompt -> new tokens, by transformers, from an export of our weights."""
  import torch
  import transformers

  with tempfile.TemporaryDirectory() as folder:
    loaded = loading.load_model(FLAGS.model)
    huggingface.export(folder, loaded.config, loaded.params)
    model = transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.float32
    ).eval()
  model.generation_config = transformers.GenerationConfig(
    do_sample=False, max_new_tokens=FLAGS.new_tokens, pad_token_id=0
  )

  @torch.inference_mode()
  def generate(prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids))
    return out[0, len(prompt) :].tolist()

  return generate


def measure(sides, prompts):
  """Seconds per call [side][call] and tokens [side][prompt], in turn."""
  seconds = {name: [] for name in sides}
  tokens = {name: [] for name in sides}
  for generate in sides.values():
    generate(prompts[0])
  for number in range(FLAGS.repeats * len(prompts)):
    prompt = prompts[number % len(prompts)]
    # Alternating order, so that a drift of the machine favours neither.
    for name in list(sides)[:: -1 if number % 2 else 1]:
      start = time.perf_counter()
      new = sides[name](prompt)
      seconds[name].append(time.perf_counter() - start)
      if number < len(prompts):
        tokens[name].append(new)
  return seconds, tokens


def main() -> None:
  """Runs both and prints the comparison."""
  threads = limit_threads()
  model = runtime.load(FLAGS.model)
  examples = registry.get('e2e_sample').load_split('test')
  prompts = [
    model.encode_prompt(example.inputs)
    for example in examples[: FLAGS.num_prompts]
  ]
  # One padded length, as the first call is the only one that compiles.
  longest = max(map(len, prompts))
  if longest > config.DecodeConfig().prompt_bucket:
    raise ValueError(f'a prompt has {longest} tokens; use shorter prompts')
  sides = {'specstream': our_side(model), 'transformers': their_side()}
  seconds, tokens = measure(sides, prompts)
  ours, theirs = (tokens[name] for name in sides)
  rates = {
    name: FLAGS.new_tokens / statistics.median(times)
    for name, times in seconds.items()
  }
  document = {
    'model': FLAGS.model,
    'threads': threads,
    'num_prompts': len(prompts),
    'new_tokens': FLAGS.new_tokens,
    'repeats': FLAGS.repeats,
    'tokens_per_second': rates,
    'ratio': rates['specstream'] / rates['transformers'],
    'equal_fraction': float(
      np.mean([a == b for a, b in zip(ours, theirs, strict=True)])
    ),
    'versions': results.versions() | _their_versions(),
  }
  print(json.dumps(document, indent=2))
  if FLAGS.output:
    writing.write_text(FLAGS.output, json.dumps(document, indent=2) + '\n')


def _their_versions() -> dict[str, str]:
  import torch
  import transformers

  return {
    'torch': torch.__version__,
    'transformers': transformers.__version__,
  }


if __name__ == '__main__':
  define_flags()
  script.run(main)

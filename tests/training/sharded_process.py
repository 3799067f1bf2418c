# SPDX-License-Identifier: Apache-2.0
"""Trains and decodes on a mesh of the virtual devices it is started with.

python sharded_process.py DATA,FSDP,TENSOR FOLDER [kill STEP]

With JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID it is one of
several processes.
"""

import dataclasses
import json
import os
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import tiny
import train_process
import training_batches as tb

from specstream_jax import (
  config,
  mesh as mesh_lib,
  partitioning,
  processes,
  runtime,
)
from specstream_jax.data import batches as batches_lib
from specstream_jax.modeling import params as params_lib
from specstream_jax.training import (
  checkpoints as checkpoints_lib,
  loop,
  metric_files as metrics_lib,
)

CONFIG = config.ModelConfig(
  vocab_size=56,
  hidden_size=24,
  intermediate_size=32,
  num_layers=3,
  num_heads=4,
  num_kv_heads=2,
  head_dim=6,
  tie_word_embeddings=False,
)
STREAMS = config.StreamConfig(
  num_streams=2, num_msa_layers=2, pruning_rank=2, coupling_rank=2
)
LORA = config.LoraConfig(rank=2, alpha=3.0)
TRAIN = config.TrainConfig(
  num_steps=6, batch_size=8, log_every=1, eval_every=3, save_every=2
)


def setup(part):
  """A run on a mesh; the weights are the same on any."""
  built, base, adapter = tiny.model(CONFIG, STREAMS, LORA)
  put = lambda tree: params_lib.unflatten(part.put(params_lib.flatten(tree)))
  return loop.TrainSetup(
    built=built,
    base=put(base),
    adapter=adapter,
    train=TRAIN,
    objective=config.ObjectiveConfig(anchors_per_sequence=5, chunk_size=16),
    optimizer=config.OptimizerConfig(warmup_steps=2),
    tree=config.TreeConfig(kind='best_first', depth=2, num_nodes=5),
    partitioner=part,
  )


def train(part, records, folder):
  """Trains, resuming; returns the losses by step."""
  feed = part.feed()
  batches = batches_lib.open_global(
    records,
    batch_size=TRAIN.batch_size,
    blocks=feed.blocks,
    num_blocks=feed.num_blocks,
    num_shares=2,
    sequence_length=tb.LENGTH,
    seed=5,
  )
  kill = sys.argv[3:]
  if kill:
    batches = train_process.Watched(
      batches, int(kill[1]), lambda: os.kill(os.getpid(), signal.SIGKILL)
    )
  eval_batches = lambda: batches_lib.open_global(
    records,
    batch_size=8,
    blocks=feed.blocks,
    num_blocks=feed.num_blocks,
    sequence_length=tb.LENGTH,
    packed=False,
    seed=None,
    repeat=False,
  )
  checkpoints = checkpoints_lib.Checkpoints(folder / 'checkpoints')
  writer = metrics_lib.Writer(str(folder), enabled=processes.is_main())
  outcome = loop.train(
    setup(part), batches, eval_batches, checkpoints, writer, progress=False
  )
  writer.close()
  checkpoints.close()
  return params_lib.flatten(part.gather(outcome.state.adapter))


def decode(part):
  """Tokens of streams and of plain decoding, at two temperatures."""
  _, base, adapter = tiny.model(
    CONFIG, STREAMS, dataclasses.replace(LORA, rank=0)
  )
  flat = params_lib.flatten(base)
  model = runtime.Model(
    config=CONFIG,
    base=params_lib.unflatten(part.put(flat, transposed=True)),
    adapter=params_lib.unflatten(part.put(params_lib.flatten(adapter))),
    stream=STREAMS,
    lora=None,
    tree=config.TreeConfig(kind='best_first', depth=2, num_nodes=5),
    source={},
    tokenizer=None,
    chat_template=None,
    eos_ids=(),
    partitioner=part,
  )
  prompts = [[1 + i, 7, 3 * i + 2][: 1 + i % 3] for i in range(8)]
  found = {}
  for name in ('none', 'streams'):
    for temperature in (0.0, 1.0):
      decoder = model.decoder(
        name,
        config.DecodeConfig(max_new_tokens=12, prompt_bucket=4),
      )
      result = decoder.generate(
        model.params(name),
        prompts,
        seed=1,
        sampling=config.SamplingConfig(temperature=temperature),
      )
      found[f'{name} {temperature}'] = result.tokens
  return found


def main(mesh, records, folder):
  """Prints one line of JSON, from process 0."""
  processes.initialize(timeout_seconds=60)
  sizes = dict(zip(('data', 'fsdp', 'tensor'), map(int, mesh.split(','))))
  cfg = mesh_lib.MeshConfig(**sizes)
  part = partitioning.Partitioner(mesh_lib.make_mesh(cfg))
  folder = pathlib.Path(folder)
  processes.check_shared(folder)
  adapter = train(part, records, folder)
  found = {'devices': part.mesh.size, 'processes': jax.process_count()}
  found['norm'] = {k: float((v**2).sum()) for k, v in adapter.items()}
  if jax.process_count() == 1:
    found['tokens'] = decode(part)
  if processes.is_main():
    print(json.dumps(found))


if __name__ == '__main__':
  main(sys.argv[1], os.environ['RECORDS'], sys.argv[2])

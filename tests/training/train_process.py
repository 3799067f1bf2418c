# SPDX-License-Identifier: Apache-2.0
"""A tiny training run; as a script, one that a signal or a full disk hits.

python train_process.py FOLDER {memory|RECORDS} {kill|term|limit} STEP
"""

import dataclasses
import json
import os
import pathlib
import resource
import signal
import sys
import time
import zlib

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np
import tiny
import training_batches as tb

from specstream_jax import config
from specstream_jax.data import batches as batches_lib
from specstream_jax.training import (
  checkpoints as checkpoints_lib,
  loop,
  metric_files as metrics_lib,
)

CONFIG = dataclasses.replace(tiny.CONFIG, num_layers=2)
STREAMS = config.StreamConfig(num_streams=2, num_msa_layers=1, pruning_rank=2)
LORA = config.LoraConfig(rank=2, alpha=3.0, modules=('query', 'down'))
TRAIN = config.TrainConfig(
  num_steps=9,
  batch_size=2,
  seed=3,
  log_every=1,
  eval_every=4,
  eval_batches=1,
  save_every=3,
)
SAVE_FAILED = 3


class Memory:
  """Batch i is drawn from seed i; the place is i."""

  def __init__(self):
    self.place = 0

  def __next__(self):
    self.place += 1
    return make_batch(self.place)

  def get_state(self):
    return {'place': self.place}

  def set_state(self, state):
    self.place = state['place']


class Watched:
  """Batches that remember what they gave, and call `event` before batch `at`."""

  def __init__(self, batches, at=0, event=None):
    self._batches, self._at, self._event = batches, at, event
    self.seen = []
    self.get_state, self.set_state = batches.get_state, batches.set_state

  def __next__(self):
    if len(self.seen) + 1 == self._at:
      self._event()
    batch = next(self._batches)
    content = b''.join(np.ascontiguousarray(batch[k]) for k in sorted(batch))
    self.seen.append(zlib.crc32(content))
    return batch


def make_batch(seed):
  """Two rows of one example each."""
  sizes = np.random.default_rng(seed).integers((2, 3), (7, 9), (2, 2))
  return tb.pack([[example] for example in tb.draw(sizes.tolist(), seed)])


def open_batches(source):
  if source == 'memory':
    return Memory()
  return batches_lib.open_batches(
    str(source), batch_size=2, sequence_length=tb.LENGTH, seed=5
  )


def open_eval_batches():
  """One batch, always the same."""
  return iter([make_batch(1000)])


def run(
  folder,
  batches,
  profile_steps=None,
  open_eval=open_eval_batches,
  step_cost=0.0,
  **train,
):
  """Trains in `folder`, resuming; returns the outcome of the loop."""
  folder = pathlib.Path(folder)
  built, base, adapter = tiny.model(CONFIG, STREAMS, LORA)
  setup = loop.TrainSetup(
    built=built,
    base=base,
    adapter=adapter,
    train=dataclasses.replace(TRAIN, **train),
    # Fewer anchors than targets, so that the keys of the steps matter.
    objective=config.ObjectiveConfig(anchors_per_sequence=3, chunk_size=7),
    optimizer=config.OptimizerConfig(warmup_steps=2),
    tree=config.TreeConfig(kind='chain', depth=2),
    profile_steps=profile_steps,
    step_cost=step_cost,
  )
  checkpoints = checkpoints_lib.Checkpoints(folder / 'checkpoints')
  writer = metrics_lib.Writer(str(folder))
  try:
    return loop.train(
      setup, batches, open_eval, checkpoints, writer, progress=False
    )
  finally:
    writer.close()


def limit_file_size(folder):
  """Lets no file grow past 300 bytes, once step 3 is on disk."""
  while not (folder / 'checkpoints' / '3').is_dir():
    time.sleep(0.01)
  hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
  resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))


def main(folder, source, event, at):
  folder, options = pathlib.Path(folder), {}
  events = {
    'kill': lambda: os.kill(os.getpid(), signal.SIGKILL),
    'term': lambda: os.kill(os.getpid(), signal.SIGTERM),
    'limit': lambda: limit_file_size(folder),
  }
  if event == 'limit':
    options = {'log_every': 100, 'eval_every': 100}
  batches = Watched(open_batches(source), int(at), events[event])
  try:
    outcome = run(folder, batches, **options)
  except checkpoints_lib.SaveError as error:
    print(json.dumps({'error': str(error)}))
    sys.exit(SAVE_FAILED)
  print(
    json.dumps(
      {
        'step': int(outcome.state.step),
        'interrupted': outcome.interrupted,
        'signal': outcome.signal,
        'seen': batches.seen,
      }
    )
  )


if __name__ == '__main__':
  main(*sys.argv[1:])

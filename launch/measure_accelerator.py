# SPDX-License-Identifier: Apache-2.0
"""Measures and trains on a lent accelerator, in order of value, within a time.

For a machine with jax on a GPU or TPU and no network. Here, with a network:

  python launch/measure_accelerator.py --pack=PACK --data_dir=DATA

puts the model, wheels and everything under DATA (prompts/, tasks/; both made by
experiments/task_prompts.py and experiments/general_prompts.py, and copies of
the tasks' files) into parts below 60 MB. There, with the parts and a checkout:

  launch/measure_accelerator.sh --unpack=PACK --output_dir=OUT --time_limit=1800

the script takes the parts apart, sets paths and calls this one with the rest.

Each part is a process of its own, whose log and results lie under OUT before
the next begins; what is done is left out the next time. Parts, in order:

  device      copy bandwidth and rate of matrix products: the two ceilings
  decode      cost of decoding steps by schedule, nodes and batch, 135M
  shipped     speed-ups of the adapters that ship, on their tasks
  train_step  time of a training step: plain LoRA, streams, lossless streams
  adapters    LoRA, own answers and lossless streams for every task, at once
  trained     speed-ups of those adapters
  large       cost of passes and decoding steps, 1B and 7B, random weights
  buffers     decode once more, without command buffers (GPU)
"""

from collections.abc import Callable, Sequence
import concurrent.futures
import importlib.metadata
import json
import os
import pathlib
import shlex
import subprocess
import sys
import tarfile
import time

from absl import app, flags
import accelerator_tasks

from specstream_jax.checkpoints import loading

FLAGS = flags.FLAGS
_ROOT = pathlib.Path(__file__).resolve().parents[1]
_EXPERIMENTS = _ROOT / 'launch' / 'experiments'
_PYTHON = sys.executable
_CLI = [_PYTHON, '-m', 'specstream_jax.cli.main']
# What a machine with jax may lack.
_WHEELS = (
  'gin-config', 'grain', 'array_record', 'portpicker', 'gguf', 'rouge-score',
  'nltk', 'sqlglot', 'tensorboardX', 'flax', 'optax', 'orbax-checkpoint',
)  # fmt: skip


def define_flags() -> None:
  """Declares the flags."""
  flags.DEFINE_list('parts', list(PARTS), 'What to run, in this order.')
  flags.DEFINE_list(
    'tasks', list(accelerator_tasks.TASKS), 'Of the parts that have tasks.'
  )
  flags.DEFINE_integer('time_limit', 1800, 'Seconds for all.', lower_bound=1)
  flags.DEFINE_string('output_dir', 'results/accelerator', 'Folder to write.')
  flags.DEFINE_string('data_dir', 'data', 'prompts/ and tasks/.')
  flags.DEFINE_string('model', 'smollm2-135m-instruct', 'Base model.')
  flags.DEFINE_string('dtype', 'bfloat16', 'Of weights and activations.')
  flags.DEFINE_integer('num_prompts', 64, 'Of a task that is measured.')
  flags.DEFINE_bool('tiny', False, 'Sizes for a test on a CPU.')
  flags.DEFINE_string('pack', '', 'Write parts to this folder and stop.')
  flags.DEFINE_integer('part_mb', 58, 'Most of a part, in MB.', lower_bound=1)


# Of processes that compute at once on one device.
_SHARED = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}


class Runner:
  """Runs commands with a log each, until the time is over."""

  def __init__(self, folder: pathlib.Path, seconds: float):
    self.folder, self._end = folder, time.monotonic() + seconds
    self.folder.mkdir(parents=True, exist_ok=True)

  def left(self) -> float:
    """Seconds."""
    return self._end - time.monotonic()

  def run(self, name: str, command: Sequence[object], **env: str) -> bool:
    """Whether the command ended well, now or in an earlier run.

    Args:
      name: of its log and of the mark that it is done.
      command: its words.
      **env: added to its environment.
    """
    done = self.folder / 'done' / name
    if done.exists():
      return True
    if self.left() <= 0:
      return False
    words, started = list(map(str, command)), time.monotonic()
    log = self.folder / 'logs' / f'{name}.log'
    for path in (done, log):
      path.parent.mkdir(exist_ok=True)
    paths = [str(_ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(paths)} | env
    with log.open('a') as file:
      file.write(shlex.join(words) + '\n')
      file.flush()
      try:
        status = subprocess.run(
          words, stdout=file, stderr=subprocess.STDOUT, env=environment,
          cwd=_ROOT, timeout=self.left(), check=False,
        ).returncode  # fmt: skip
      except subprocess.TimeoutExpired:
        status = 'out of time'
    seconds = time.monotonic() - started
    print(f'{name}: {status or "done"}, {seconds:.0f} s', flush=True)
    if status:
      print(''.join(log.read_text().splitlines(True)[-4:]), flush=True)
      return False
    done.write_text(json.dumps({'seconds': seconds, 'command': words}) + '\n')
    return True


def device(runner: Runner) -> None:
  """The two ceilings."""
  small = ['--size=256', f'--count={2**20}'] * FLAGS.tiny
  script = _EXPERIMENTS / 'ceilings.py'
  out = f'--output_dir={runner.folder}'
  runner.run('device', [_PYTHON, script, out, *small])


def _cost(runner: Runner, name: str, *more: str, **env: str) -> None:
  small = ['--new_tokens=16', '--context=8', '--repeats=2']
  runner.run(
    name,
    [
      _PYTHON, _EXPERIMENTS / 'decode_cost.py', f'--label={name}',
      f'--output_dir={runner.folder / name}', *more, *small * FLAGS.tiny,
    ],
    **env,
  )  # fmt: skip


def decode(runner: Runner) -> None:
  """The surface of step costs for the small model."""
  size = 'tiny' if FLAGS.tiny else '135m'
  nodes = '4' if FLAGS.tiny else '8,16,32'
  _cost(
    runner, 'decode', f'--sizes={size}', f'--nodes={nodes}', '--batches=1',
    f'--dtypes={FLAGS.dtype}',
  )  # fmt: skip


def large(runner: Runner) -> None:
  """The same for larger models; a process each, for the memory."""
  for size in ['tiny'] if FLAGS.tiny else ['1b', '7b']:
    _cost(
      runner, f'large_{size}', f'--sizes={size}', '--nodes=16',
      '--schedules=parallel', '--tokens=1,8,16,64,128',
      f'--dtypes={FLAGS.dtype}',
    )  # fmt: skip


def buffers(runner: Runner) -> None:
  """Plain steps and one tree without command buffers."""
  size = 'tiny' if FLAGS.tiny else '135m'
  flags_ = f'{os.environ.get("XLA_FLAGS", "")} --xla_gpu_enable_command_buffer='
  _cost(
    runner, 'buffers', f'--sizes={size}', '--nodes=16', '--parts=decode',
    f'--dtypes={FLAGS.dtype}', XLA_FLAGS=flags_.strip(),
  )  # fmt: skip


def _bench(runner: Runner, prefix: str, adapters: dict[str, str]) -> None:
  """Speed-ups of adapters on their tasks, by schedule.

  All are compiled first, at once, into the cache that processes share; then
  they are timed, one after the other.
  """
  commands = {}
  for schedule in ('parallel', 'deferred'):
    for name, adapter in adapters.items():
      own = f'{prefix}_{name}_{schedule}'
      trees = [
        f'streams {n}=streams:num_nodes={n},depth={_depth(adapter)},branching=32'
        for n in accelerator_tasks.TASKS[name].nodes[
          : 1 if FLAGS.tiny else None
        ]
      ]
      commands[own] = [
        *_CLI, 'bench', f'--model={FLAGS.model}', f'--adapter={adapter}',
        f'--dtype={FLAGS.dtype}', f'--schedule={schedule}',
        f'--drafters={";".join(trees)}',
        f'--tasks={accelerator_tasks.TASKS[name].task.format(data=FLAGS.data_dir)}',
        f'--max_new_tokens={accelerator_tasks.TASKS[name].max_new_tokens}',
        f'--num_prompts={FLAGS.num_prompts}', '--overwrite',
      ]  # fmt: skip
  out = lambda own: f'--results_dir={runner.folder / own}'
  with concurrent.futures.ThreadPoolExecutor() as pool:
    for own, words in commands.items():
      warm = [*words, out(f'warm/{own}')]
      pool.submit(runner.run, f'warm_{own}', warm, **_SHARED)
  for own, words in commands.items():
    runner.run(own, [*words, out(own)])


def _depth(adapter: str) -> int:
  """Streams of an adapter, as far as a tree reads them."""
  shipped = _ROOT / 'specstream_jax' / 'adapters' / adapter
  folder = shipped if shipped.is_dir() else pathlib.Path(adapter)
  cfg = json.loads((folder / 'adapter_config.json').read_text())
  return int(cfg['stream']['num_streams'])


def shipped(runner: Runner) -> None:
  """Adapters as they ship; DialogSum's lies beside the package."""
  folders = {'dialogsum': str(_ROOT / 'adapters' / 'dialogsum')}
  there = {
    name: folders.get(name, name)
    for name in FLAGS.tasks
    if name not in folders or os.path.isdir(folders[name])
  }
  _bench(runner, 'shipped', there)


def trained(runner: Runner) -> None:
  """Adapters of the part `adapters`."""
  found = {
    name: str(runner.folder / 'adapters' / name)
    for name in FLAGS.tasks
    if (runner.folder / 'done' / f'{name}_export').exists()
  }
  _bench(runner, 'trained', found)


def train_step(runner: Runner) -> None:
  """Time and memory of a training step."""
  rows, length = (2, 64) if FLAGS.tiny else (32, 256)
  layers = 1 if FLAGS.tiny else 15
  runner.run(
    'train_step',
    [
      _PYTHON, _EXPERIMENTS / 'step_cost.py', f'--model={FLAGS.model}',
      f'--data_dir={runner.folder}/work/e2e_nlg/records_references', f'--rows={rows}',
      f'--length={length}', f'--layers={layers}', '--anchors=96',
      f'--dtype={FLAGS.dtype}', '--repeats=10',
      f'--output_dir={runner.folder / "train_step"}',
    ],
  )  # fmt: skip


def adapters(runner: Runner) -> None:
  """All tasks at once: one waits for its compiler while another computes."""
  with concurrent.futures.ThreadPoolExecutor() as pool:
    jobs = [pool.submit(_adapter, runner, name) for name in FLAGS.tasks]
    for job in jobs:
      job.result()


def _adapter(runner: Runner, name: str) -> None:
  """LoRA, the answers of the tuned model, lossless streams, one task."""
  task, data = accelerator_tasks.TASKS[name], pathlib.Path(FLAGS.data_dir)
  work = runner.folder / 'work' / name
  work.mkdir(parents=True, exist_ok=True)
  run = lambda part, *words: runner.run(f'{name}_{part}', words, **_SHARED)
  common = [f'--model={FLAGS.model}', f'--dtype={FLAGS.dtype}']
  records = lambda part, answers: run(
    f'records_{part}', _PYTHON, _EXPERIMENTS / 'records_of_answers.py',
    f'--answers={",".join(map(str, answers))}', f'--tokenizer={FLAGS.model}',
    f'--max_length={task.length}', f'--output_dir={work / f"records_{part}"}',
    f'--draft_vocabulary={work / f"vocabulary_{part}.json"}',
  )  # fmt: skip
  tuned = work / 'lora' / 'adapter'
  if task.references:
    given = [data / 'prompts' / task.references]
    if not records('references', given):
      return
    if not run('lora', *_lora(task, work, common)):
      return
  files = {'own': [], 'dev': []}
  for part, prompts, temperatures in (
    ('own', task.prompts, task.temperatures),
    ('dev', task.dev_prompts, (0.0,)),
  ):
    for seed, temperature in enumerate(temperatures):
      folder = work / f'{part}_{temperature:g}'
      files[part].append(str(folder / 'train.jsonl'))
      words = [
        *_CLI, 'distill', *common, f'--prompts={data / "prompts" / prompts}',
        f'--adapter={tuned if task.references else ""}',
        f'--temperature={temperature}', f'--seed={seed}',
        f'--batch_size={2 if FLAGS.tiny else 256}',
        f'--prompt_bucket={task.bucket}',
        f'--max_new_tokens={task.max_new_tokens}', f'--output_dir={folder}',
        *['--chat'] * (not task.references),
      ]  # fmt: skip
      if not run(f'answers_{part}_{temperature:g}', *words):
        return
    if not records(part, files[part]):
      return
  if run('streams', *_streams(task, work, tuned, common)):
    run(
      'export', 'bash', '-c',
      'mkdir -p "$2" && cp -r "$0"/. "$2" && cp "$1" "$2"/draft_vocabulary.json',
      work / 'streams' / 'adapter', work / 'vocabulary_own.json',
      runner.folder / 'adapters' / name,
    )  # fmt: skip


def _train(task, kind, common):
  tiny = [
    '--gin_file=configs/tiny.gin', f'--gin.DataConfig.sequence_length={task.length}'
  ]  # fmt: skip
  return [
    *_CLI, 'train', *common,
    f'--gin_file=configs/{task.recipe}_deep_{kind}.gin', *tiny * FLAGS.tiny,
  ]  # fmt: skip


def _lora(task, work, common):
  return [
    *_train(task, 'lora', common),
    f'--data_dir={work / "records_references"}',
    f'--output_dir={work / "lora"}', '--export=last',
  ]  # fmt: skip


def _streams(task, work, tuned, common):
  return [
    *_train(task, 'streams', common),
    f'--data_dir={work / "records_own"}',
    f'--eval_data_dir={work / "records_dev"}',
    f'--output_dir={work / "streams"}',
    *[f'--fold_adapter={tuned}'] * bool(task.references),
  ]  # fmt: skip


PARTS: dict[str, Callable[[Runner], None]] = {
  'device': device,
  'decode': decode,
  'shipped': shipped,
  'train_step': train_step,
  'adapters': adapters,
  'trained': trained,
  'large': large,
  'buffers': buffers,
}


def pack(folder: pathlib.Path) -> None:
  """Model, wheels and data in files below `--part_mb`."""
  folder.mkdir(parents=True, exist_ok=True)
  wheels = folder / 'wheels'
  versions = [f'{name}=={importlib.metadata.version(name)}' for name in _WHEELS]
  subprocess.run(
    [
      _PYTHON, '-m', 'pip', 'wheel', '--quiet', '--no-deps',
      f'--wheel-dir={wheels}', *versions,
    ],
    check=True,
  )  # fmt: skip
  whole = folder / 'whole.tar.xz'
  with tarfile.open(whole, 'w:xz', preset=3) as tar:
    tar.add(wheels, 'wheels')
    for name in ('prompts', 'tasks'):
      tar.add(pathlib.Path(FLAGS.data_dir) / name, f'data/{name}')
    model = pathlib.Path(loading.resolve(FLAGS.model))
    tar.add(model, f'models/{FLAGS.model}/{model.name}')
  size = FLAGS.part_mb * 10**6
  with whole.open('rb') as file:
    for number in range(10**4):
      block = file.read(size)
      if not block:
        break
      (folder / f'part-{number:03d}').write_bytes(block)
  whole.unlink()
  print(f'{folder}: {number} parts')


def main(argv: Sequence[str]) -> None:
  """Packs, or runs the parts."""
  del argv
  if FLAGS.pack:
    return pack(pathlib.Path(FLAGS.pack))
  for name, accepted in (('parts', PARTS), ('tasks', accelerator_tasks.TASKS)):
    wrong = [value for value in getattr(FLAGS, name) if value not in accepted]
    if wrong:
      raise app.UsageError(
        f'--{name}={wrong[0]}; accepted: {", ".join(accepted)}'
      )
  runner = Runner(pathlib.Path(FLAGS.output_dir).resolve(), FLAGS.time_limit)
  FLAGS.data_dir = os.path.abspath(FLAGS.data_dir)
  for part in FLAGS.parts:
    if runner.left() > 0:
      PARTS[part](runner)
    else:
      print(f'{part}: no time left')


if __name__ == '__main__':
  define_flags()
  app.run(main)

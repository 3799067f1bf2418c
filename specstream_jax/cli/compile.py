# SPDX-License-Identifier: Apache-2.0
"""Compiles training and decoding for a TPU slice, on a machine without a TPU.

    specstream compile --topology=v5e:4x4 --recipe=llama2_7b

prints per chip: memory against the chip's HBM, FLOPs, traffic through HBM against
what cannot be avoided, collectives, and copies of weights or cache. It takes
libtpu, in an environment of its own: pip install 'specstream_jax[tpu_aot]'.
The exit status is 1 if something does not fit.
"""

from collections.abc import Sequence
import dataclasses
import json
import sys

from absl import flags

from specstream_jax import config
from specstream_jax.cli import decoding_flags
from specstream_jax.modeling import blocks
from specstream_jax.outputs import writing
from specstream_jax.tpu import compiling as workflow, programs, scaling
from specstream_jax.workflows import train


def define_flags() -> None:
  """Defines the flags of this command."""
  flags.DEFINE_string('topology', None, 'TPU slice, such as v5e:4x4.')
  flags.DEFINE_list(
    'programs',
    ['train', 'prefill', 'decode'],
    'What to compile: train, prefill, decode, plain.',
  )
  decoding_flags.define_dtype('bfloat16')
  decoding_flags.define_weights_dtype()
  flags.DEFINE_integer('rows', 8, 'Rows of a decoding batch.', lower_bound=1)
  flags.DEFINE_integer(
    'prompt_length', 1024, 'Tokens of a prompt.', lower_bound=1
  )
  flags.DEFINE_integer(
    'max_new_tokens', 128, 'Tokens to decode.', lower_bound=1
  )
  decoding_flags.define_schedule('parallel')
  flags.DEFINE_enum(
    'remat', 'full', list(blocks.REMAT), 'What training computes again.'
  )
  flags.DEFINE_bool('scan_layers', True, 'Training scans over stacked layers.')
  flags.DEFINE_bool(
    'search_mesh', False, 'Try meshes until one fits, instead of MeshConfig.'
  )
  flags.DEFINE_multi_integer(
    'estimate_chips',
    [],
    'Estimate the training step on so many chips; may be repeated.',
    lower_bound=1,
  )
  flags.DEFINE_float(
    'utilization',
    0.5,
    'Share of the peak that the estimate takes products to reach.',
    lower_bound=0.01,
    upper_bound=1.0,
  )
  flags.DEFINE_string('output', '', 'JSON file for what was found.')
  flags.mark_flag_as_required('topology')


def main(argv: Sequence[str]) -> int:
  """Compiles, or searches a mesh; 1 when something does not fit."""
  del argv
  args, job = flags.FLAGS, _job(flags.FLAGS)
  found: list[programs.Compiled] = []
  if args.search_mesh:
    for mesh, found in workflow.search_mesh(job, args.topology, args.programs):
      fits = all(one.fits for one in found)
      print(f'{mesh}: {"fits" if fits else "does not fit"}', flush=True)
    if not found:
      print('no mesh divides rows and heads and leaves room for the weights')
  else:
    for one in workflow.compile_all(job, args.topology, args.programs):
      found.append(one)
      print(f'{one.name} compiled in {one.seconds:.0f} s', file=sys.stderr)
  print(workflow.table(found))
  if args.estimate_chips:
    print(_estimate(args, job, found))
  if args.output:
    rows = [dataclasses.asdict(one) for one in found]
    writing.write_text(args.output, json.dumps(rows, indent=2))
  return 0 if found and all(one.fits for one in found) else 1


def _estimate(args, job, found) -> str:
  """The training step on other numbers of chips, in words and a table."""
  steps = [one for one in found if one.name == 'train step' and one.flops]
  if not steps:
    raise ValueError('--estimate_chips is of a train step that compiles')
  (step,), chip = steps, scaling.chip(args.topology)
  count = len(workflow.devices(args.topology))
  rows = scaling.estimate(
    step,
    chip,
    count,
    programs.gradient_bytes(job),
    args.estimate_chips,
    utilization=args.utilization,
  )
  even = scaling.break_even(step, chip, count, args.utilization)
  return '\n'.join(
    [
      '',
      'Estimated, not run: train step with as many tokens a chip as compiled.',
      '',
      scaling.table(rows, args.utilization),
      '',
      f'Below {even:.0f} tokens a chip collectives take longer than products.',
    ]
  )


def _job(args) -> programs.Job:
  try:
    model = config.ModelConfig()  # pyright: ignore[reportCallIssue] sizes: gin
  except TypeError as error:
    raise ValueError(
      'no sizes of a model; give --recipe=llama2_7b, or the '
      'fields of ModelConfig'
    ) from error
  return programs.Job(
    model=dataclasses.replace(
      model, dtype=args.dtype, weights_dtype=args.weights_dtype
    ),
    recipe=train.Recipe(),
    decode_rows=args.rows,
    prompt_length=args.prompt_length,
    max_new_tokens=args.max_new_tokens,
    schedule=args.schedule,
    remat=args.remat,
    scan_layers=args.scan_layers,
  )

# SPDX-License-Identifier: Apache-2.0
"""A picture of one or more `results.json`, for the documentation."""

from absl import flags
import script

from specstream_jax.bench import results
from specstream_jax.outputs import writing
from specstream_jax.report import bench_plots, plots

FLAGS = flags.FLAGS


def _given_prefix(runs):
  names = bench_plots.names(runs)
  counts = [run.accept_length_histogram for run in runs]
  return plots.acceptance_given_prefix(dict(zip(names, counts, strict=True)))


_KINDS = {
  'calls_against_nodes': bench_plots.calls_against_nodes,
  'calls_against_numbers': lambda runs: bench_plots.calls_against_numbers(
    runs, FLAGS.label
  ),
  'acceptance_given_prefix': _given_prefix,
  'speedup_and_calls': bench_plots.speedup_and_calls,
}


def define_flags() -> None:
  """Declares the flags."""
  flags.DEFINE_enum(
    'kind', 'calls_against_nodes', list(_KINDS), 'What to draw.'
  )
  flags.DEFINE_list('results', None, 'Files of `specstream bench`.')
  flags.DEFINE_list('drafters', [], 'Labels of the rows to draw; all if empty.')
  flags.DEFINE_string(
    'label',
    'number',
    "What the numbers in the rows' names count, for calls_against_numbers.",
  )
  flags.DEFINE_string('output', None, 'SVG to write.')
  flags.mark_flags_as_required(['results', 'output'])


def main() -> None:
  """Reads, picks, draws."""
  runs = [run for path in FLAGS.results for run in results.read(path).runs]
  known = {run.label for run in runs}
  if unknown := sorted(set(FLAGS.drafters) - known):
    raise ValueError(f'no row is called {unknown}; there are {sorted(known)}')
  picked = [
    run for run in runs if not FLAGS.drafters or run.label in FLAGS.drafters
  ]
  writing.write_text(FLAGS.output, _KINDS[FLAGS.kind](picked))
  print(f'{len(picked)} rows: {FLAGS.output}')


if __name__ == '__main__':
  define_flags()
  script.run(main)

# SPDX-License-Identifier: Apache-2.0
"""Where the time of a decode step goes on this machine.

The same steps on the same prompts, compiled once as they are and once for each
part with that part done twice, timed in turns.

Axis letters: B rows, M tree nodes, J streams.
"""

from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp

from specstream_jax import config, runtime
from specstream_jax.bench import (
  grid,
  journal as journal_lib,
  products as products_lib,
  step_profile,
)
from specstream_jax.config import bounds, checks, drafting as config_drafting
from specstream_jax.decoding import decoder as decoder_lib, loop
from specstream_jax.modeling import phases
from specstream_jax.report import profile_report
from specstream_jax.workflows import bench

DRAFTERS = ('none', 'streams')


@dataclasses.dataclass(frozen=True)
class Options:
  """What to take apart.

  Attributes:
    task: whose prompts, `name[/split][@DIR]`.
    drafter: none or streams, with settings; '' takes streams if there are any.
    schedule: of the streams, where the drafter's settings name none.
    batch: rows per call.
    max_new_tokens: room for so many in the cache, and no more steps than that.
    steps: of a timing.
    rounds: timings of each side.
  """

  task: str = 'e2e_sample/test'
  drafter: str = ''
  schedule: str = 'deferred'
  batch: int = 1
  max_new_tokens: int = 64
  steps: int = 8
  rounds: int = 9

  def __post_init__(self):
    """Raises ValueError if a value is of another type or out of range."""
    checks.option_types(self)
    checks.one_of('schedule', self.schedule, config.SCHEDULES)
    checks.count('batch', self.batch, 1, bounds.ROWS)
    checks.count('max_new_tokens', self.max_new_tokens, 2, bounds.TOKENS)
    checks.at_least('steps', self.steps, 1)
    checks.at_least('rounds', self.rounds, 1)


def profile(
  model: runtime.Model,
  options: Options,
  folder: str,
  *,
  command: str,
  progress: bool = True,
) -> step_profile.StepProfile:
  """Measures, and writes profile.json and profile.svg.

  Args:
    model: what decodes.
    options: see `Options`.
    folder: of the files.
    command: for the file.
    progress: show a progress bar.

  Raises:
    ValueError: a drafter whose parts are not known, or that the model does not
      have, or no prompts.
  """
  drafter = _drafter(model, options)
  parts = _parts(drafter, options)
  cfg = config.DecodeConfig(
    max_new_tokens=options.max_new_tokens, schedule=options.schedule
  )
  decoder = model.decoder(drafter, cfg)
  state = decoder.start(decoder.params, _prompts(model, options))
  steps = functools.partial(_Steps, model, decoder, state, options.steps)
  sides: dict[str, step_profile.Side] = {step_profile.WHOLE: steps()}
  sides |= {part: steps(part) for part in parts}
  products = _products(model, decoder, drafter, options)
  sides[step_profile.PRODUCTS] = lambda: products
  seconds = step_profile.measure(sides, options.rounds, progress=progress)
  found = step_profile.account(seconds, parts)
  profile_report.write(
    folder,
    found,
    seconds,
    command=command,
    source=model.source,
    options=dataclasses.asdict(options) | {'drafter': str(drafter)},
    cache_slots=state.cache.num_slots,
  )
  return found


def _drafter(model, options) -> config_drafting.DrafterConfig:
  text = options.drafter or ('streams' if model.stream else 'none')
  drafter = config_drafting.parse(text, model.tree)
  checks.one_of('drafter', drafter.name, DRAFTERS)
  # Pauses and budgets are made of other steps.
  return dataclasses.replace(drafter, pays_above=0.0, budgets='')


def _parts(drafter, options) -> dict[str, str]:
  """Part -> what to call it, for the parts that such a step has."""
  names = dict(phases.NAMES)
  if drafter.name == 'none':
    return {'lower': 'layers'} | {
      name: names[name] for name in ('head', 'verify')
    }
  if (drafter.schedule or options.schedule) == 'parallel':
    del names['streams']
  return names


def _prompts(model, options) -> list[list[int]]:
  asked = bench.Options(
    drafters=('none',),
    tasks=(options.task,),
    batch_sizes=(options.batch,),
    num_prompts=options.batch,
    max_new_tokens=options.max_new_tokens,
  )
  plan = bench.make_plan(asked)
  grid.check_ids(model, plan)
  prompts = grid.Bench(model, plan, [], journal_lib.Memory())
  [cell] = plan.cells
  return [list(row.prompt) for row in prompts.batches(cell, 0)[0]]


class _Steps:
  """Steps from one state on, with some parts done twice."""

  def __init__(
    self,
    model: runtime.Model,
    decoder: decoder_lib.Decoder,
    state: loop.DecodeState,
    steps: int,
    *parts: str,
  ):
    run = functools.wraps(loop.run)(functools.partial(loop.run, decoder.setup))
    self._run = model.partitioner.jit(run, donate_argnums=1)
    self._params, self._state = decoder.params, state
    self._steps, self._parts = jnp.int32(steps), parts

  def __call__(self) -> Callable[[], int]:
    """A copy of the state, which the steps consume, and a run from there."""
    state = jax.block_until_ready(jax.tree.map(jnp.copy, self._state))
    return lambda: self._go(state)

  def _go(self, state):
    with phases.twice(*self._parts):  # seen while it is traced
      done = self._run(self._params, state, self._steps)
    return int(jax.block_until_ready(done).calls.max())


def _products(model, decoder, drafter, options) -> products_lib.Products:
  """The matrix products with weights of as many steps."""
  streams = model.stream if drafter.name == 'streams' else None
  tree = drafter.tree or model.tree
  num_msa = streams.num_msa_layers if streams else 0
  rows = products_lib.rows_of(
    options.batch,
    decoder.setup.drafter.size,
    num_streams=streams.num_streams if streams else 0,
    schedule=drafter.schedule or options.schedule,
    keep_nodes=tree.keep_nodes if streams else 0,
    likely_nodes=drafter.likely_nodes,
  )
  first_msa = model.config.num_layers - num_msa
  found = products_lib.used(decoder.params, model.config, first_msa, rows)
  return products_lib.Products(list(found), options.steps, model.partitioner)

# SPDX-License-Identifier: Apache-2.0
"""The accounts of a step, worked out by hand with a clock that obeys."""

import dataclasses
import json

import jax.numpy as jnp
import pytest
import tiny_runtime

from specstream_jax.bench import products, step_profile
from specstream_jax.modeling import params as params_lib, phases
from specstream_jax.report import profile_report


class Clock:
  """Stands still unless a side runs."""

  def __init__(self, seconds):
    self.now, self.seconds, self.order = 0.0, seconds, []

  def __call__(self):
    return self.now

  def side(self, name, steps):
    """Getting ready takes ten seconds, running what was said."""

    def prepare():
      self.now += 10
      return run

    def run():
      self.order.append(name)
      self.now += self.seconds[name][self.order.count(name) - 1]
      return steps

    return prepare


@pytest.fixture(name='timed')
def _timed():
  # The first run of each compiles; steps are two.
  clock = Clock(
    {
      'whole': [99, 2.0, 2.2, 2.4],
      'lower': [99, 3.0, 3.2, 3.2],
      'head': [99, 2.2, 2.8, 2.8],
      'products': [99, 1.5, 1.4, 1.6],
    }
  )
  sides = {name: clock.side(name, 2) for name in clock.seconds}
  found = step_profile.measure(sides, 3, clock=clock, progress=False)
  return clock, found


NAMES = {'lower': 'lower layers', 'head': 'LM head'}


def test_only_what_runs_is_timed_and_the_sides_take_turns(timed):
  clock, found = timed
  assert found['whole'] == pytest.approx([1.0, 1.1, 1.2])
  forward = ['whole', 'lower', 'head', 'products']
  assert clock.order == forward + forward + forward[::-1] + forward


def test_ctrl_c_keeps_the_rounds_that_are_whole():
  clock = Clock({'whole': [9, 2.0, 2.2, 0], 'head': [9, 3.0, 3.0, 0]})

  def stop(count):
    def prepare():
      if clock.order.count('head') == count:
        raise KeyboardInterrupt
      return clock.side('head', 1)()

    sides = {'whole': clock.side('whole', 1), 'head': prepare}
    return step_profile.measure(sides, 3, clock=clock, progress=False)

  # After the one that compiles and two more.
  assert stop(3) == {
    'whole': pytest.approx([2.0, 2.2]),
    'head': pytest.approx([3.0, 3.0]),
  }
  clock.order.clear()
  with pytest.raises(KeyboardInterrupt):
    stop(1)


def test_a_part_costs_what_doing_it_twice_adds(timed):
  found = step_profile.account(timed[1], NAMES)
  lower, head = found.parts
  # 0.5, 0.5 and 0.4 s; 0.1, 0.3 and 0.2 s.
  assert (lower.name, lower.ms) == ('lower layers', pytest.approx(500))
  assert (lower.low, lower.high) == pytest.approx((450, 500))
  assert (head.ms, head.low, head.high) == pytest.approx((200, 150, 250))
  assert found.whole.ms == pytest.approx(1100)
  assert found.rest_ms == pytest.approx(400)
  assert found.other_share == pytest.approx(1 - 750 / 1100)


def test_table_file_and_plot_show_the_parts_and_what_is_in_none(
  timed, tmp_path
):
  found = step_profile.account(timed[1], NAMES)
  shown = profile_report.table(found)
  lines = {line.split('  ')[0]: line.split() for line in shown.splitlines()}
  assert lines['lower layers'][2:] == ['500.00', '45.5%', '450.00-500.00']
  assert lines['all parts'][2:] == ['700.00', '63.6%']
  assert lines['in no part'][3:] == ['400.00', '36.4%']
  assert '31.8% of the step is something else' in shown
  assert 'beside other work' not in shown
  long = [dataclasses.replace(part, ms=700.0) for part in found.parts]
  doubted = profile_report.table(dataclasses.replace(found, parts=long))
  assert 'parts that add up to 1.3 steps were timed beside other' in doubted
  profile_report.write(str(tmp_path), found, timed[1], command='made by hand')
  kept = json.loads((tmp_path / 'profile.json').read_text())
  assert kept['command'] == 'made by hand'
  assert kept['profile']['rest_ms'] == pytest.approx(400)
  assert kept['seconds']['products'] == pytest.approx([0.75, 0.7, 0.8])
  assert 'lower layers' in (tmp_path / 'profile.svg').read_text()


def test_one_round_has_no_spread():
  seconds = {name: [1.0] for name in ('whole', 'products')}
  found = step_profile.account(seconds, {})
  assert (found.whole.low, found.whole.high) == (1000, 1000)
  assert found.rest_ms == 1000


def test_products_are_counted_by_row():
  rows = products.rows_of
  assert rows(2, 1) == (2, 2, 2, 0, 0)
  assert rows(1, 8, num_streams=4) == (8, 8, 8, 4, 4)
  assert rows(2, 8, num_streams=4, keep_nodes=6) == (16, 12, 12, 8, 8)
  beside = rows(1, 8, num_streams=4, schedule='parallel')
  assert beside == (8, 8 + 32, 8, 0, 4)
  some = rows(1, 8, num_streams=4, schedule='likely', likely_nodes=2)
  assert some == (8, 8 + 8, 8, 0, 4)


def test_products_are_those_of_the_weights_in_the_order_of_a_step():
  model = tiny_runtime.model()
  params = model.params('streams')
  rows = products.Rows(lower=5, msa=4, head=3, streams=2, drafts=1)
  found = list(products.used(params, model.config, 1, rows))
  layer = [(3, 16), (1, 16), (2, 16), (1, 24)]
  expected = [(*one, 5) for one in layer] + [(*one, 4) for one in layer]
  expected += [(1, 16, 3)] + [(*one, 2) for one in layer] + [(1, 16, 1)]
  assert [
    (len(group), group[0].shape[1], count) for group, count in found
  ] == expected
  sizes = sum(leaf.size for group, _ in found for leaf in group)
  per_layer = sum(
    leaf.size
    for path, leaf in params_lib.flatten(model.base).items()
    if path.startswith('layers/0/') and path.endswith('kernel')
  )
  head = model.base['embed']['embedding'].size
  assert sizes == 3 * per_layer + 2 * head


def test_a_part_runs_once_unless_it_is_to_run_twice():
  seen = []

  def part(x, kept):
    seen.append(x)
    return x * 2, kept + 1

  run = lambda: phases.run('msa', part, jnp.ones(3), keeps=jnp.zeros(2))
  out, kept = run()
  assert len(seen) == 1 and kept.tolist() == [1, 1]
  with phases.twice('lower', 'msa'):
    again, kept = run()
  assert len(seen) == 3 and kept.tolist() == [2, 2]
  assert again.tolist() == out.tolist()
  with phases.twice('lower'):
    run()
  assert len(seen) == 4

# SPDX-License-Identifier: Apache-2.0
"""FLOPs of products against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import pytest

from specstream_jax.tpu import flops

X, W = jnp.ones((3, 5)), jnp.ones((5, 7))
ONE = 2 * 3 * 5 * 7


def scanned(x, w):
  step = lambda x, _: ((x @ w) @ w.T, None)
  return jax.lax.scan(step, x, None, length=4)[0]


def looped(x, w):
  return jax.lax.while_loop(lambda x: x.sum() < 0, lambda x: x @ w @ w.T, x)


def branched(x, w):
  return jax.lax.cond(
    x.sum() > 0, lambda x: x @ w, lambda x: (x @ w) @ (w.T @ w), x
  )


def by_platform(x, w):
  twice = lambda x, w: jnp.concatenate([x, x]) @ w
  return jax.lax.platform_dependent(
    x, w, cpu=lambda x, w: twice(x, w)[:3], default=lambda x, w: x @ w
  )


@pytest.mark.parametrize(
  'fun, expected',
  [
    (lambda x, w: x @ w, ONE),
    (jax.jit(lambda x, w: x @ w), ONE),
    (scanned, 4 * 2 * ONE),
    (looped, 2 * ONE),
    (by_platform, ONE),
    (branched, ONE + 2 * 7 * 5 * 7 + 2 * 3 * 7 * 7),
    (jax.grad(lambda x, w: (x @ w).sum()), 2 * ONE),
    (jax.grad(lambda x, w: (jax.checkpoint(jnp.tanh)(x @ w)).sum()), 2 * ONE),
  ],
)
def test_products_are_counted(fun, expected):
  found = flops.of_products(jax.jit(fun).trace(X, W).jaxpr)
  assert found == expected


def test_agrees_with_the_compiler_without_loops():
  fun = jax.jit(lambda x, w: (x @ w) @ (w.T @ w))
  traced = fun.trace(X, W)
  theirs = traced.lower().compile().cost_analysis()['flops']
  assert flops.of_products(traced.jaxpr) == theirs

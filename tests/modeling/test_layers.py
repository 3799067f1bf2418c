# SPDX-License-Identifier: Apache-2.0
"""Products with kernels that lie as [out, in], in both dtypes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specstream_jax.modeling import layers

OUT, IN = 24, 16


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('shape', [(IN,), (1, IN), (1, 1, IN), (3, IN)])
def test_project_is_the_product(shape, dtype):
  keys = jax.random.split(jax.random.key(0))
  x = jax.random.normal(keys[0], shape, dtype)
  kernel = jax.random.normal(keys[1], (OUT, IN), dtype)
  wide = lambda array: np.asarray(array, np.float64)
  found = jax.jit(lambda x, k: layers.project(x, k, jnp.float32))(x, kernel)
  assert found.shape == (*shape[:-1], OUT) and found.dtype == jnp.float32
  np.testing.assert_allclose(found, wide(x) @ wide(kernel).T, atol=2e-5)


@pytest.mark.parametrize(
  ('dtype', 'columns'), [('float32', 1), ('bfloat16', 2)]
)
def test_a_cpu_gets_no_bfloat16_product_of_one_row(dtype, columns):
  x = jnp.ones((1, 1, IN), dtype)
  kernel = jnp.ones((OUT, IN), dtype)
  lowered = jax.jit(layers.project).lower(x, kernel)
  (result,) = re.findall(
    r'dot_general.*-> tensor<(\S+)x\w+>', lowered.as_text()
  )
  sizes = np.prod([int(size) for size in result.split('x')])
  assert sizes == OUT * columns


def test_other_platforms_get_the_plain_product():
  x = jnp.ones((1, 1, IN), jnp.bfloat16)
  kernel = jnp.ones((OUT, IN), jnp.bfloat16)
  traced = jax.jit(layers.project).trace(x, kernel)
  text = traced.lower(lowering_platforms=('tpu',)).as_text()
  (result,) = re.findall(r'dot_general.*-> tensor<(\S+)x\w+>', text)
  assert np.prod([int(size) for size in result.split('x')]) == OUT

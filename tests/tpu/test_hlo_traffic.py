# SPDX-License-Identifier: Apache-2.0
"""What a scheduled TPU program moves, counted on programs small enough to read."""

from specstream_jax.tpu import hlo, traffic

# x [8, 4096] @ three kernels [4096, 4096], bfloat16: two are fetched into VMEM,
# one is read by its product. Layouts with S(1) lie in VMEM.
PRODUCTS = """\
HloModule jit_products, is_scheduled=true

%fused (p.0: bf16[8,4096], p.1: bf16[4096,4096]) -> bf16[8,4096] {
  %p.0 = bf16[8,4096]{1,0} parameter(0)
  %p.1 = bf16[4096,4096]{1,0} parameter(1)
  ROOT %convolution.1 = bf16[8,4096]{1,0} convolution(%p.0, %p.1), dim_labels=bf_io->bf
}

ENTRY %main (x: bf16[8,4096], a: bf16[4096,4096], b: bf16[4096,4096], c: bf16[4096,4096]) -> bf16[8,4096] {
  %x = bf16[8,4096]{1,0:T(8,128)(2,1)} parameter(0)
  %a = bf16[4096,4096]{1,0:T(8,128)(2,1)} parameter(1)
  %b = bf16[4096,4096]{1,0:T(8,128)(2,1)} parameter(2)
  %c = bf16[4096,4096]{1,0:T(8,128)(2,1)} parameter(3)
  %copy-start = (bf16[4096,4096]{1,0:T(8,128)(2,1)}, bf16[4096,4096]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) copy-start(%a)
  %copy-done = bf16[4096,4096]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  %first = bf16[8,4096]{1,0:T(8,128)(2,1)S(1)} fusion(%x, %copy-done), kind=kOutput, calls=%fused
  %slice-start = ((bf16[4096,4096]{1,0:T(8,128)(2,1)}), bf16[1024,4096]{1,0:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) slice-start(%b), slice={[0:1024], [0:4096]}
  %slice-done = bf16[1024,4096]{1,0:T(8,128)(2,1)S(1)} slice-done(%slice-start)
  ROOT %last = bf16[8,4096]{1,0:T(8,128)(2,1)} fusion(%first, %c), kind=kOutput, calls=%fused
}
"""

# A loop that writes 2 of 64 slots of a cache and reads all of it, and sums up a
# vector over chips.
LOOP = """\
HloModule jit_loop, is_scheduled=true

%update (p.0: bf16[64,128], p.1: bf16[2,128], p.2: s32[]) -> bf16[64,128] {
  %p.0 = bf16[64,128]{1,0} parameter(0)
  %p.1 = bf16[2,128]{1,0} parameter(1)
  %p.2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %dynamic-update-slice.1 = bf16[64,128]{1,0} dynamic-update-slice(%p.0, %p.1, %p.2, %zero)
}

%body (state: (bf16[64,128], bf16[2,128], s32[])) -> (bf16[64,128], bf16[2,128], s32[]) {
  %state = (bf16[64,128]{1,0}, bf16[2,128]{1,0:S(1)}, s32[]) parameter(0)
  %cache = bf16[64,128]{1,0} get-tuple-element(%state), index=0
  %new = bf16[2,128]{1,0:S(1)} get-tuple-element(%state), index=1
  %at = s32[]{:S(1)} get-tuple-element(%state), index=2
  %written = bf16[64,128]{1,0} fusion(%cache, %new, %at), kind=kLoop, calls=%update
  %dot = bf16[2,64]{1,0:S(1)} convolution(%new, %written), dim_labels=bf_oi->bf
  %sum = bf16[2,64]{1,0:S(1)} all-reduce(%dot), replica_groups={{0,1}}
  ROOT %out = (bf16[64,128]{1,0}, bf16[2,128]{1,0:S(1)}, s32[]{:S(1)}) tuple(%written, %new, %at)
}

%cond (s: (bf16[64,128], bf16[2,128], s32[])) -> pred[] {
  %s = (bf16[64,128]{1,0}, bf16[2,128]{1,0:S(1)}, s32[]{:S(1)}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (init: (bf16[64,128], bf16[2,128], s32[])) -> (bf16[64,128], bf16[2,128], s32[]) {
  %init = (bf16[64,128]{1,0}, bf16[2,128]{1,0}, s32[]) parameter(0)
  ROOT %while = (bf16[64,128]{1,0}, bf16[2,128]{1,0:S(1)}, s32[]) while(%init), condition=%cond, body=%body
}
"""


def test_products_read_each_kernel_once():
  kernel, x = 2 * 4096 * 4096, 2 * 8 * 4096
  found = traffic.count(PRODUCTS, {hlo.entry(PRODUCTS): 1})
  # a whole, a quarter of b, c whole, x once; the result once.
  assert found.read == kernel + kernel // 4 + kernel + x
  assert found.written == x
  assert found.collectives == {}
  assert found.lines[0][0] == kernel + x


def test_an_update_in_place_counts_as_the_update():
  bodies = hlo.while_bodies(hlo.parse(LOOP))
  found = traffic.count(LOOP, dict.fromkeys(bodies, 1))
  cache, new, total = 2 * 64 * 128, 2 * 2 * 128, 2 * 2 * 64
  assert found.read == cache
  assert found.written == new
  assert found.collectives == {'all-reduce': total}


def test_a_fetch_into_vmem_is_no_copy():
  name = hlo.entry(PRODUCTS)
  assert hlo.copies_in(PRODUCTS, [name], 1000) == []
  planted = PRODUCTS.replace(
    '  %first =',
    '  %copy.1 = bf16[4096,4096]{0,1:T(8,128)(2,1)} copy(%a)\n  %first =',
  )
  (line,) = hlo.copies_in(planted, [name], 1000)
  assert '%copy.1' in line


def test_a_scan_counts_as_often_as_it_runs():
  known = LOOP.replace(
    '  ROOT %yes = pred[] constant(true)\n',
    '  %at = s32[]{:S(1)} get-tuple-element(%s), index=2\n'
    '  %n = s32[]{:S(1)} constant(30)\n'
    '  ROOT %lt = pred[] compare(%at, %n), direction=LT\n',
  )
  assert known != LOOP
  once, often = (
    hlo.executions(hlo.parse(text), hlo.entry(text)) for text in (LOOP, known)
  )
  assert (once['body'], often['body'], often['main']) == (1, 30, 1)
  assert (
    traffic.count(known, often).collectives['all-reduce']
    == 30 * traffic.count(LOOP, once).collectives['all-reduce']
  )

# SPDX-License-Identifier: Apache-2.0
"""A run whose numbers agree with each other, for several tests."""

from specstream_jax.bench import results

# 2 + 3 + 5 calls with accept length 0, 1, 2: 10 calls, 23 tokens.
_VALUES = {
  'task': 'e2e_nlg/test',
  'drafter': 'streams',
  'tree': {'kind': 'best_first', 'size': 7},
  'schedule': 'deferred',
  'dtype': 'float32',
  'batch': 1,
  'num_prompts': 2,
  'new_tokens': 25,
  'calls': 10,
  'autoregressive_calls': 23,
  'call_reduction_ratio': 2.3,
  'step_cost_ratio': 1.25,
  'speedup': 1.79,
  'speedup_ci95': [1.62, 1.93],
  'equal_fraction': 1.0,
  'tokens_per_second': {'autoregressive': 40.0, 'speculative': 71.6},
  'tokens_per_call_macro': 2.2,
  'tokens_per_call_micro': 2.3,
  'accept_length_histogram': [2, 3, 5],
  'per_depth_acceptance': [0.8, 0.5],
  'quality': {
    'autoregressive': {'rouge1': 71.25},
    'speculative': {'rouge1': 71.25},
  },
  'prefill_ms': 17.0,
  'compile_seconds': {'autoregressive': 3.0, 'speculative': 5.0},
  'ms_per_call': {'autoregressive': 20.0, 'speculative': 25.0},
  'device': 'cpu',
  'versions': {
    'python': '3.12.1',
    'jax': '0.12.0',
    'jaxlib': '0.12.0',
    'flax': '0.12.12',
    'specstream_jax': '0.1.0',
  },
  'repeats': 3,
  'lossy': False,
  'samples': [
    {
      'prompt': 'name[The Eagle]',
      'text': 'The Eagle is near',
      'references': ['The Eagle is close.'],
      'accept_lengths': [1, 0],
      'tokens': ['The', ' Eagle', ' is', ' near'],
    }
  ],
}


def run(**changes) -> results.RunResult:
  """The run with some fields replaced."""
  return results.RunResult(**{**_VALUES, **changes})


def document(*runs: results.RunResult) -> results.Document:
  """The runs, or the run, as a document."""
  return results.document(
    runs or (run(),),
    command='specstream evaluate --task=e2e_nlg',
    source={'base': 'tiny-base', 'adapter': 'out/adapter'},
  )

# SPDX-License-Identifier: Apache-2.0
"""The largest counts that may be asked for.

All are beyond any use; what is larger would be a slip of the hand that fills
memory, or loops for hours, before anything else could refuse it.
"""

ROWS = 2**16  # of a batch
SHARDS = 2**16  # runs that share the work, or files of records
PASSES = 1000  # timed ones of a benchmark
TOKENS = 2**24  # of a text; more positions than any model has
RANK = 2**16  # of a low-rank map
COUNT = 2**31 - 1  # of what is only counted; the largest int32
PROCESSES = 1024  # on one machine

# SPDX-License-Identifier: Apache-2.0
"""Tasks, token records and batches; importing it loads no TensorFlow."""

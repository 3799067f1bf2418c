# SPDX-License-Identifier: Apache-2.0
"""Files and folders that commands write: whole or not at all, one run at a time."""

"""Checkpoints, and weight files of other libraries."""

"""The trainer and its hooks."""

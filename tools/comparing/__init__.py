"""What `tools/compare.py` is made of: from an experiment file to runs, their records and a report."""

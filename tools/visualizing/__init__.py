"""What `tools/visualize.py` is made of: from the files of a run to pictures and a page."""

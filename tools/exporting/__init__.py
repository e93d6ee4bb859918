"""What tools/export.py is made of."""

"""Data sets, their checks, and the images that matchings are solved from."""

"""Neurons of the MLPs: ranked by direction, read in words, and where they fire."""

"""Rows of files and tables: order, filters and splits, and the place of a trainer in an epoch."""

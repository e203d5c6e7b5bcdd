"""Engines of jobs: this process, and clusters."""

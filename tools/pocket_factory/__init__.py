"""Trains the bundled model on plain English; see README.md."""

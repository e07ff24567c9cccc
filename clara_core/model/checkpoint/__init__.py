"""Checkpoints: config, location on disk or the Hub, weights, validation, reading and writing."""

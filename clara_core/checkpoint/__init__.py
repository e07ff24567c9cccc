"""Checkpoints: their settings, where they are found, their weights, the proof that they are whole, reading and writing."""

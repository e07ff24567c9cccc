"""Checkpoints: their settings, where they are, their weights, the proof that they are whole."""

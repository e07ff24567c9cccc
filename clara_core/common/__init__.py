"""Utilities of all layers: errors, lazy imports, suggestions of names, notices and the version."""

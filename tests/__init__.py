"""The tests. They share `tests.tiny`, `tests.reference`, `tests.parity_data` and the other modules of this folder."""

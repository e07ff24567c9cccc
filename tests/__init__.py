"""The tests; `tests.tiny`, `tests.reference` and `tests.parity_data` are shared between them."""

"""Conformance tests of the components with LlamaIndex, which has no test suite for integrations."""

"""Tests of the LangChain components."""

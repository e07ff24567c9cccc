"""Tests of the LangChain components that need more of LangChain than its core."""

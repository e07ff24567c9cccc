"""Data types and files: documents and passages, memories, training sets, and adapters of other language models."""

"""Ranking of documents: cosines of memories, BM25, fusion, diversity, projections and metadata filters."""

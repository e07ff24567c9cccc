"""What ranks documents: cosines, BM25, their fusion, diversity, projections, filters."""

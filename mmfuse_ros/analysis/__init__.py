"""What embeddings say: statistics, contributions, retrieval, reports."""

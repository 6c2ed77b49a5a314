"""Training data: scan files, read documents, make batches."""

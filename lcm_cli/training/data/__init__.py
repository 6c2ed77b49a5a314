"""Training data: what is in the files, and how it becomes batches."""

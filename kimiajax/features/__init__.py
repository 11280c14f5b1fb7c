"""What networks compute of patches, and what is done with it: files, SVM, retrieval, heat maps."""

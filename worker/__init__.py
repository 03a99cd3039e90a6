"""The worker: runs the model on packed batches over a paged KV cache, and samples."""

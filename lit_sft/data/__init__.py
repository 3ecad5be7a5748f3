"""Text in, batches out: readers, splits, tokenizers, streams and buckets."""

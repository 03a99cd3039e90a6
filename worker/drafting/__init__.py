"""Speculative decoding: who drafts tokens (ngram, model), and how they are verified."""

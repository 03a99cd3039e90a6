"""The HTTP edge: OpenAI API, tokenizing, detokenizing, and the journal of live requests."""

"""Rules for KV memory: what a request is given, who grows ahead of need, who lives inside whom, who gives way."""

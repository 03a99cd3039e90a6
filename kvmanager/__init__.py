"""The KV manager: block pool, block tables, prefix index. Sans-I/O core plus a process."""

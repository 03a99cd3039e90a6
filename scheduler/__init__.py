"""The central scheduler: request table, policies, cost model, admission. Sans-I/O core plus a process."""

"""The scheduler and KV cores of the live system over a simulated worker, under a virtual clock."""

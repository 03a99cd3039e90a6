"""Faults on purpose: what can go wrong in and between the processes of a server, proof that it did, and a check of
what the clients saw against the reliability contract. Nothing of the product imports this package."""

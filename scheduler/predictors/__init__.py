"""How many tokens will a request generate? What is asked, and who answers; all but the simulator's learn on line."""

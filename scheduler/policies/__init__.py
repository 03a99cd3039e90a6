"""Published scheduling policies, one file each, found by the `accelgen.policies` entry point."""

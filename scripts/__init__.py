"""The `accelgen` command, one file per verb, and development scripts."""

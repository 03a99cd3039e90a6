"""The parts of the policy `accelgen-plus`: each works on numbers alone, and can be switched off."""

"""`accelgen up` itself: child processes, heartbeats, epochs, readiness and shutdown."""

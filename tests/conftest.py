"""For all tests: an example may take its time, since these machines are shared."""

from hypothesis import settings

settings.register_profile("accelgen", deadline=None)
settings.load_profile("accelgen")

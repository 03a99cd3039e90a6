"""For all tests: an example may take its time, since machines are shared; Ctrl-C works in what they start, also where a
shell has started the tests in the background, which makes it ignored."""

import signal

from hypothesis import settings

settings.register_profile("accelgen", deadline=None)
settings.load_profile("accelgen")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

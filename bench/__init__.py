"""The benchmark: `python -m bench --help`."""

import os

# The profiler announces itself on stderr, and warns of memory that was there before it: neither is for our readers.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

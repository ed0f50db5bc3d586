"""Calls a planted fault on a tensor of torch's: `plant.py LIBRARY FAULT`, in the environment of a sanitizer."""

import ctypes
import sys
import threading

import torch

fault = getattr(ctypes.CDLL(sys.argv[1]), sys.argv[2])
tensor = torch.ones(4)
arguments = (ctypes.c_void_p(tensor.data_ptr()), ctypes.c_int64(tensor.numel()))
callers = 2 if sys.argv[2] == "race_of_callers" else 1
threads = [threading.Thread(target=fault, args=arguments) for _ in range(callers)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()

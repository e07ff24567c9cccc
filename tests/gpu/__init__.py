"""The GPU path on a CUDA device that is made of the processor."""

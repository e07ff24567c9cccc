"""Tests of the GPU path, on a CUDA device that is simulated on the processor."""
